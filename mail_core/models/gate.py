"""A gate that notices whether virtual behaviour says anything about behaviour at all, and shrinks it where it does not.

The statistics come from old rows: running means of both, and the slope of real on virtual behaviour on held-out old
users, whose behaviour the zero-shot tower has not learned. N rows, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN_DECAY, SLOPE_DECAY = 0.95, 0.98


class Gate(nn.Module):
    """token = mu + g (v - m): mu and m are the running means of pooled real behaviour and of virtual behaviour v over
    old rows; g is the slope S_xy / S_xx of held-out rows, kept within 0 and 1. All of it is state, nothing is learned
    by gradient.
    """

    mean_real_D: Tensor
    mean_virtual_D: Tensor
    weight: Tensor
    """Of the running means, for the correction of their start from 0."""
    s_xx: Tensor
    s_xy: Tensor

    def __init__(self, dim: int, closed: bool = False):
        super().__init__()
        self.closed = closed
        for name in ("mean_real_D", "mean_virtual_D"):
            self.register_buffer(name, torch.zeros(dim))
        for name in ("weight", "s_xx", "s_xy"):
            self.register_buffer(name, torch.zeros(()))

    def reset_parameters(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()

    @property
    def g(self) -> Tensor:
        """Scalar in [0, 1]; 0 before the first held-out row, and always 0 where the gate is closed."""
        if self.closed:
            return torch.zeros_like(self.s_xx)
        return torch.where(self.s_xx > 0, self.s_xy / self.s_xx.clamp(min=1e-30), 0.0).clamp(0, 1)

    def forward(self, virtual_N1D: Tensor) -> Tensor:
        """(N, 1, D) virtual behaviour -> (N, 1, D) token; zero before the first update."""
        weight = self.weight.clamp(min=1e-30)
        return self.mean_real_D / weight + self.g * (virtual_N1D - self.mean_virtual_D / weight)

    @staticmethod
    def sums(real_ND: Tensor, virtual_ND: Tensor, held_out_N: Tensor) -> Tensor:
        """What `update` needs of N old rows, float64 (4 D + 4,); sums of several batches, or ranks, add up."""
        real, virtual = real_ND.double(), virtual_ND.double()
        held_real, held_virtual = real[held_out_N], virtual[held_out_N]
        counts = torch.tensor([len(real), len(held_real)], dtype=torch.float64, device=real.device)
        products = torch.stack([(held_virtual * held_virtual).sum(), (held_virtual * held_real).sum()])
        return torch.cat([counts, products, real.sum(0), virtual.sum(0), held_real.sum(0), held_virtual.sum(0)])

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """One step of the running statistics: the means of all old rows first, then the slope about these means."""
        (rows, held, vv, vr), vectors = sums[:4], sums[4:].chunk(4)
        if rows == 0:
            return
        self.weight.mul_(MEAN_DECAY).add_(1 - MEAN_DECAY)
        for mean_D, sum_D in ((self.mean_real_D, vectors[0]), (self.mean_virtual_D, vectors[1])):
            mean_D.mul_(MEAN_DECAY).add_((1 - MEAN_DECAY) * (sum_D / rows).to(mean_D.dtype))
        if held == 0:
            return
        mu, m = ((mean_D / self.weight).double() for mean_D in (self.mean_real_D, self.mean_virtual_D))
        held_real, held_virtual = vectors[2:]
        s_xx = vv - 2 * m @ held_virtual + held * (m @ m)
        s_xy = vr - m @ held_real - mu @ held_virtual + held * (m @ mu)
        for kept, value in ((self.s_xx, s_xx), (self.s_xy, s_xy)):
            kept.mul_(SLOPE_DECAY).add_((1 - SLOPE_DECAY) * value.to(kept.dtype))
