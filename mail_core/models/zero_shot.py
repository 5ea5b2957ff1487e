"""The zero-shot tower: user attributes -> virtual behaviour (Eqs. 1-8, 15, 16).

N rows, A user attributes, L behaviour length, D embedding size, X either of A and L, H size of the hidden space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.models.config import check_choice, check_flag, check_positive, check_share, check_size, check_sizes
from mail_core.models.inputs import InputShape
from mail_core.models.layers import SLOPE, Dense

KERNELS = ("fixed", "median", "multi")
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median, the squared bandwidths of the `multi` kernel


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Sizes and loss of the zero-shot tower; the defaults are the paper's."""

    hidden: tuple[int, int] = (1024, 512)
    """Layers of an encoder before its output; a decoder has them the other way round."""
    latent: int = 512
    """H: size of p = E1(h_a) and q = E2(h_v)."""
    attention: int = 128
    """Width of the attention (Eq. 2)."""
    dropout: float = 0.5
    """Before the first two dense layers of every encoder and decoder."""
    align: bool = True
    """Whether L_d (Eq. 5) is part of L_zst; without it the alignment loss is 0."""
    kernel: str = "fixed"
    """Of the MMD: `fixed` bandwidth, `median` of the batch's distances, or `multi`: five bandwidths round it."""
    bandwidth: float = 1.0
    """Sigma of the `fixed` kernel (Eq. 6)."""
    autocast: bool = False
    """Whether the layers compute in bfloat16; parameters, losses and virtual behaviour keep the parameters' type."""

    def __post_init__(self) -> None:
        check_sizes(self.hidden, "zero_shot.hidden", 2)
        check_size(self.latent, "zero_shot.latent")
        check_size(self.attention, "zero_shot.attention")
        check_share(self.dropout, "zero_shot.dropout")
        check_flag(self.align, "zero_shot.align")
        check_flag(self.autocast, "zero_shot.autocast")
        check_choice(self.kernel, "zero_shot.kernel", KERNELS)
        check_positive(self.bandwidth, "zero_shot.bandwidth")


@dataclass(frozen=True, kw_only=True)
class ZeroShotLosses:
    """The terms of L_zst (Eq. 7); scalars with a graph, also for no rows."""

    attribute: Tensor
    """L_a (Eq. 3), summed over rows: divide by the number of rows (of all ranks)."""
    behavior: Tensor
    """L_v (Eq. 4), summed over rows."""
    alignment: Tensor
    """L_d (Eq. 5), a mean over pairs: take it as it is. 0 where the configuration does not align."""


class AttentionPooling(nn.Module):
    """Eqs. 1 and 2: e_i = z^T tanh(W x_i + b), alpha = softmax(e), h = sum of alpha_i x_i."""

    def __init__(self, dim: int, attention: int):
        super().__init__()
        self.inner = Dense(dim, attention)
        self.score = Dense(attention, 1, bias=False)

    def reset_parameters(self) -> None:
        self.inner.reset_parameters()
        self.score.reset_parameters()

    def forward(self, x_NXD: Tensor, mask_NX: Tensor | None = None) -> Tensor:
        """(N, X, D) -> (N, D). Positions where the mask is False get no weight; a row without any position gives 0."""
        e_NX = self.score(torch.tanh(self.inner(x_NXD))).squeeze(2)
        if mask_NX is None:
            alpha_NX = e_NX.softmax(1)
        else:
            # The lowest finite number, not -inf: the softmax of a row of -inf is NaN.
            alpha_NX = e_NX.masked_fill(~mask_NX, torch.finfo(e_NX.dtype).min).softmax(1) * mask_NX
        return torch.bmm(alpha_NX.unsqueeze(1), x_NXD).squeeze(1)


class _Residual(nn.Module):
    """Three dense layers, each of which sees the block's input again by concatenation; dropout before the first two."""

    def __init__(self, inputs: int, sizes: tuple[int, int, int], dropout: float):
        super().__init__()
        self.dropout = dropout
        self.first = Dense(inputs, sizes[0])
        self.second = Dense(sizes[0] + inputs, sizes[1])
        self.third = Dense(sizes[1] + inputs, sizes[2])

    def reset_parameters(self) -> None:
        for layer in (self.first, self.second, self.third):
            layer.reset_parameters()

    def stack(self, x_NI: Tensor, drop: bool) -> Tensor:
        z1 = F.leaky_relu(self.first(F.dropout(x_NI, self.dropout, drop)), SLOPE)
        z2 = F.leaky_relu(self.second(F.dropout(torch.cat([z1, x_NI], 1), self.dropout, drop)), SLOPE)
        return self.third(torch.cat([z2, x_NI], 1))


