"""The ranking towers by name. A tower takes (config, InputShape); its forward maps TowerInputs to RankingOutput."""

from __future__ import annotations

from typing import Any, Mapping, Protocol, Union

from mail_core.models.inputs import InputShape
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig
from mail_core.models.ranking.dcn_v2 import DcnV2, DcnV2Config
from mail_core.models.ranking.din import Din, DinConfig
from mail_core.models.ranking.dnn_concat import DnnConcat, DnnConcatConfig
from mail_core.models.ranking.emb_lr import EmbLr, EmbLrConfig

RankingTower = Union[BaseDnn, DnnConcat, EmbLr, Din, DcnV2]
TowerConfig = Union[BaseDnnConfig, DnnConcatConfig, EmbLrConfig, DinConfig, DcnV2Config]


class TowerType(Protocol):
    """A ranking tower's class."""

    config_type: Any
    """Its configuration's class, one of TowerConfig."""

    def __call__(self, config: Any, shape: InputShape) -> RankingTower:
        """A fresh tower."""


TOWERS: Mapping[str, TowerType] = {"base_dnn": BaseDnn, "dnn_concat": DnnConcat, "emb_lr": EmbLr, "din": Din,
                                   "dcn_v2": DcnV2}
