"""The zero-shot tower: user attributes -> virtual behaviour (Eqs. 1-8, 15, 16).

N rows, A user attributes, L behaviour length, D embedding size, X either of A and L, H size of the hidden space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.alignment import ALIGNMENTS, KERNELS, alignment_loss
from mail_core.models.config import check_choice, check_flag, check_positive, check_share, check_size, check_sizes
from mail_core.models.gate import Gate
from mail_core.models.inputs import InputShape
from mail_core.models.layers import SLOPE, Dense


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a zero-shot tower learns, and how virtual behaviour enters the ranking tower."""

    attributes: bool = True
    """L_a (Eq. 3). Without it there is no autoencoder: a linear map from attributes to behaviour learns through the
    ranking loss."""
    behavior: bool = True
    """L_v (Eq. 4). Without it neither E2 nor the attention over behaviour is built."""
    align: bool = True
    """L_d (Eq. 5)."""
    token: bool = False
    """False: new rows get L virtual positions (Eq. 8). True: D2 predicts the mean of a user's behaviour, which every
    row gets as one more position."""
    identity: bool = True
    """Whether the user's ID is among the attributes that are read and reconstructed, as in the paper. A token that read
    it would know old users by heart, and the ranking tower would trust it more than a new user's deserves."""
    gate: str | None = None
    """Of the token: `slope` (see `Gate`), or `closed`: the average old user's behaviour for everybody."""


VARIANTS: Mapping[str, Variant] = {
    "none": Variant(attributes=False, behavior=False, align=False),
    "single": Variant(behavior=False, align=False),
    "dual": Variant(align=False),
    "base": Variant(),
    "mean_token": Variant(token=True, identity=False),
    "gated": Variant(token=True, identity=False, gate="slope"),
    "mean": Variant(token=True, identity=False, gate="closed"),
}
"""Table 3's four (`base` is the paper's MAIL), and ours with a token; `mean` is a control."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Sizes and loss of the zero-shot tower; the defaults are the paper's."""

    variant: str = "base"
    """A name of VARIANTS."""
    hidden: tuple[int, int] = (1024, 512)
    """Layers of an encoder before its output; a decoder has them the other way round."""
    latent: int = 512
    """H: size of p = E1(h_a) and q = E2(h_v)."""
    attention: int = 128
    """Width of the attention (Eq. 2)."""
    dropout: float = 0.5
    """Before the first two dense layers of every encoder and decoder."""
    alignment: str = "mmd"
    """L_d, where the variant aligns: `mmd` (Eq. 5), or `mse` between p and q as in the authors' code."""
    kernel: str = "fixed"
    """Of the MMD: `fixed` bandwidth, `median` of the batch's distances, or `multi`: five bandwidths round it."""
    bandwidth: float = 1.0
    """Sigma of the `fixed` kernel (Eq. 6)."""
    joint: bool = False
    """Whether the ranking loss reaches the zero-shot tower through virtual behaviour (Eq. 14 without trick 1); the
    variant `none` always learns so."""
    token_weight: float = 4.0
    """A token counts as so many behaviours where the ranking tower pools them."""
    autocast: bool = False
    """Whether the layers compute in bfloat16; parameters, losses and virtual behaviour keep the parameters' type."""

    def __post_init__(self) -> None:
        check_choice(self.variant, "zero_shot.variant", list(VARIANTS))
        check_sizes(self.hidden, "zero_shot.hidden", 2)
        check_size(self.latent, "zero_shot.latent")
        check_size(self.attention, "zero_shot.attention")
        check_share(self.dropout, "zero_shot.dropout")
        check_choice(self.alignment, "zero_shot.alignment", ALIGNMENTS)
        check_flag(self.joint, "zero_shot.joint")
        check_positive(self.token_weight, "zero_shot.token_weight")
        check_flag(self.autocast, "zero_shot.autocast")
        check_choice(self.kernel, "zero_shot.kernel", KERNELS)
        check_positive(self.bandwidth, "zero_shot.bandwidth")

    @property
    def parts(self) -> Variant:
        """The variant."""
        return VARIANTS[self.variant]

    @property
    def learns_by_ranking(self) -> bool:
        """Whether virtual behaviour carries the ranking loss's gradient back."""
        return self.joint or not self.parts.attributes


