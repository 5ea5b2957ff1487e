"""The real positions of a padded batch of sequences, side by side, so that time follows their length.

The three operations are autograd functions because a plain gather's gradient is a scatter-add, which the CPU does one
position at a time; here each gradient is a copy or a sum over neighbours.

B rows, L positions of a row, P real positions of the batch in row order, D any width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a batch lie."""

    position_P: Tensor
    """In (B * L)."""
    row_P: Tensor
    """In B."""
    offsets_B: Tensor
    """First position of each row in P; the last entry, of B + 1, is P."""

    @classmethod
    def of(cls, mask_BL: Tensor) -> Packing:
        """The positions where the mask is True."""
        row_P, column_P = mask_BL.nonzero(as_tuple=True)
        return cls(row_P * mask_BL.shape[1] + column_P, row_P, F.pad(mask_BL.sum(1).cumsum(0), (1, 0)))

    def pack(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (P, D)."""
        return _Pack.apply(x_BLD, self.position_P)

    def spread(self, x_BD: Tensor) -> Tensor:
        """Each row's vector at each of its positions: (B, D) -> (P, D)."""
        return _Spread.apply(x_BD, self.row_P, self.offsets_B)

    def sum(self, x_PD: Tensor) -> Tensor:
        """Sum of each row's positions, 0 for a row without any: (P, D) -> (B, D)."""
        return _Sum.apply(x_PD, self.row_P, self.offsets_B)


def _sum_rows(x_PD: Tensor, offsets_B: Tensor) -> Tensor:
    if len(x_PD) == 0:
        return x_PD.new_zeros(len(offsets_B) - 1, x_PD.shape[1])
    positions_P = torch.arange(len(x_PD), device=x_PD.device)
    return F.embedding_bag(positions_P, x_PD, offsets_B, mode="sum", include_last_offset=True)


class _Pack(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, position_P: Tensor) -> Tensor:
        ctx.save_for_backward(position_P)
        ctx.shape = x_BLD.shape
        return x_BLD.reshape(-1, x_BLD.shape[2]).index_select(0, position_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None]:
        rows, length, dim = ctx.shape
        return grad_PD.new_zeros(rows * length, dim).index_copy_(0, ctx.saved_tensors[0], grad_PD).view(ctx.shape), None


class _Spread(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, row_P: Tensor, offsets_B: Tensor) -> Tensor:
        ctx.save_for_backward(offsets_B)
        return x_BD.index_select(0, row_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        return _sum_rows(grad_PD.contiguous(), ctx.saved_tensors[0]), None, None


class _Sum(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, row_P: Tensor, offsets_B: Tensor) -> Tensor:
        ctx.save_for_backward(row_P)
        return _sum_rows(x_PD.contiguous(), offsets_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None, None]:
        return grad_BD.index_select(0, ctx.saved_tensors[0]), None, None
