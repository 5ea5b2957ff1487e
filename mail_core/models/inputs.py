"""What passes between the embedding tables, the zero-shot tower and a ranking tower: tensors only, no IDs.

B rows (impressions), U users, A user attributes, L behaviour length, C context features, T target item features,
F dense context and item features, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """Sizes that a tower is built for."""

    attributes: int
    """A: user attributes, dense ones included (a dense attribute is its value times a learned vector)."""
    length: int
    """L: positions of a behaviour sequence."""
    contexts: int
    """C: embedded context features."""
    targets: int
    """T: embedded features of the target item."""
    dense: int
    """F: dense context and item features."""
    dim: int
    """D: embedding size."""
    user_id: int | None = None
    """Which of the A attributes is the user's ID, where one is."""
    matched: tuple[int, ...] = ()
    """Which of the T target features a behaviour's item part is the sum of."""

    @property
    def without_user_id(self) -> list[int]:
        """The A attributes but the user's ID."""
        return [attribute for attribute in range(self.attributes) if attribute != self.user_id]


@dataclass(frozen=True, kw_only=True)
class TowerInputs:
    """The input x of a ranking tower (Eq. 10), embedded."""

    a_BAD: Tensor
    """User attributes."""
    v_BLD: Tensor
    """Behaviour, newest first: item part times action embedding, zero at padding."""
    mask_BL: Tensor
    """True at the valid positions of v_BLD."""
    c_BCD: Tensor
    """Context."""
    t_BTD: Tensor
    """Target item."""
    dense_BF: Tensor
    """Dense context features, then dense item features, standardised."""
    is_virtual_B: Tensor
    """True where v_BLD is virtual behaviour and nothing else (Eq. 8)."""
    newest_BD: Tensor | None = None
    """Item part of each row's newest real behaviour, zero without one; with `newest_BJ` there in training only, for
    losses on real behaviour."""
    newest_BJ: Tensor | None = None
    """Its J codes, 0 without one."""
    token_weight: float | None = None
    """Set where the last position of every row is a virtual token: where positions are pooled it counts as so many."""

    @property
    def weight_L(self) -> Tensor:
        """(L,) what a valid position counts for where positions are pooled: 1, but for a token."""
        weight_L = torch.ones(self.v_BLD.shape[1], dtype=self.v_BLD.dtype, device=self.v_BLD.device)
        if self.token_weight is not None:
            weight_L[-1] = self.token_weight
        return weight_L

    def with_token(self, token_B1D: Tensor, weight: float) -> TowerInputs:
        """A virtual token behind every row's own positions."""
        new_B = self.is_new_B
        return replace(self, v_BLD=torch.cat([self.v_BLD, token_B1D], 1), is_virtual_B=self.is_virtual_B | new_B,
                       mask_BL=F.pad(self.mask_BL, (0, 1), value=True), token_weight=weight)

    @property
    def is_new_B(self) -> Tensor:
        """Eq. 9: the sequence is empty. After `MailModel.complete` no row is new; is_virtual_B says which were."""
        return ~self.mask_BL.any(1)

    def select(self, index: Tensor) -> TowerInputs:
        """The rows of a bool mask (B,) or of int64 positions (N,), differentiable; a (N, ...) copy."""
        tensors: dict[str, Any] = {n: value[index] for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class UserPart:
    """What of the input belongs to the user, made once a user and ranked against many candidates."""

    a_UAD: Tensor
    v_ULD: Tensor
    mask_UL: Tensor
    is_virtual_U: Tensor
    token_weight: float | None


@dataclass(frozen=True, kw_only=True)
class RankingOutput:
    """What a ranking tower returns."""

    logits_B: Tensor
    """The CTR is sigmoid(logits_B)."""
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    """Auxiliary losses by name, summed over rows, where the tower has any."""
    conversion_logits_B: Tensor | None = None
    """With two towers (`Esmm`): the CVR is sigmoid(conversion_logits_B)."""


def no_virtual(mask_BL: Tensor) -> Tensor:
    """is_virtual_B of real behaviour: False everywhere."""
    return torch.zeros(mask_BL.shape[0], dtype=torch.bool, device=mask_BL.device)
