"""LLAE (Li et al., AAAI 2019): a linear map from attributes to pooled behaviour, whose closed form training finds.

N rows, A user attributes, D embedding size, K = (A - 1) D: all attributes but the user's ID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.config import check_positive, check_share
from mail_core.models.inputs import InputShape


@dataclass(frozen=True, kw_only=True)
class LlaeConfig:
    """Weights of LLAE's loss ||X - W^T S||² + encoding ||W X - S||² + low_rank tr(V^T W W^T V)."""

    low_rank: tuple[float, ...] = (30.0,)
    """Weight of the low-rank term (the paper's 30); of several the one that predicts held-out users best is taken."""
    encoding: float = 1.0
    """Weight of the encoder's own error."""
    rank_share: float = 0.5
    """Of D, the rank aimed at: V spans W's left singular vectors after these."""

    def __post_init__(self) -> None:
        if not isinstance(self.low_rank, tuple) or not self.low_rank:
            raise InputError(f"cold_start.low_rank: {self.low_rank!r} (expected one weight or more)")
        for weight in self.low_rank:
            check_positive(weight, "cold_start.low_rank")
        check_positive(self.encoding, "cold_start.encoding")
        check_share(self.rank_share, "cold_start.rank_share")


class Llae(nn.Module):
    """Gives new rows W^T s as their only behaviour. W is state, not learned by gradient."""

    w_KD: Tensor
    fitted: Tensor
    """bool; before it is True the model is its ranking tower alone."""

    def __init__(self, config: LlaeConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.kept = shape.without_user_id
        if not self.kept:
            raise InputError("llae: the schema has no user attribute beside the user's ID")
        self.register_buffer("w_KD", torch.zeros(len(self.kept) * shape.dim, shape.dim))
        self.register_buffer("fitted", torch.tensor(False))

    def reset_parameters(self) -> None:
        self.w_KD.zero_()
        self.fitted.zero_()

    def attributes(self, a_NAD: Tensor) -> Tensor:
        """S: (N, K), all attributes but the user's ID side by side."""
        return a_NAD[:, self.kept].flatten(1)

    @torch.no_grad()
    def virtual_behavior(self, a_NAD: Tensor) -> Tensor:
        """(N, 1, D): pooled behaviour as one position."""
        return (self.attributes(a_NAD) @ self.w_KD).unsqueeze(1)
