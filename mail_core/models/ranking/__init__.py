"""The ranking towers by name. A tower takes (config, InputShape); its forward maps TowerInputs to RankingOutput."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Protocol, Union

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig
from mail_core.models.ranking.dcn_v2 import DcnV2, DcnV2Config
from mail_core.models.ranking.din import Din, DinConfig
from mail_core.models.ranking.dmr import Dmr, DmrConfig
from mail_core.models.ranking.dnn_concat import DnnConcat, DnnConcatConfig
from mail_core.models.ranking.emb_lr import EmbLr, EmbLrConfig

RankingTower = Union[BaseDnn, DnnConcat, EmbLr, Din, DcnV2, Dmr]
TowerConfig = Union[BaseDnnConfig, DnnConcatConfig, EmbLrConfig, DinConfig, DcnV2Config, DmrConfig]


class TowerType(Protocol):
    """A ranking tower's class."""

    config_type: Any
    """Its configuration's class, one of TowerConfig."""

    def __call__(self, config: Any, shape: InputShape) -> RankingTower:
        """A fresh tower."""


TOWERS: Mapping[str, TowerType] = {"base_dnn": BaseDnn, "dnn_concat": DnnConcat, "emb_lr": EmbLr, "din": Din,
                                   "dcn_v2": DcnV2, "dmr": Dmr}

_POOLING = (BaseDnnConfig, DnnConcatConfig, EmbLrConfig, DcnV2Config)


def has_pooling(config: TowerConfig) -> bool:
    """Whether the tower pools behaviour; the others attend to it."""
    return isinstance(config, _POOLING)


def pooling_of(config: TowerConfig) -> str:
    """How a tower pools behaviour: `sum` or `mean` where it has the choice; one that attends weighs it, as a mean."""
    return config.pooling if isinstance(config, _POOLING) else "mean"


def with_pooling(config: TowerConfig, pooling: str) -> TowerConfig:
    """`config` with another pooling of behaviour. Raises InputError for a tower that attends, or no such pooling."""
    if not isinstance(config, _POOLING):
        raise InputError(f"pooling {pooling!r}: a {type(config).__name__} has none, its tower attends to behaviour")
    return replace(config, pooling=pooling)
