"""DCN-V2 (Wang et al., WWW 2021): explicit products of features by cross layers, beside or below a DNN.

B rows, A, C, T, F, D as in models/inputs.py, Z = (1 + A + C + T) D + F, R rank of a cross layer's matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mail_core.models.config import check_choice, check_share, check_size, check_sizes
from mail_core.models.fields import POOLINGS, pool_behavior, side_by_side, side_by_side_width
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.layers import Dense
from mail_core.models.mlp import HiddenLayers, Logit

STRUCTURES = ("parallel", "stacked")


@dataclass(frozen=True, kw_only=True)
class DcnV2Config:
    """Sizes of DCN-V2; the hidden layers are BaseDNN's."""

    pooling: str = "sum"
    """Of the behaviour: `sum` as BaseDNN's, or `mean`."""
    structure: str = "parallel"
    """`parallel`: cross layers and hidden layers side by side over the input; `stacked`: hidden layers on the cross
    layers' output."""
    cross_layers: int = 3
    """Cross layers: products of up to this number of features and one more."""
    rank: int | None = None
    """R: W = U V^T of this rank; None: the full matrix."""
    hidden: tuple[int, int] = (512, 256)
    """Units of the two hidden layers."""
    dropout: float = 0.5
    """Before each hidden layer."""

    def __post_init__(self) -> None:
        check_choice(self.pooling, "tower_config.pooling", POOLINGS)
        check_choice(self.structure, "tower_config.structure", STRUCTURES)
        check_size(self.cross_layers, "tower_config.cross_layers")
        if self.rank is not None:
            check_size(self.rank, "tower_config.rank")
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l (its Eq. 1), with W = U V^T where a rank is given (its Eq. 2)."""

    def __init__(self, width: int, rank: int | None):
        super().__init__()
        self.inner = None if rank is None else Dense(width, rank, bias=False)  # V^T
        self.outer = Dense(width if rank is None else rank, width)  # W, or U; and b

    def reset_parameters(self) -> None:
        if self.inner is not None:
            self.inner.reset_parameters()
        self.outer.reset_parameters()

    def forward(self, first_BZ: Tensor, x_BZ: Tensor) -> Tensor:
        """x_{l+1} (B, Z) of x_0 and x_l."""
        return torch.addcmul(x_BZ, first_BZ, self.outer(x_BZ if self.inner is None else self.inner(x_BZ)))


class DcnV2(nn.Module):
    """All fields side by side as in dnn_concat, cross layers and hidden layers over them, one logit."""

    config_type = DcnV2Config

    def __init__(self, config: DcnV2Config, shape: InputShape):
        super().__init__()
        self.config = config
        width = side_by_side_width(shape)
        self.cross = nn.ModuleList(CrossLayer(width, config.rank) for _ in range(config.cross_layers))
        self.hidden = HiddenLayers(width, config.hidden, config.dropout)
        self.output = Logit(config.hidden[-1] + (width if config.structure == "parallel" else 0))

    def reset_parameters(self) -> None:
        for layer in (*self.cross, self.hidden, self.output):
            layer.reset_parameters()

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        self.output.set_prior(ctr)

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,)."""
        first_BZ = x_BZ = side_by_side(pool_behavior(inputs, self.config.pooling), inputs)
        for layer in self.cross:
            x_BZ = layer(first_BZ, x_BZ)
        if self.config.structure == "stacked":
            return RankingOutput(logits_B=self.output(self.hidden(x_BZ)))
        return RankingOutput(logits_B=self.output(torch.cat([x_BZ, self.hidden(first_BZ)], 1)))
