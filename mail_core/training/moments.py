"""Adam's moments by parameter, kept as safetensors beside a version for those that start from it; scoring needs none.

Names: NAME.step, NAME.exp_avg and NAME.exp_avg_sq of a dense parameter, TABLE.steps, TABLE.m and TABLE.v of the fused
embedding table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.training.step import TrainStep

MOMENTS = "moments.safetensors"
"""Artifact of a registered version's run; a version without it can be started from as well, with empty moments."""
TABLE = "tables.weight"
TABLE_MOMENTS, STEPS = ("m", "v"), "steps"
DENSE_MOMENTS = ("exp_avg", "exp_avg_sq")


def moments_of(step: TrainStep) -> dict[str, Tensor]:
    """Of every parameter that has been stepped; not copies."""
    found = {f"{TABLE}.{key}": tensor for key, tensor in step.g_b_table.state_dict().items()}
    for name, parameter in step.model.named_parameters():
        adam = adam_of(step, parameter)
        if adam is not None:
            found.update({f"{name}.{key}": tensor for key, tensor in adam.state.get(parameter, {}).items()})
    return found


def save_moments(path: Path, moments: Mapping[str, Tensor]) -> Path:
    """Write what `moments_of` gave."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in moments.items()}, path)
    return path


def load_moments(path: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read what `save_moments` wrote of a model with these parameters, by name.

    Raises:
        InputError: no safetensors file, or one of another model.
    """
    try:
        moments = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    expected = {f"{TABLE}.{STEPS}": torch.Size()}
    for name, parameter in parameters.items():
        keys = TABLE_MOMENTS if name == TABLE else DENSE_MOMENTS
        expected |= {f"{name}.step": torch.Size(), **{f"{name}.{key}": parameter.shape for key in keys}}
    for name, tensor in moments.items():
        if expected.get(name) != tensor.shape:
            raise InputError(f"{path}: tensor {name}: shape {tuple(tensor.shape)}, the version's weights imply "
                             f"{tuple(expected[name]) if name in expected else 'none of that name'}")
    for name in (f"{TABLE}.{key}" for key in (STEPS, *TABLE_MOMENTS)):
        if name not in moments:
            raise InputError(f"{path}: no tensor {name}")
    return moments


def adam_of(step: TrainStep, parameter: nn.Parameter) -> torch.optim.Adam | None:
    """The optimiser of a dense parameter; None for the table, and for a peer of MAIL's."""
    for adam in (step.g_a, step.g_b):
        if adam is not None and any(parameter is other for other in adam.param_groups[0]["params"]):
            return adam
    return None