@dataclass(frozen=True, kw_only=True)
class ZeroShotLosses:
    """The terms of L_zst (Eq. 7); scalars with a graph, also for no rows."""

    attribute: Tensor
    """L_a (Eq. 3), summed over rows: divide by the number of rows (of all ranks)."""
    behavior: Tensor
    """L_v (Eq. 4), summed over rows."""
    alignment: Tensor
    """L_d (Eq. 5), a mean over pairs: take it as it is. 0 where the variant does not align."""
    virtual_MKD: Tensor
    """Virtual behaviour of the M rows to complete, with a graph."""


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


class ZeroShotTower(nn.Module):
    """Reconstruction across modes on old rows (L_zst), virtual behaviour for others.

    K positions are virtual: L for new rows, or 1, the token, for all.
    """

    def __init__(self, config: ZeroShotConfig, shape: InputShape):
        super().__init__()
        self.config, self.shape = config, shape
        parts, behavior = config.parts, (1 if config.parts.token else shape.length) * shape.dim
        assert parts.attributes, "the variant without an autoencoder is a LinearMap"
        self.read = list(range(shape.attributes)) if parts.identity else shape.without_user_id
        if not self.read:
            raise InputError(f"zero_shot.variant: {config.variant!r} (it needs a user attribute beside the user's ID)")
        self.attribute_attention = AttentionPooling(shape.dim, config.attention)
        self.attribute_encoder = ResidualEncoder(shape.dim, config)  # E1
        # DDP refuses parameters that no loss uses: what a variant leaves out is not built.
        self.behavior_attention = AttentionPooling(shape.dim, config.attention) if parts.behavior else None
        self.behavior_encoder = ResidualEncoder(shape.dim, config) if parts.behavior else None  # E2
        self.attribute_decoder = ResidualDecoder(len(self.read) * shape.dim, config)  # D1
        self.behavior_decoder = ResidualDecoder(behavior, config)  # D2
        self.gate = Gate(shape.dim, parts.gate == "closed") if parts.gate else None

    def reset_parameters(self) -> None:
        for block in self.children():
            block.reset_parameters()  # type: ignore[operator]

    def forward(self, a_NAD: Tensor, v_NLD: Tensor, mask_NL: Tensor, a_MAD: Tensor | None = None) -> ZeroShotLosses:
        """Losses of N old rows (Eqs. 3-6), N = 0 included; their inputs and targets are detached.

        Args:
            a_MAD: rows whose virtual behaviour is wanted with a graph (`joint`); None: no rows.
        """
        a_NAD, v_NLD = self._read(a_NAD).detach(), v_NLD.detach()
        virtual_MKD = v_NLD.new_empty(0, 1, self.shape.dim) if a_MAD is None else self._virtual(a_MAD)
        target_NZ = (mean_behavior(v_NLD, mask_NL) if self.config.parts.token
                     else (v_NLD * mask_NL.unsqueeze(2)).flatten(1))
        with self._precision(a_NAD):
            p_NH = self.attribute_encoder(self.attribute_attention(a_NAD), self.training)
            q_NH = self._encoded_behavior(v_NLD, mask_NL)
            hidden = p_NH if q_NH is None else torch.cat([p_NH, q_NH])  # the decoders are shared: both pass at once
            decoded = self.attribute_decoder(hidden, self.training), self.behavior_decoder(hidden, self.training)
        errors = [_errors(x.to(a_NAD.dtype), target, len(a_NAD))
                  for x, target in zip(decoded, (a_NAD.flatten(1), target_NZ))]
        alignment = 0.0 * p_NH.sum()
        if q_NH is not None and self.config.parts.align:
            config, kind = self.config, a_NAD.dtype
            alignment = alignment_loss(p_NH.to(kind), q_NH.to(kind), config.alignment, config.kernel, config.bandwidth)
        return ZeroShotLosses(attribute=errors[0][0] + errors[1][0], behavior=errors[0][1] + errors[1][1],
                              alignment=alignment, virtual_MKD=virtual_MKD)

    @torch.no_grad()
    def virtual_behavior(self, a_NAD: Tensor) -> Tensor:
        """Eq. 8: D2(E1(h_a)) as (N, K, D), every position valid. No gradient, dropout off whatever the tower's mode."""
        return self._virtual(a_NAD)

    @torch.no_grad()
    def gate_sums(self, a_NAD: Tensor, v_NLD: Tensor, mask_NL: Tensor, held_out_N: Tensor) -> Tensor:
        """`Gate.sums` of old rows, dropout off."""
        return Gate.sums(mean_behavior(v_NLD, mask_NL), self._decoded(a_NAD).squeeze(1), held_out_N)

    def hidden_attributes(self, a_NAD: Tensor) -> Tensor:
        """h_a (N, D), Eqs. 1 and 2, of the attributes that the variant reads."""
        return self.attribute_attention(self._read(a_NAD))

    def _read(self, a_NAD: Tensor) -> Tensor:
        return a_NAD if len(self.read) == self.shape.attributes else a_NAD[:, self.read]

    def _virtual(self, a_NAD: Tensor) -> Tensor:
        decoded_NKD = self._decoded(a_NAD)
        return decoded_NKD if self.gate is None else self.gate(decoded_NKD)

    def _decoded(self, a_NAD: Tensor) -> Tensor:
        with self._precision(a_NAD):
            decoded = self.behavior_decoder(self.attribute_encoder(self.hidden_attributes(a_NAD), False), False)
        return decoded.to(a_NAD.dtype).unflatten(1, (-1, self.shape.dim))

    def _encoded_behavior(self, v_NLD: Tensor, mask_NL: Tensor) -> Tensor | None:
        if self.behavior_attention is None or self.behavior_encoder is None:
            return None
        return self.behavior_encoder(self.behavior_attention(v_NLD, mask_NL), self.training)

    def _precision(self, a_NAD: Tensor) -> torch.autocast:
        return torch.autocast(a_NAD.device.type, torch.bfloat16, enabled=self.config.autocast)


