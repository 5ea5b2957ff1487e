"""Models whose tensors are allocated once, where they stay, and filled there: big tables exist on no other device."""

from __future__ import annotations

from typing import Callable, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def deferred(make: Callable[[], Model], device: torch.device | str = "cpu") -> Model:
    """`make()` with its tensors on `device`, none of which is allocated before the whole model has been laid out.

    By `torchdistx.deferred_init` where that is installed, and by torch's meta device elsewhere. Either way the initial
    values are those of the model's `reset_parameters()`, drawn in its order, which are those of `make()` called
    directly.
    """
    try:
        from torchdistx.deferred_init import deferred_init, materialize_module
    except ImportError:
        with torch.device("meta"):
            model = make()
        model.to_empty(device=device)
    else:  # its last release wants torch 1.12, so that nothing here has ever run this branch
        with torch.random.fork_rng():  # what is drawn here is drawn once more below
            model = deferred_init(make)
            materialize_module(model)
        model.to(device)
    model.reset_parameters()  # type: ignore[operator]
    return model
