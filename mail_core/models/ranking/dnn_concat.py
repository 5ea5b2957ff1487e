"""A DNN over all fields side by side, as FuxiCTR's DNN: BaseDNN without its sum over the fields of a group.

B rows, A, C, T, F, D as in models/inputs.py, Z = (1 + A + C + T) D + F.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mail_core.models.config import check_choice, check_share, check_sizes
from mail_core.models.fields import POOLINGS, pool_behavior, side_by_side, side_by_side_width
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.mlp import HiddenLayers, Logit


@dataclass(frozen=True, kw_only=True)
class DnnConcatConfig:
    """Sizes of the DNN; the hidden layers are BaseDNN's."""

    pooling: str = "sum"
    """Of the behaviour: `sum` as BaseDNN's, or `mean`."""
    hidden: tuple[int, int] = (512, 256)
    """Units of the two hidden layers."""
    dropout: float = 0.5
    """Before each hidden layer."""

    def __post_init__(self) -> None:
        check_choice(self.pooling, "tower_config.pooling", POOLINGS)
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")


class DnnConcat(nn.Module):
    """The behaviour pooled to one field, all fields side by side, two hidden layers and one logit."""

    config_type = DnnConcatConfig

    def __init__(self, config: DnnConcatConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.hidden = HiddenLayers(side_by_side_width(shape), config.hidden, config.dropout)
        self.output = Logit(config.hidden[-1])

    def reset_parameters(self) -> None:
        self.hidden.reset_parameters()
        self.output.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,)."""
        x_BZ = side_by_side(pool_behavior(inputs, self.config.pooling), inputs)
        return RankingOutput(logits_B=self.output(self.hidden(x_BZ)))
