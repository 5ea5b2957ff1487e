"""The embedded fields of a batch as one vector a row.

B rows, A, C, T, L, F, D as in inputs.py, Z = (1 + A + C + T) D + F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mail_core.models.inputs import InputShape, TowerInputs

POOLINGS = ("sum", "mean")
"""Over the valid positions of the behaviour; `sum` is the paper's (Eq. 11)."""


def pool_behavior(inputs: TowerInputs, pooling: str) -> Tensor:
    """Behaviour as one vector a row (B, D), 0 for a row without any; `pooling` is one of POOLINGS.

    A position counts by its weight: a virtual token stands for several behaviours.
    """
    weight_BL = inputs.mask_BL * inputs.weight_L
    z_v_BD = torch.bmm(weight_BL.unsqueeze(1), inputs.v_BLD).squeeze(1)
    return z_v_BD if pooling == "sum" else z_v_BD / weight_BL.sum(1, keepdim=True).clamp(min=1)


def pool_groups(inputs: TowerInputs, pooling: str) -> Tensor:
    """Eq. 11: z = [z_v, z_a, z_c, z_t, dense] (B, 4 D + F), a sum a group, the behaviour's by `pooling`."""
    return torch.cat([pool_behavior(inputs, pooling), inputs.a_BAD.sum(1), inputs.c_BCD.sum(1), inputs.t_BTD.sum(1),
                      inputs.dense_BF], 1)


def side_by_side(z_v_BD: Tensor, inputs: TowerInputs) -> Tensor:
    """Every field beside the others, (B, Z): the behaviour as one vector, attributes, context, target, dense."""
    return torch.cat([z_v_BD, inputs.a_BAD.flatten(1), inputs.c_BCD.flatten(1), inputs.t_BTD.flatten(1),
                      inputs.dense_BF], 1)


def side_by_side_width(shape: InputShape) -> int:
    """Z of `side_by_side`."""
    return (1 + shape.attributes + shape.contexts + shape.targets) * shape.dim + shape.dense