class ResidualEncoder(_Residual):
    """Eq. 15: (N, inputs) -> (N, H)."""

    def __init__(self, inputs: int, config: ZeroShotConfig):
        super().__init__(inputs, (*config.hidden, config.latent), config.dropout)

    def forward(self, h_NI: Tensor, drop: bool) -> Tensor:
        """Encode; `drop` says whether dropout is on, whatever the module's mode."""
        return F.leaky_relu(self.stack(h_NI, drop), SLOPE)


class ResidualDecoder(_Residual):
    """Eq. 16: (N, H) -> (N, outputs), no activation on the output."""

    def __init__(self, outputs: int, config: ZeroShotConfig):
        super().__init__(config.latent, (config.hidden[1], config.hidden[0], outputs), config.dropout)

    def forward(self, p_NH: Tensor, drop: bool) -> Tensor:
        """Decode; `drop` says whether dropout is on, whatever the module's mode."""
        return self.stack(p_NH, drop)


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


class ZeroShotTower(nn.Module):
    """Reconstruction across modes on old rows (L_zst), virtual behaviour for new ones. No gradient leaves the tower."""

    def __init__(self, config: ZeroShotConfig, shape: InputShape):
        super().__init__()
        self.config, self.shape = config, shape
        self.attribute_attention = AttentionPooling(shape.dim, config.attention)
        self.behavior_attention = AttentionPooling(shape.dim, config.attention)
        self.attribute_encoder = ResidualEncoder(shape.dim, config)  # E1
        self.behavior_encoder = ResidualEncoder(shape.dim, config)  # E2
        self.attribute_decoder = ResidualDecoder(shape.attributes * shape.dim, config)  # D1
        self.behavior_decoder = ResidualDecoder(shape.length * shape.dim, config)  # D2

    def reset_parameters(self) -> None:
        for block in self.children():
            block.reset_parameters()  # type: ignore[operator]

    def forward(self, a_NAD: Tensor, v_NLD: Tensor, mask_NL: Tensor) -> ZeroShotLosses:
        """Losses of N old rows (Eqs. 3-6), N = 0 included. Inputs and targets are detached."""
        a_NAD, v_NLD = a_NAD.detach(), v_NLD.detach()
        rows = len(a_NAD)
        with self._precision(a_NAD):
            p_NH = self.attribute_encoder(self.attribute_attention(a_NAD), self.training)
            q_NH = self.behavior_encoder(self.behavior_attention(v_NLD, mask_NL), self.training)
            hidden = torch.cat([p_NH, q_NH])  # the decoders are shared, so both pass at once
            a_decoded = self.attribute_decoder(hidden, self.training)
            v_decoded = self.behavior_decoder(hidden, self.training)
        p_NH, q_NH = p_NH.to(a_NAD.dtype), q_NH.to(a_NAD.dtype)
        a_errors = self._errors(a_decoded.to(a_NAD.dtype), a_NAD, rows)
        v_errors = self._errors(v_decoded.to(v_NLD.dtype), v_NLD * mask_NL.unsqueeze(2), rows)
        config = self.config
        alignment = mmd(p_NH, q_NH, config.kernel, config.bandwidth) if config.align else 0.0 * p_NH.sum()
        return ZeroShotLosses(attribute=a_errors[0] + v_errors[0], behavior=a_errors[1] + v_errors[1],
                              alignment=alignment)

    def _precision(self, a_NAD: Tensor) -> torch.autocast:
        return torch.autocast(a_NAD.device.type, torch.bfloat16, enabled=self.config.autocast)

    @staticmethod
    def _errors(decoded: Tensor, target: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Summed squared errors of what came from p and of what came from q."""
        flat = target.reshape(rows, decoded.shape[1])
        return ((decoded[:rows] - flat) ** 2).sum(), ((decoded[rows:] - flat) ** 2).sum()

    @torch.no_grad()
    def virtual_behavior(self, a_NAD: Tensor) -> Tensor:
        """Eq. 8: D2(E1(h_a)) as (N, L, D), every position valid. No gradient, dropout off whatever the tower's mode."""
        with self._precision(a_NAD):
            v_decoded = self.behavior_decoder(self.attribute_encoder(self.attribute_attention(a_NAD), False), False)
        return v_decoded.to(a_NAD.dtype).view(-1, self.shape.length, self.shape.dim)
