"""BaseDNN, the paper's own ranking tower (Eqs. 10-13).

B rows, F, D as in models/inputs.py, Z = 4 D + F.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mail_core.models.config import check_choice, check_share, check_sizes
from mail_core.models.fields import POOLINGS, pool_groups
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.mlp import HiddenLayers, Logit


@dataclass(frozen=True, kw_only=True)
class BaseDnnConfig:
    """Sizes of BaseDNN; the defaults are the paper's."""

    hidden: tuple[int, int] = (512, 256)
    """Units of the two hidden layers."""
    dropout: float = 0.5
    """Before each hidden layer."""
    pooling: str = "sum"
    """Of behaviour: `sum` (Eq. 11), or `mean`, which a virtual token needs to stand beside any number of behaviours."""

    def __post_init__(self) -> None:
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")
        check_choice(self.pooling, "tower_config.pooling", POOLINGS)


class BaseDnn(nn.Module):
    """Sum pooling a group, then two blocks LeakyReLU(BN(Dense(Dropout(.)))) and one logit."""

    config_type = BaseDnnConfig

    def __init__(self, config: BaseDnnConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.hidden = HiddenLayers(4 * shape.dim + shape.dense, config.hidden, config.dropout)
        self.output = Logit(config.hidden[-1])

    def reset_parameters(self) -> None:
        self.hidden.reset_parameters()
        self.output.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,), Eqs. 11 and 12."""
        return RankingOutput(logits_B=self.output(self.hidden(pool_groups(inputs, self.config.pooling))))
