"""The ranking towers by name. A tower takes (config, InputShape); its forward maps TowerInputs to RankingOutput."""

from mail_core.models.ranking.base_dnn import BaseDnn

TOWERS = {"base_dnn": BaseDnn}
