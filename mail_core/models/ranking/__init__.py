"""The ranking towers by name. A tower takes (config, InputShape); its forward maps TowerInputs to RankingOutput."""

from __future__ import annotations

from typing import Any, Mapping, Protocol, Union

from mail_core.models.inputs import InputShape
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig
from mail_core.models.ranking.din import Din, DinConfig

RankingTower = Union[BaseDnn, Din]
TowerConfig = Union[BaseDnnConfig, DinConfig]


class TowerType(Protocol):
    """A ranking tower's class."""

    config_type: Any
    """Its configuration's class, one of TowerConfig."""

    def __call__(self, config: Any, shape: InputShape) -> RankingTower:
        """A fresh tower."""


TOWERS: Mapping[str, TowerType] = {"base_dnn": BaseDnn, "din": Din}
