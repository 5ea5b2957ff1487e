"""EmbLR, the baseline under LLAE: logistic regression on the pooled embeddings.

B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mail_core.models.config import check_choice
from mail_core.models.fields import POOLINGS, pool_groups
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
        return RankingOutput(logits_B=self.output(pool_groups(inputs, self.config.pooling)))
