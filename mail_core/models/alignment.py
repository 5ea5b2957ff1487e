"""Distances between the hidden features of attributes and of behaviour: L_d of the zero-shot tower's loss.

N rows, H size of the hidden space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mail_core.models.config import check_choice

ALIGNMENTS = ("mmd", "mse")
KERNELS = ("fixed", "median", "multi")
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median, the squared bandwidths of the `multi` kernel


def alignment_loss(p_NH: Tensor, q_NH: Tensor, alignment: str, kernel: str, bandwidth: float) -> Tensor:
    """L_d: `mmd` (Eqs. 5 and 6), or `mse`, the mean squared difference of a row's p and q (the authors' code).

    Returns a scalar, 0 with a graph where there are no rows.
    """
    check_choice(alignment, "alignment", ALIGNMENTS)
    if alignment == "mmd":
        return mmd(p_NH, q_NH, kernel, bandwidth)
    return ((p_NH - q_NH) ** 2).sum() / max(p_NH.numel(), 1)


def mmd(p_NH: Tensor, q_NH: Tensor, kernel: str = "fixed", bandwidth: float = 1.0) -> Tensor:
    """Eqs. 5 and 6: biased estimate of the squared maximum mean discrepancy, each term a mean over n² pairs.

    `fixed`: sigma = bandwidth. `median`: sigma² is the median squared distance between different rows of p and q
    together, without gradient. `multi`: the mean of five Gaussian kernels with sigma² of 1/4 to 4 times that median.
    Returns a scalar, 0 with a graph where there are no rows.
    """
    check_choice(kernel, "kernel", KERNELS)
    if len(p_NH) == 0:
        return p_NH.sum() + q_NH.sum()
    center = torch.cat([p_NH, q_NH]).detach().mean(0)  # distances do not change, their rounding errors do
    p_NH, q_NH = p_NH - center, q_NH - center
    pp, qq, pq = (_squared_distances(x, y) for x, y in ((p_NH, p_NH), (q_NH, q_NH), (p_NH, q_NH)))
    if kernel == "fixed":
        variances = [torch.tensor(bandwidth**2, dtype=pp.dtype, device=pp.device)]
    else:
        median = _median(pp.detach(), qq.detach(), pq.detach())
        variances = [median] if kernel == "median" else [median * m for m in _MULTIPLES]
    terms = [torch.stack([torch.exp(-d / (2 * s)).mean() for s in variances]).mean() for d in (pp, qq, pq)]
    return terms[0] + terms[1] - 2 * terms[2]


def _squared_distances(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    squares = (x_NH * x_NH).sum(1, keepdim=True) + (y_NH * y_NH).sum(1)
    return (squares - 2 * x_NH @ y_NH.T).clamp(min=0)


def _median(pp: Tensor, qq: Tensor, pq: Tensor) -> Tensor:
    """Median squared distance over the pairs of different rows of p and q together."""
    i, j = torch.triu_indices(len(pp), len(pp), offset=1, device=pp.device)
    return torch.cat([pp[i, j], qq[i, j], pq.reshape(-1)]).median().clamp(min=1e-12)
