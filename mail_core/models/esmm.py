"""ESMM (Ma et al., SIGIR 2018): a CTR tower and a CVR tower on the same embeddings, pCTCVR = pCTR * pCVR.

The CVR tower has no loss of its own, which would know clicked impressions only: it learns through pCTCVR, over all
impressions. B rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.models.inputs import RankingOutput, TowerInputs
from mail_core.models.ranking import RankingTower

HEADS = ("ctr", "esmm")
"""What a model estimates: the CTR alone, or CTR and CVR."""


class Esmm(nn.Module):
    """Two ranking towers that are called as one; the logits are those of the CTR."""

    def __init__(self, click: RankingTower, conversion: RankingTower):
        super().__init__()
        self.click, self.conversion = click, conversion

    def reset_parameters(self) -> None:
        for tower in (self.click, self.conversion):
            tower.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh CTR tower's output bias be the log odds of `ctr`."""
        self.click.set_prior(ctr)

    def set_conversion_prior(self, cvr: float) -> None:
        """Let the fresh CVR tower's output bias be the log odds of `cvr`, conversions a click."""
        self.conversion.set_prior(cvr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits of both towers, and the auxiliary losses of both."""
        click, conversion = self.click(inputs), self.conversion(inputs)
        losses = {f"conversion.{name}": loss for name, loss in conversion.auxiliary.items()}
        return RankingOutput(logits_B=click.logits_B, conversion_logits_B=conversion.logits_B,
                             auxiliary={**click.auxiliary, **losses})


def product_logits(a_B: Tensor, b_B: Tensor) -> Tensor:
    """Log odds (B,) of the product p of two probabilities from their log odds.

    1 / p = (1 + exp(-a)) (1 + exp(-b)), so that (1 - p) / p = exp(-a) + exp(-b) + exp(-a - b): a sum of positive terms,
    exact for p near 0 and near 1 alike, where log(p) and log(1 - p) of a rounded p are not.
    """
    return -torch.logsumexp(torch.stack([-a_B, -b_B, -a_B - b_B]), 0)


def ranking_losses(output: RankingOutput, labels_B: Tensor, conversions_B: Tensor | None) -> Tensor:
    """L_rt of each row (B,): Eq. 13, and beside it, where there is a CVR tower, the same of the CTCVR.

    Args:
        labels_B: float, 0 or 1.
        conversions_B: likewise, 1 for clicked rows only; None will do without a CVR tower.
    """
    losses_B = F.binary_cross_entropy_with_logits(output.logits_B, labels_B, reduction="none")
    if output.conversion_logits_B is None:
        return losses_B
    assert conversions_B is not None, "a CVR tower learns from conversions"
    joint_B = product_logits(output.logits_B, output.conversion_logits_B)
    return losses_B + F.binary_cross_entropy_with_logits(joint_B, conversions_B, reduction="none")
