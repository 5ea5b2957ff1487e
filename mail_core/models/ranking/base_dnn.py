"""BaseDNN, the paper's own ranking tower (Eqs. 10-13).

B rows, A, C, T, L, F, D as in models/inputs.py, Z = 4 D + F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.models.config import check_choice, check_share, check_sizes
from mail_core.models.fields import POOLINGS, pool_behavior
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.layers import SLOPE, BatchNorm, Dense, log_odds


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
        check_choice(self.pooling, "tower_config.pooling", POOLINGS)
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")


class BaseDnn(nn.Module):
    """Sum pooling a group, then two blocks LeakyReLU(BN(Dense(Dropout(.)))) and one logit."""

    config_type = BaseDnnConfig

    def __init__(self, config: BaseDnnConfig, shape: InputShape):
        super().__init__()
        self.config = config
        first, second = config.hidden
        self.dense1, self.norm1 = Dense(4 * shape.dim + shape.dense, first), BatchNorm(first)
        self.dense2, self.norm2 = Dense(first, second), BatchNorm(second)
        self.output = Dense(second, 1)

    def reset_parameters(self) -> None:
        for layer in (self.dense1, self.norm1, self.dense2, self.norm2, self.output):
            layer.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`, which Adam would otherwise spend epochs on."""
        nn.init.constant_(self.output.bias, log_odds(ctr))

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,), Eqs. 11 and 12."""
        h_BZ = pool(inputs, self.config.pooling)
        for dense, norm in ((self.dense1, self.norm1), (self.dense2, self.norm2)):
            h_BZ = F.leaky_relu(norm(dense(F.dropout(h_BZ, self.config.dropout, self.training))), SLOPE)
        return RankingOutput(logits_B=self.output(h_BZ).squeeze(1))


def pool(inputs: TowerInputs, pooling: str = "sum") -> Tensor:
    """Eq. 11: z = [z_v, z_a, z_c, z_t, dense] (B, 4 D + F), the sums of the groups' vectors; z_v by `pooling`."""
    return torch.cat([pool_behavior(inputs, pooling), inputs.a_BAD.sum(1), inputs.c_BCD.sum(1), inputs.t_BTD.sum(1),
                      inputs.dense_BF], 1)
