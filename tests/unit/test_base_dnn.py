"""Equations 11 and 12 against independent NumPy, and batch normalisation of small batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from tower_inputs import array, blocks, hidden_layers, inputs_of, linear, pooled, shape, stir

from mail_core.errors import InputError
from mail_core.models.fields import pool_groups
from mail_core.models.inputs import InputShape
from mail_core.models.layers import BatchNorm
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig


def tower_of() -> BaseDnn:
    torch.manual_seed(6)
    tower = BaseDnn(BaseDnnConfig(hidden=(11, 8), dropout=0.0), shape())
    stir(tower)
    return tower


def test_pooling_equals_equation_11_over_valid_positions():
    inputs = inputs_of([2, 0, 5])
    np.testing.assert_allclose(array(pool_groups(inputs, "sum")), pooled(inputs), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_logits_equal_equation_12_with_the_batchs_or_the_running_statistics(training):
    tower, inputs = tower_of(), inputs_of([2, 0, 5, 1])
    expected = linear(tower.output, hidden_layers(pooled(inputs), blocks(tower), training))[:, 0]
    output = tower.train(training)(inputs)
    np.testing.assert_allclose(array(output.logits_B), expected, atol=1e-4 if training else 1e-5)
    assert not output.auxiliary


def test_sizes_are_the_papers_by_default():
    tower = BaseDnn(BaseDnnConfig(), InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32))
    layers = (*(dense for dense, _ in blocks(tower)), tower.output)
    assert [tuple(layer.weight.shape) for layer in layers] == [(512, 129), (256, 512), (1, 256)]


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_uses_running_statistics_for_fewer_than_two_rows_and_keeps_them(rows):
    norm = BatchNorm(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    x_BN = torch.tensor([[3.0, 2.0, 4.0]])[:rows]
    expected = torch.tensor([[1.0, 0.0, 2.0]])[:rows]
    torch.testing.assert_close(norm.train()(x_BN), expected, rtol=0, atol=1e-4)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0] and norm.running_var.tolist() == [4.0, 1.0, 0.25]


def test_batch_norm_of_two_rows_is_that_of_torch():
    ours, theirs, x_BN = BatchNorm(3), nn.BatchNorm1d(3), torch.randn(2, 3)
    assert torch.equal(ours(x_BN), theirs(x_BN)) and torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("wrong", [{"hidden": (4,)}, {"hidden": (4, 0)}, {"dropout": -0.1}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        BaseDnnConfig(**wrong)
