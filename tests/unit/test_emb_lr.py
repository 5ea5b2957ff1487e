"""EmbLR against a plain NumPy computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tower_inputs import array, inputs_of, pooled, shape, stir

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape
from mail_core.models.ranking.emb_lr import EmbLr, EmbLrConfig


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_logit_is_linear_in_the_pooled_groups_and_dense_features(pooling, dense):
    torch.manual_seed(6)
    tower, inputs = EmbLr(EmbLrConfig(pooling=pooling), shape(dense)), inputs_of([2, 0, 5, 1], dense)
    stir(tower)
    expected = pooled(inputs, pooling) @ array(tower.output.weight)[0] + array(tower.output.bias)
    for mode in (True, False):
        np.testing.assert_allclose(array(tower.train(mode)(inputs).logits_B), expected, atol=1e-5)


def test_weights_are_one_linear_layer():
    tower = EmbLr(EmbLrConfig(), InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32))
    assert {n: tuple(p.shape) for n, p in tower.named_parameters()} == {"output.weight": (1, 129), "output.bias": (1,)}


def test_an_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="pooling: 'max' .expected one of sum, mean"):
        EmbLrConfig(pooling="max")
