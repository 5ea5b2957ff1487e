"""Layers that the towers share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of every LeakyReLU (the authors' code; the paper gives none)."""


def log_odds(probability: float, clearance: float = 1e-4) -> float:
    """log(p / (1 - p)), with p kept `clearance` away from 0 and 1."""
    p = min(max(probability, clearance), 1 - clearance)
    return math.log(p / (1 - p))


class Dense(nn.Linear):
    """A linear layer with Xavier weights and zero bias (Algorithm 1, line 1)."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation (B, N) -> (B, N) that takes fewer than two rows too.

    A single row has no variance: in training such a batch is normalised with the running statistics and leaves them as
    they are.
    """

    def forward(self, x_BN: Tensor) -> Tensor:
        if self.training and x_BN.shape[0] < 2:
            return F.batch_norm(x_BN, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x_BN)
