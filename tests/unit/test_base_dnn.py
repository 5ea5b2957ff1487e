"""Equations 11 and 12 against independent NumPy; small batches of the ranking tower and its batch normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape, TowerInputs, no_virtual
from mail_core.models.layers import BatchNorm
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig, pool

A, LENGTH, C, T, D = 3, 5, 2, 4, 4


def shape(dense: int = 2) -> InputShape:
    return InputShape(attributes=A, length=LENGTH, contexts=C, targets=T, dense=dense, dim=D)


def inputs_of(lengths: list[int], dense: int = 2) -> TowerInputs:
    torch.manual_seed(5)
    rows = len(lengths)
    mask_BL = torch.arange(LENGTH) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return TowerInputs(a_BAD=torch.randn(rows, A, D), v_BLD=torch.randn(rows, LENGTH, D), mask_BL=mask_BL,
                       c_BCD=torch.randn(rows, C, D), t_BTD=torch.randn(rows, T, D), dense_BF=torch.randn(rows, dense),
                       is_virtual_B=no_virtual(mask_BL))


def tower_of(dense: int = 2, dropout: float = 0.5) -> BaseDnn:
    """A tower whose biases and running statistics are not the initial ones."""
    torch.manual_seed(6)
    tower = BaseDnn(BaseDnnConfig(hidden=(11, 8), dropout=dropout), shape(dense))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for norm in (tower.norm1, tower.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return tower


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().numpy().astype(np.float64)


def block(x: np.ndarray, dense: nn.Linear, norm: BatchNorm, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    x = x @ array(dense.weight).T + array(dense.bias)
    x = (x - mean) / np.sqrt(var + norm.eps) * array(norm.weight) + array(norm.bias)
    return np.where(x > 0, x, 0.2 * x)


def pooled(x: TowerInputs, lengths: list[int]) -> np.ndarray:
    """Eq. 11, row by row."""
    return np.stack([np.concatenate([array(x.v_BLD[i, :n]).sum(0), array(x.a_BAD[i]).sum(0), array(x.c_BCD[i]).sum(0),
                                     array(x.t_BTD[i]).sum(0), array(x.dense_BF[i])]) for i, n in enumerate(lengths)])


def test_pooling_equals_equation_11_over_valid_positions():
    lengths = [2, 0, 5]
    np.testing.assert_allclose(array(pool(inputs_of(lengths))), pooled(inputs_of(lengths), lengths), atol=1e-5)


def test_evaluation_equals_equation_12_with_running_statistics():
    lengths, tower = [2, 0, 5, 1], tower_of().eval()
    h = pooled(inputs_of(lengths), lengths)
    for dense, norm in ((tower.dense1, tower.norm1), (tower.dense2, tower.norm2)):
        h = block(h, dense, norm, array(norm.running_mean), array(norm.running_var))
    expected = h @ array(tower.output.weight)[0] + array(tower.output.bias)
    output = tower(inputs_of(lengths))
    np.testing.assert_allclose(array(output.logits_B), expected, atol=1e-5)
    assert output.logits_B.shape == (4,) and not output.auxiliary


def test_training_equals_equation_12_with_the_batchs_statistics():
    lengths, tower = [2, 0, 5, 1], tower_of(dropout=0.0).train()
    h = pooled(inputs_of(lengths), lengths)
    for dense, norm in ((tower.dense1, tower.norm1), (tower.dense2, tower.norm2)):
        x = h @ array(dense.weight).T + array(dense.bias)
        h = block(h, dense, norm, x.mean(0), x.var(0))
    expected = h @ array(tower.output.weight)[0] + array(tower.output.bias)
    np.testing.assert_allclose(array(tower(inputs_of(lengths)).logits_B), expected, atol=1e-4)


def test_dropout_is_on_in_training_only():
    tower, inputs = tower_of(), inputs_of([2, 3, 1, 5])
    assert not torch.equal(tower.train()(inputs).logits_B, tower(inputs).logits_B)
    assert torch.equal(tower.eval()(inputs).logits_B, tower(inputs).logits_B)


def test_sizes_are_the_papers_by_default():
    tower = BaseDnn(BaseDnnConfig(), InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32))
    layers = (tower.dense1, tower.dense2, tower.output)
    assert [tuple(layer.weight.shape) for layer in layers] == [(512, 129), (256, 512), (1, 256)]


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("lengths", [[], [3], [0], [0, 0], [4, 0]])
def test_small_batches_and_no_dense_feature_step(dense, lengths):
    tower = tower_of(dense).train()
    logits_B = tower(inputs_of(lengths, dense)).logits_B
    logits_B.sum().backward()
    assert logits_B.shape == (len(lengths),) and torch.isfinite(logits_B).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())


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


def test_tower_builds_on_meta_and_reset_makes_it_work():
    with torch.device("meta"):
        tower = BaseDnn(BaseDnnConfig(hidden=(11, 8)), shape())
    tower.to_empty(device="cpu")
    for value in (*tower.parameters(), *tower.buffers()):
        value.data.fill_(-1)
    tower.reset_parameters()
    assert torch.isfinite(tower.eval()(inputs_of([1, 2])).logits_B).all()
    assert tower.norm1.running_var.tolist() == [1.0] * 11 and not tower.dense1.bias.any()


@pytest.mark.parametrize("wrong", [{"hidden": (4,)}, {"hidden": (4, 0)}, {"dropout": -0.1}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        BaseDnnConfig(**wrong)


def test_a_prior_makes_the_fresh_tower_start_at_the_constant_click_rate():
    tower = tower_of().eval()
    nn.init.zeros_(tower.output.weight)
    tower.set_prior(0.05)
    torch.testing.assert_close(torch.sigmoid(tower(inputs_of([0, 2, 5])).logits_B), torch.full((3,), 0.05))
    tower.set_prior(0.0)
    assert torch.isfinite(tower.output.bias).all()
