"""EmbLR, the baseline under LLAE: logistic regression on the pooled embeddings.

B rows, D, F as in models/inputs.py, Z = 4 D + F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mail_core.models.config import check_choice
from mail_core.models.fields import POOLINGS, pool_behavior
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.mlp import Logit


@dataclass(frozen=True, kw_only=True)
class EmbLrConfig:
    """EmbLR has no sizes of its own."""

    pooling: str = "sum"
    """Of the behaviour: `sum` as BaseDNN's, or `mean`."""

    def __post_init__(self) -> None:
        check_choice(self.pooling, "tower_config.pooling", POOLINGS)


class EmbLr(nn.Module):
    """Eq. 11's z, then one linear layer and no hidden one."""

    config_type = EmbLrConfig

    def __init__(self, config: EmbLrConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.output = Logit(4 * shape.dim + shape.dense)

    def reset_parameters(self) -> None:
        self.output.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,): w z + b."""
        z_BZ = torch.cat([pool_behavior(inputs, self.config.pooling), inputs.a_BAD.sum(1), inputs.c_BCD.sum(1),
                          inputs.t_BTD.sum(1), inputs.dense_BF], 1)
        return RankingOutput(logits_B=self.output(z_BZ))
