"""The DNN over fields side by side against a plain NumPy computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tower_inputs import array, behaviors, blocks, hidden_layers, inputs_of, linear, shape, side_by_side, stir

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape
from mail_core.models.ranking.dnn_concat import DnnConcat, DnnConcatConfig


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_logits_equal_the_plain_computation(pooling, training):
    torch.manual_seed(6)
    tower, inputs = DnnConcat(DnnConcatConfig(pooling=pooling, hidden=(11, 8), dropout=0.0), shape()), \
        inputs_of([2, 0, 5, 1])
    stir(tower)
    x = side_by_side(behaviors(inputs, pooling), inputs)
    expected = linear(tower.output, hidden_layers(x, blocks(tower), training))[:, 0]
    np.testing.assert_allclose(array(tower.train(training)(inputs).logits_B), expected, atol=1e-4)


def test_sizes_are_base_dnns_by_default():
    tower = DnnConcat(DnnConcatConfig(), InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32))
    layers = [dense for dense, _ in blocks(tower)] + [tower.output]
    assert [tuple(layer.weight.shape) for layer in layers] == [(512, 19 * 32 + 1), (256, 512), (1, 256)]


@pytest.mark.parametrize("wrong", [{"hidden": (4,)}, {"hidden": (4, 0)}, {"dropout": -0.1}, {"pooling": "max"}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DnnConcatConfig(**wrong)
