"""DMR (Lyu et al., AAAI 2020): two networks measure how relevant the target is to the user, beside the user's interest.

Actions enter by v, whose item part they multiply. Where the paper has Dice or PReLU there is LeakyReLU.

B rows, A, C, T, L, J, F, D as in models/inputs.py, P real positions of the batch, H width of an attention, N rows with
two behaviours or more, Z = (1 + A + C + T) D + F + D + 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.config import check_positive, check_share, check_size, check_sizes
from mail_core.models.fields import side_by_side, side_by_side_width
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.layers import SLOPE, Dense
from mail_core.models.mlp import HiddenLayers, Logit
from mail_core.models.packed import Packing

MATCH = "match"
"""Name of the auxiliary loss."""


@dataclass(frozen=True, kw_only=True)
class DmrConfig:
    """Sizes of DMR and the weight of its auxiliary loss; the defaults are its authors'."""

    attention: int = 64
    """H: width of both attentions."""
    hidden: tuple[int, int, int] = (512, 256, 128)
    """Units of the hidden layers."""
    dropout: float = 0.5
    """Before each hidden layer."""
    match_weight: float = 0.1
    """Of the match loss: the newest behaviour predicted from the ones before it."""

    def __post_init__(self) -> None:
        check_size(self.attention, "tower_config.attention")
        check_sizes(self.hidden, "tower_config.hidden", 3)
        check_share(self.dropout, "tower_config.dropout")
        check_positive(self.match_weight, "tower_config.match_weight")


class PositionAttention(nn.Module):
    """score_l = z^T tanh(W_p p_l + W_v v_l [+ W_t t] + b), weights by softmax over a row's valid positions."""

    def __init__(self, shape: InputShape, width: int, by_target: bool):
        super().__init__()
        self.position_LD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape.length, shape.dim)))
        self.of_position, self.of_behavior = Dense(shape.dim, width), Dense(shape.dim, width, bias=False)
        self.of_target = Dense(shape.dim, width, bias=False) if by_target else None
        self.score = Dense(width, 1, bias=False)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.position_LD)
        for layer in (self.of_position, self.of_behavior, self.of_target, self.score):
            if layer is not None:
                layer.reset_parameters()

    def forward(self, v_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:
        """Raw scores (B, L), 0 at padding."""
        packing = Packing.of(mask_BL)
        column_P = packing.position_P - packing.row_P * mask_BL.shape[1]
        h_PH = self.of_behavior(packing.pack(v_BLD)) + self.of_position(self.position_LD)[column_P]
        if self.of_target is not None and target_BD is not None:
            h_PH = h_PH + packing.spread(self.of_target(target_BD))
        score_P = self.score(torch.tanh(h_PH)).squeeze(1)
        return torch.zeros(mask_BL.numel(), dtype=score_P.dtype, device=score_P.device).index_put(
            (packing.position_P,), score_P).view(mask_BL.shape)


def attend(score_BL: Tensor, weight_L: Tensor, v_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Sum (B, D) of the valid positions by softmax of their scores, each counted by its weight; 0 without any."""
    lowest = torch.finfo(score_BL.dtype).min
    alpha_BL = (score_BL + weight_L.log()).masked_fill(~mask_BL, lowest).softmax(1) * mask_BL
    return torch.bmm(alpha_BL.unsqueeze(1), v_BLD).squeeze(1)


class Dmr(nn.Module):
    """Item-to-item and user-to-item networks, their relevances beside all fields, hidden layers, one logit.

    The target's output embedding is a linear map of its item part, so that the tower owns no table.
    """

    config_type = DmrConfig

    def __init__(self, config: DmrConfig, shape: InputShape):
        super().__init__()
        if not shape.matched:
            raise InputError("tower dmr: no target feature shares a vocabulary with behaviour")
        self.config, self.matched = config, list(shape.matched)
        self.item_to_item = PositionAttention(shape, config.attention, by_target=True)
        self.user_to_item = PositionAttention(shape, config.attention, by_target=False)
        self.user, self.item = Dense(shape.dim, shape.dim), Dense(shape.dim, shape.dim)
        self.hidden = HiddenLayers(side_by_side_width(shape) + shape.dim + 2, config.hidden, config.dropout)
        self.output = Logit(config.hidden[-1])

    def reset_parameters(self) -> None:
        for block in self.children():
            block.reset_parameters()  # type: ignore[operator]

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,) and, where the inputs name real behaviour's newest items, the match loss."""
        v_BLD, mask_BL, weight_L = inputs.v_BLD, inputs.mask_BL, inputs.weight_L
        target_BD = inputs.t_BTD[:, self.matched].sum(1)
        item_score_BL = self.item_to_item(v_BLD, mask_BL, target_BD)
        interest_BD = attend(item_score_BL, weight_L, v_BLD, mask_BL)
        user_score_BL = self.user_to_item(v_BLD, mask_BL)
        user_BD = self._user(user_score_BL, weight_L, v_BLD, mask_BL)
        relevances_B2 = torch.stack([(item_score_BL * mask_BL * weight_L).sum(1),
                                     (user_BD * self.item(target_BD)).sum(1)], 1)
        h_BZ = torch.cat([side_by_side(interest_BD, inputs), user_BD, relevances_B2], 1)
        return RankingOutput(logits_B=self.output(self.hidden(h_BZ)),
                             auxiliary=self._match_loss(user_score_BL, inputs))

    def _user(self, score_BL: Tensor, weight_L: Tensor, v_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        return F.leaky_relu(self.user(attend(score_BL, weight_L, v_BLD, mask_BL)), SLOPE)

    def _match_loss(self, score_BL: Tensor, inputs: TowerInputs) -> dict[str, Tensor]:
        """Sampled softmax: a row's newest item by its behaviour before that, against the other rows' newest items.

        Each item's logit is corrected by the log of its share among the samples; other rows with the same item are no
        negatives. A virtual token is left out.
        """
        if inputs.newest_BD is None or inputs.newest_BJ is None:
            return {}
        before_BL = inputs.mask_BL & ~inputs.is_virtual_B.unsqueeze(1)
        before_BL[:, 0] = False
        if inputs.token_weight is not None:
            before_BL[:, -1] = False
        rows_N = before_BL.any(1).nonzero().squeeze(1)
        if len(rows_N) < 2:
            return {}
        user_ND = self._user(score_BL[rows_N], inputs.weight_L, inputs.v_BLD[rows_N], before_BL[rows_N])
        item_ND, codes_NJ = self.item(inputs.newest_BD[rows_N]), inputs.newest_BJ[rows_N]
        same_NN = (codes_NJ.unsqueeze(0) == codes_NJ.unsqueeze(1)).all(2)
        logits_NN = user_ND @ item_ND.T - same_NN.float().mean(0).log()
        accidental_NN = same_NN & ~torch.eye(len(rows_N), dtype=torch.bool, device=same_NN.device)
        logits_NN = logits_NN.masked_fill(accidental_NN, torch.finfo(logits_NN.dtype).min)
        labels_N = torch.arange(len(rows_N), device=logits_NN.device)
        return {MATCH: self.config.match_weight * F.cross_entropy(logits_NN, labels_N, reduction="sum")}
