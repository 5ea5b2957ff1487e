"""The layers that end every ranking tower: hidden layers over one vector a row, and the logit.

B rows, I inputs, Z width of one vector a row.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.models.layers import SLOPE, BatchNorm, Dense, log_odds


class HiddenLayer(nn.Module):
    """LeakyReLU(BN(Dense(Dropout(.)))), (B, I) -> (B, units): one block of Eq. 12."""

    def __init__(self, inputs: int, units: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.dense, self.norm = Dense(inputs, units), BatchNorm(units)

    def reset_parameters(self) -> None:
        self.dense.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, h_BI: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.dense(F.dropout(h_BI, self.dropout, self.training))), SLOPE)


class HiddenLayers(nn.Module):
    """Hidden layers one after the other, (B, I) -> (B, units of the last). Weights: layers.0.dense.weight, ..."""

    def __init__(self, inputs: int, units: tuple[int, ...], dropout: float):
        super().__init__()
        widths = (inputs, *units)
        self.layers = nn.ModuleList(HiddenLayer(i, o, dropout) for i, o in zip(widths, widths[1:]))

    def reset_parameters(self) -> None:
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, h_BI: Tensor) -> Tensor:
        for layer in self.layers:
            h_BI = layer(h_BI)
        return h_BI


class Logit(Dense):
    """The last layer: (B, Z) -> logits (B,)."""

    def __init__(self, inputs: int):
        super().__init__(inputs, 1)

    def set_prior(self, ctr: float) -> None:
        """Let the bias be the log odds of `ctr`, which Adam would otherwise spend epochs on."""
        nn.init.constant_(self.bias, log_odds(ctr))

    def forward(self, h_BZ: Tensor) -> Tensor:
        return super().forward(h_BZ).squeeze(1)
