"""DIN (Zhou et al., KDD 2018): the target item attends to the behaviours; their weighted sum is the user's interest.

B rows, A, C, T, L, F, D as in models/inputs.py, P real positions of the batch, H units of an attention layer,
Z = (1 + A + C + T) D + F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.models.config import check_flag, check_share, check_sizes
from mail_core.models.fields import side_by_side, side_by_side_width
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.layers import SLOPE, Dense
from mail_core.models.mlp import HiddenLayers, Logit
from mail_core.models.packed import Packing


@dataclass(frozen=True, kw_only=True)
class DinConfig:
    """Sizes of DIN: its authors' attention, BaseDNN's hidden layers."""

    attention: tuple[int, int] = (80, 40)
    """Units of the two hidden layers of the attention."""
    hidden: tuple[int, int] = (512, 256)
    """Units of the two hidden layers over all features."""
    dropout: float = 0.5
    """Before each hidden layer over all features."""
    autocast: bool = False
    """Whether the attention's layers compute in bfloat16; its weights and the interest keep the parameters' type."""

    def __post_init__(self) -> None:
        check_sizes(self.attention, "tower_config.attention", 2)
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")
        check_flag(self.autocast, "tower_config.autocast")


class Score(Dense):
    """Gives every behaviour a weight near 1 at the start, as in BaseDNN: from weights near 0 neither they nor the
    behaviours' embeddings would get much of a gradient."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.bias)


class TargetAttention(nn.Module):
    """interest = sum over a row's real positions of w k, with w = MLP([q, k, q - k, q * k]) and no softmax (DIN, 4.3).

    LeakyReLU where DIN has Dice. The first layer is split: W [q, k, q - k, q * k] = (W1 + W3) q + (W2 - W3) k
    + W4 (q * k), so that q's share is computed once a row, and the rest once a real position.
    """

    def __init__(self, dim: int, sizes: tuple[int, int], autocast: bool = False):
        super().__init__()
        self.autocast = autocast
        self.first, self.second, self.score = Dense(4 * dim, sizes[0]), Dense(sizes[0], sizes[1]), Score(sizes[1], 1)

    def reset_parameters(self) -> None:
        for layer in (self.first, self.second, self.score):
            layer.reset_parameters()

    def forward(self, q_BD: Tensor, inputs: TowerInputs) -> Tensor:
        """Interest (B, D); 0 for a row without a valid position. A position counts by its weight."""
        packing = Packing.of(inputs.mask_BL)
        k_PD = packing.pack(inputs.v_BLD)
        w_P1 = self._weights(packing, q_BD, k_PD).to(k_PD.dtype)
        if inputs.token_weight is not None:
            w_P1 = w_P1 * inputs.weight_L[packing.position_P % len(inputs.weight_L)].unsqueeze(1)
        return packing.sum(w_P1 * k_PD)

    def _weights(self, packing: Packing, q_BD: Tensor, k_PD: Tensor) -> Tensor:
        """w (P, 1)."""
        of_q, of_k, of_difference, of_product = self.first.weight.chunk(4, dim=1)
        kind = torch.bfloat16 if self.autocast else k_PD.dtype
        q_PH = packing.spread(F.linear(q_BD, of_q + of_difference, self.first.bias).to(kind))
        k_weight = torch.cat([of_k - of_difference, of_product], 1).to(kind)
        k_PD, q_PD = k_PD.to(kind), packing.spread(q_BD.to(kind))
        with torch.autocast(k_PD.device.type, torch.bfloat16, enabled=self.autocast):
            # In place and in one call: the time at full length goes into passes over (P, H).
            h_PH = F.leaky_relu(torch.addmm(q_PH, torch.cat([k_PD, q_PD * k_PD], 1), k_weight.T), SLOPE, inplace=True)
            return self.score(F.leaky_relu(self.second(h_PH), SLOPE, inplace=True))


class Din(nn.Module):
    """Target attention, then two blocks LeakyReLU(BN(Dense(Dropout(.)))) over all features side by side, one logit.

    The query is a learned linear map of the target item's T embeddings: a tower sees no column names, so it learns
    which of them share a vocabulary with the behaviours.
    """

    config_type = DinConfig

    def __init__(self, config: DinConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.query = Dense(shape.targets * shape.dim, shape.dim, bias=False)
        self.attention = TargetAttention(shape.dim, config.attention, config.autocast)
        self.hidden = HiddenLayers(side_by_side_width(shape), config.hidden, config.dropout)
        self.output = Logit(config.hidden[-1])

    def reset_parameters(self) -> None:
        for layer in (self.query, self.attention, self.hidden, self.output):
            layer.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,)."""
        interest_BD = self.attention(self.query(inputs.t_BTD.flatten(1)), inputs)
        return RankingOutput(logits_B=self.output(self.hidden(side_by_side(interest_BD, inputs))))