class LinearMap(nn.Module):
    """The variant `none`: attributes -> L virtual positions by one linear map, which only the ranking loss teaches."""

    gate = None

    def __init__(self, config: ZeroShotConfig, shape: InputShape):
        super().__init__()
        self.config, self.shape = config, shape
        self.map = Dense(shape.attributes * shape.dim, shape.length * shape.dim)

    def reset_parameters(self) -> None:
        self.map.reset_parameters()

    def forward(self, a_NAD: Tensor, v_NLD: Tensor, mask_NL: Tensor, a_MAD: Tensor) -> ZeroShotLosses:
        """No losses; virtual behaviour of a_MAD with a graph."""
        virtual_MKD = self._virtual(a_MAD)
        none = virtual_MKD.new_zeros(())
        return ZeroShotLosses(attribute=none, behavior=none, alignment=none, virtual_MKD=virtual_MKD)

    @torch.no_grad()
    def virtual_behavior(self, a_NAD: Tensor) -> Tensor:
        """Virtual behaviour (N, L, D), every position valid, without gradient."""
        return self._virtual(a_NAD)

    def _virtual(self, a_NAD: Tensor) -> Tensor:
        return self.map(a_NAD.flatten(1)).view(-1, self.shape.length, self.shape.dim)


def zero_shot_tower(config: ZeroShotConfig, shape: InputShape) -> ZeroShotTower | LinearMap:
    """The fresh module of the configuration's variant."""
    return (ZeroShotTower if config.parts.attributes else LinearMap)(config, shape)


def mean_behavior(v_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    """Mean (N, D) over the valid positions; 0 for a row without any."""
    total_ND = torch.bmm(mask_NL.to(v_NLD.dtype).unsqueeze(1), v_NLD).squeeze(1)
    return total_ND / mask_NL.sum(1, keepdim=True).clamp(min=1)


def _errors(decoded: Tensor, target_NZ: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Summed squared errors of what came from p, and of what came from q (0 where nothing did)."""
    from_p, from_q = decoded[:rows], decoded[rows:]
    return ((from_p - target_NZ) ** 2).sum(), ((from_q - target_NZ) ** 2).sum() if len(from_q) else from_p.sum() * 0
