"""Deferred initialisation: every model is laid out without memory, filled once, and starts as one built directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from encoded_batches import layout_of, short_schema, small_config
from test_tower_contract import CASES, METHODS, TWO_TOWERS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mail_core.models.deferred import deferred
from mail_core.models.mail import MailModel

EVERY = {**{f"{case}, {method}": replace(CASES[case], method=method) for case in CASES for method in METHODS},
         **{f"esmm of {case}": TWO_TOWERS[case] for case in TWO_TOWERS}}


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_a_model_starts_with_the_draws_of_one_built_directly(case):
    lazy, next_of_lazy = deferred(lambda: case.model(stirred=False)), torch.rand(3)
    direct, next_of_direct = case.model(stirred=False), torch.rand(3)
    found, expected = lazy.state_dict(), direct.state_dict()
    assert list(found) == list(expected) and not any(tensor.is_meta for tensor in found.values())
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(next_of_lazy, next_of_direct), "no draw more"


class Allocations(TorchDispatchMode):
    """Notes where tensors of so many elements lie, views of one memory once."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.places = elements, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.numel() == self.elements and not found.is_meta:
            self.places.add(found.untyped_storage().data_ptr())
        return found


def test_the_table_is_allocated_once():
    layout, config = layout_of(short_schema("alimama")), small_config()
    with Allocations(layout.rows * config.dim) as seen:
        model = deferred(lambda: MailModel(config, layout))
    assert seen.places == {model.tables.weight.untyped_storage().data_ptr()}
