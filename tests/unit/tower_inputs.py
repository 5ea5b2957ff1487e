"""Random embedded inputs of the ranking towers, and their shared layers in plain NumPy."""

from __future__ import annotations

from typing import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from mail_core.models.inputs import InputShape, TowerInputs, no_virtual

A, LENGTH, C, T, D = 3, 5, 2, 4, 4


def shape(dense: int = 2) -> InputShape:
    return InputShape(attributes=A, length=LENGTH, contexts=C, targets=T, dense=dense, dim=D)


def inputs_of(lengths: list[int], dense: int = 2) -> TowerInputs:
    """One row for each behaviour length; what stands in padding is as random as the rest."""
    torch.manual_seed(5)
    rows = len(lengths)
    mask_BL = torch.arange(LENGTH) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return TowerInputs(a_BAD=torch.randn(rows, A, D), v_BLD=torch.randn(rows, LENGTH, D), mask_BL=mask_BL,
                       c_BCD=torch.randn(rows, C, D), t_BTD=torch.randn(rows, T, D), dense_BF=torch.randn(rows, dense),
                       is_virtual_B=no_virtual(mask_BL))


def stir(tower: nn.Module) -> None:
    """Biases, scales and running statistics other than the initial ones."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for norm in (module for module in tower.modules() if isinstance(module, nn.BatchNorm1d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)


def array(value: Tensor) -> np.ndarray:
    return value.detach().numpy().astype(np.float64)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def hidden_layers(h: np.ndarray, pairs: Iterable[tuple[nn.Linear, nn.BatchNorm1d]],
                  training: bool = False) -> np.ndarray:
    """Eq. 12 without dropout, by the batch's statistics in training and by the running ones else."""
    for dense, norm in pairs:
        x = linear(dense, h)
        mean, var = (x.mean(0), x.var(0)) if training else (array(norm.running_mean), array(norm.running_var))
        h = leaky((x - mean) / np.sqrt(var + norm.eps) * array(norm.weight) + array(norm.bias))
    return h


def blocks(tower: nn.Module) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
    """Dense layers and norms of a tower's `hidden`."""
    return [(layer.dense, layer.norm) for layer in tower.hidden.layers]


def behaviors(x: TowerInputs, pooling: str = "sum") -> np.ndarray:
    """Pooled behaviour, row by row; a row without any has 0."""
    lengths = x.mask_BL.sum(1).tolist()
    total = np.stack([array(x.v_BLD[i, :n]).sum(0) for i, n in enumerate(lengths)])
    return total if pooling == "sum" else total / np.maximum(lengths, 1)[:, None]


def pooled(x: TowerInputs, pooling: str = "sum") -> np.ndarray:
    """Eq. 11: a sum a group."""
    groups = [array(group).sum(1) for group in (x.a_BAD, x.c_BCD, x.t_BTD)]
    return np.concatenate([behaviors(x, pooling), *groups, array(x.dense_BF)], 1)


def side_by_side(z_v: np.ndarray, x: TowerInputs) -> np.ndarray:
    """z_v, then every other field of its own."""
    return np.stack([np.concatenate([z_v[i], *array(x.a_BAD[i]), *array(x.c_BCD[i]), *array(x.t_BTD[i]),
                                     array(x.dense_BF[i])]) for i in range(len(z_v))])
