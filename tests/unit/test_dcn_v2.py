"""DCN-V2: the cross layer by hand, the whole tower against a plain NumPy computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tower_inputs import array, behaviors, blocks, hidden_layers, inputs_of, linear, shape, side_by_side, stir

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape
from mail_core.models.ranking.dcn_v2 import CrossLayer, DcnV2, DcnV2Config


def test_a_cross_layer_equals_hand_numbers():
    layer = CrossLayer(2, None)
    with torch.no_grad():
        layer.outer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.outer.bias.copy_(torch.tensor([0.5, -1.0]))
    first_BZ, x_BZ = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 3.0]])
    # W x + b = [1 + 6 + 0.5, 3 + 12 - 1] = [7.5, 14]; times x_0 = [15, -14]; plus x = [16, -11]
    assert layer(first_BZ, x_BZ).tolist() == [[16.0, -11.0]]


def test_a_low_rank_cross_layer_equals_hand_numbers():
    layer = CrossLayer(2, 1)
    with torch.no_grad():
        layer.inner.weight.copy_(torch.tensor([[1.0, -2.0]]))  # V^T
        layer.outer.weight.copy_(torch.tensor([[3.0], [1.0]]))  # U
        layer.outer.bias.copy_(torch.tensor([0.5, -1.0]))
    # V^T x = 1 - 6 = -5; U (-5) + b = [-14.5, -6]; times x_0 = [-29, 6]; plus x = [-28, 9]
    assert layer(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 3.0]])).tolist() == [[-28.0, 9.0]]


def logits(tower: DcnV2, x_0: np.ndarray, training: bool) -> np.ndarray:
    x = x_0
    for layer in tower.cross:
        w = array(layer.outer.weight) if layer.inner is None else array(layer.outer.weight) @ array(layer.inner.weight)
        x = x_0 * (x @ w.T + array(layer.outer.bias)) + x
    if tower.config.structure == "stacked":
        return linear(tower.output, hidden_layers(x, blocks(tower), training))[:, 0]
    return linear(tower.output, np.concatenate([x, hidden_layers(x_0, blocks(tower), training)], 1))[:, 0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("structure, pooling", [("parallel", "sum"), ("parallel", "mean"), ("stacked", "sum")])
def test_logits_equal_the_plain_computation(structure, pooling, rank, training):
    torch.manual_seed(6)
    config = DcnV2Config(structure=structure, pooling=pooling, rank=rank, cross_layers=2, hidden=(11, 8), dropout=0.0)
    tower, inputs = DcnV2(config, shape()), inputs_of([2, 0, 5, 1])
    stir(tower)
    expected = logits(tower, side_by_side(behaviors(inputs, pooling), inputs), training)
    found = array(tower.train(training)(inputs).logits_B)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("structure, last", [("parallel", 256 + 609), ("stacked", 256)])
def test_sizes_follow_structure_and_rank(structure, last):
    wide = InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32)
    tower = DcnV2(DcnV2Config(structure=structure, rank=16, cross_layers=2), wide)
    assert [tuple(p.shape) for p in tower.cross.parameters()] == [(16, 609), (609, 16), (609,)] * 2
    assert [tuple(dense.weight.shape) for dense, _ in blocks(tower)] == [(512, 609), (256, 512)]
    assert tuple(tower.output.weight.shape) == (1, last)


@pytest.mark.parametrize("wrong", [{"hidden": (4,)}, {"dropout": -0.1}, {"pooling": "max"}, {"structure": "mixed"},
                                   {"cross_layers": 0}, {"rank": 0}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DcnV2Config(**wrong)
