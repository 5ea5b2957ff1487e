"""Equations 1-8, 15 and 16 against independent NumPy; edge cases of the zero-shot tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.alignment import mmd
from mail_core.models.inputs import InputShape
from mail_core.models.zero_shot import AttentionPooling, ResidualDecoder, ResidualEncoder, ZeroShotConfig, ZeroShotTower

A, LENGTH, D = 3, 5, 4
SHAPE = InputShape(attributes=A, length=LENGTH, contexts=1, targets=1, dense=0, dim=D)
SMALL = ZeroShotConfig(hidden=(12, 10), latent=6, attention=7, dropout=0.5)


def array(value: Tensor) -> np.ndarray:
    return value.detach().numpy().astype(np.float64)


def attention(pooling: AttentionPooling, x: np.ndarray) -> np.ndarray:
    """Eqs. 1 and 2 for one row: x (positions, D)."""
    w, b, z = array(pooling.inner.weight), array(pooling.inner.bias), array(pooling.score.weight)[0]
    e = np.array([z @ np.tanh(w @ x_i + b) for x_i in x])
    alpha = np.exp(e) / np.exp(e).sum()
    return sum(alpha_i * x_i for alpha_i, x_i in zip(alpha, x))


def dense(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return array(layer.weight) @ x + array(layer.bias)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def encoder(block: ResidualEncoder, h: np.ndarray) -> np.ndarray:
    """Eq. 15 without dropout."""
    z1 = leaky(dense(block.first, h))
    z2 = leaky(dense(block.second, np.concatenate([z1, h])))
    return leaky(dense(block.third, np.concatenate([z2, h])))


def decoder(block: ResidualDecoder, p: np.ndarray) -> np.ndarray:
    """Eq. 16 without dropout."""
    z3 = leaky(dense(block.first, p))
    z4 = leaky(dense(block.second, np.concatenate([z3, p])))
    return dense(block.third, np.concatenate([z4, p]))


def mmd_by_loops(p: np.ndarray, q: np.ndarray, sigma: float) -> float:
    """Eqs. 5 and 6."""
    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.sum((i - j) ** 2) / (2 * sigma**2)) for i in x for j in y]))
    return mean(p, p) + mean(q, q) - 2 * mean(p, q)


def perturb(module: nn.Module) -> None:
    """Biases start at 0, where a test could not see them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))


def tower_of(config: ZeroShotConfig = SMALL) -> ZeroShotTower:
    torch.manual_seed(3)
    tower = ZeroShotTower(config, SHAPE)
    perturb(tower)
    return tower


def old_rows(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    mask_NL = torch.arange(LENGTH) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return torch.randn(len(lengths), A, D), torch.randn(len(lengths), LENGTH, D) * mask_NL.unsqueeze(2), mask_NL


def test_attention_over_attributes_equals_equations_1_and_2():
    torch.manual_seed(0)
    pooling = AttentionPooling(D, 7)
    perturb(pooling)
    a_NAD = torch.randn(2, A, D)
    expected = np.stack([attention(pooling, array(a_AD)) for a_AD in a_NAD])
    np.testing.assert_allclose(array(pooling(a_NAD)), expected, atol=1e-6)


def test_attention_over_behaviour_leaves_padding_out_whatever_stands_there():
    torch.manual_seed(0)
    pooling = AttentionPooling(D, 7)
    perturb(pooling)
    v_NLD, mask_NL = torch.randn(2, LENGTH, D), torch.arange(LENGTH) < torch.tensor([[2], [5]])
    expected = np.stack([attention(pooling, array(v_NLD[0, :2])), attention(pooling, array(v_NLD[1]))])
    np.testing.assert_allclose(array(pooling(v_NLD, mask_NL)), expected, atol=1e-6)
    v_NLD[0, 2:] = 100.0
    np.testing.assert_allclose(array(pooling(v_NLD, mask_NL)), expected, atol=1e-6)


def test_attention_of_a_row_without_a_position_is_zero():
    assert not AttentionPooling(D, 7)(torch.randn(1, LENGTH, D), torch.zeros(1, LENGTH, dtype=torch.bool)).any()


def test_encoder_and_decoder_equal_equations_15_and_16():
    torch.manual_seed(0)
    e, d = ResidualEncoder(D, SMALL), ResidualDecoder(A * D, SMALL)
    perturb(e)
    perturb(d)
    h_ND, p_NH = torch.randn(3, D), torch.randn(3, SMALL.latent)
    np.testing.assert_allclose(array(e(h_ND, False)), [encoder(e, array(h)) for h in h_ND], atol=1e-5)
    np.testing.assert_allclose(array(d(p_NH, False)), [decoder(d, array(p)) for p in p_NH], atol=1e-5)


def test_layer_sizes_are_the_papers_by_default():
    e, d = ResidualEncoder(32, ZeroShotConfig()), ResidualDecoder(3200, ZeroShotConfig())
    sizes = [[tuple(layer.weight.shape) for layer in (block.first, block.second, block.third)] for block in (e, d)]
    assert sizes == [[(1024, 32), (512, 1056), (512, 544)], [(512, 512), (1024, 1024), (3200, 1536)]]


def test_dropout_falls_before_the_first_two_layers_only():
    """With dropout 0.5 an input coordinate is 0 or doubled; the third layer sees the input as it is."""
    config = ZeroShotConfig(hidden=(4, 4), latent=4, attention=1, dropout=0.5)
    block = ResidualDecoder(4, config)
    seen = {}
    for name in ("first", "second", "third"):
        getattr(block, name).register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
    block(torch.ones(200, 4), True)
    assert set(seen["first"].unique().tolist()) == {0.0, 2.0}
    assert set(seen["second"][:, 4:].unique().tolist()) == {0.0, 2.0}
    assert set(seen["third"][:, 4:].unique().tolist()) == {1.0}


@pytest.mark.parametrize("kernel_sigma", [1.0, 0.5])
def test_mmd_equals_equations_5_and_6(kernel_sigma):
    torch.manual_seed(0)
    p_NH, q_NH = torch.randn(6, 3), torch.randn(6, 3) + 0.5
    expected = mmd_by_loops(array(p_NH), array(q_NH), kernel_sigma)
    assert float(mmd(p_NH, q_NH, "fixed", kernel_sigma)) == pytest.approx(expected, abs=1e-6)


def test_mmd_by_hand():
    """Two rows each: every distance is 0 or 1 or sqrt(2), sigma 1."""
    p_NH, q_NH = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    qq = (2 + 2 * np.exp(-1.0)) / 4
    assert float(mmd(p_NH, q_NH)) == pytest.approx(1 + qq - 2 * np.exp(-0.5), abs=1e-6)


def test_mmd_with_median_and_several_bandwidths():
    torch.manual_seed(0)
    p_NH, q_NH = torch.randn(5, 3), torch.randn(5, 3) * 2
    rows = np.concatenate([array(p_NH), array(q_NH)])
    distances = sorted(np.sum((rows[i] - rows[j]) ** 2) for i in range(10) for j in range(i))
    variance = distances[(len(distances) - 1) // 2]
    expected = mmd_by_loops(array(p_NH), array(q_NH), np.sqrt(variance))
    assert float(mmd(p_NH, q_NH, "median")) == pytest.approx(expected, abs=1e-6)
    several = np.mean([mmd_by_loops(array(p_NH), array(q_NH), np.sqrt(variance * m)) for m in (0.25, 0.5, 1, 2, 4)])
    assert float(mmd(p_NH, q_NH, "multi")) == pytest.approx(several, abs=1e-6)


@pytest.mark.parametrize("kernel", ["fixed", "median", "multi"])
def test_mmd_of_equal_samples_is_zero_and_its_gradient_finite(kernel):
    p_NH = torch.randn(4, 3, requires_grad=True)
    value = mmd(p_NH, p_NH.detach().clone(), kernel)
    value.backward()
    assert abs(float(value.detach())) < 1e-6 and torch.isfinite(p_NH.grad).all()


def test_losses_equal_equations_3_to_6():
    tower = tower_of().eval()
    a_NAD, v_NLD, mask_NL = old_rows([2, 5, 1, 3])
    with torch.no_grad():
        losses = tower(a_NAD, v_NLD + 10.0 * ~mask_NL.unsqueeze(2), mask_NL)  # whatever stands at padding
    e1, e2, d1, d2 = (tower.attribute_encoder, tower.behavior_encoder, tower.attribute_decoder, tower.behavior_decoder)
    p, q, attribute, behavior = [], [], 0.0, 0.0
    for a_AD, v_LD, length in zip(array(a_NAD), array(v_NLD), (2, 5, 1, 3)):
        p.append(encoder(e1, attention(tower.attribute_attention, a_AD)))
        q.append(encoder(e2, attention(tower.behavior_attention, v_LD[:length])))
        target_v = np.concatenate([v_LD[:length].ravel(), np.zeros((LENGTH - length) * D)])
        attribute += np.sum((decoder(d1, p[-1]) - a_AD.ravel()) ** 2) + np.sum((decoder(d2, p[-1]) - target_v) ** 2)
        behavior += np.sum((decoder(d1, q[-1]) - a_AD.ravel()) ** 2) + np.sum((decoder(d2, q[-1]) - target_v) ** 2)
    assert float(losses.attribute) == pytest.approx(attribute, rel=1e-5)
    assert float(losses.behavior) == pytest.approx(behavior, rel=1e-5)
    assert float(losses.alignment) == pytest.approx(mmd_by_loops(np.array(p), np.array(q), 1.0), abs=1e-6)


def test_virtual_behaviour_equals_equation_8_and_ignores_the_mode():
    tower = tower_of().train()
    a_NAD, _, _ = old_rows([1, 1])
    hidden = [encoder(tower.attribute_encoder, attention(tower.attribute_attention, array(a_AD))) for a_AD in a_NAD]
    expected = [decoder(tower.behavior_decoder, p).reshape(LENGTH, D) for p in hidden]
    virtual_NLD = tower.virtual_behavior(a_NAD.requires_grad_())
    np.testing.assert_allclose(array(virtual_NLD), expected, atol=1e-5)
    assert tower.training and all(m.training for m in tower.modules()) and not virtual_NLD.requires_grad


def test_no_gradient_leaves_the_tower_and_every_parameter_of_it_gets_one():
    tower = tower_of(ZeroShotConfig(hidden=(12, 10), latent=6, attention=7, dropout=0.0))
    a_NAD, v_NLD, mask_NL = old_rows([2, 5, 3])
    a_NAD.requires_grad_()
    v_NLD.requires_grad_()
    losses = tower(a_NAD, v_NLD, mask_NL)
    (losses.attribute + losses.behavior + losses.alignment).backward()
    assert a_NAD.grad is None and v_NLD.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


@pytest.mark.parametrize("kernel", ["fixed", "median", "multi"])
@pytest.mark.parametrize("lengths", [[], [3]])
def test_no_rows_and_one_row_give_finite_losses_with_a_graph_to_every_parameter(kernel, lengths):
    tower = tower_of(ZeroShotConfig(hidden=(12, 10), latent=6, attention=7, kernel=kernel))
    losses = tower(*old_rows(lengths))
    total = losses.attribute + losses.behavior + losses.alignment
    total.backward()
    assert torch.isfinite(total) and (float(total.detach()) == 0) == (not lengths)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())


def test_without_alignment_the_loss_is_zero_with_a_graph():
    tower = tower_of(ZeroShotConfig(hidden=(12, 10), latent=6, attention=7, variant="dual"))
    alignment = tower(*old_rows([2, 3])).alignment
    assert float(alignment.detach()) == 0 and alignment.requires_grad


def test_dropout_is_on_in_training_and_off_in_evaluation():
    rows = old_rows([2, 5, 3])
    tower = tower_of()
    assert float(tower(*rows).attribute.detach()) != float(tower(*rows).attribute.detach())
    tower.eval()
    assert float(tower(*rows).attribute.detach()) == float(tower(*rows).attribute.detach())


def test_autocast_keeps_parameters_and_losses_in_float32_and_changes_the_losses_little():
    plain = ZeroShotConfig(hidden=(64, 48), latent=32, attention=16, dropout=0.0)
    rows = old_rows([2, 5, 3, 1])
    towers = [tower_of(config) for config in (plain, replace(plain, autocast=True))]
    exact, rounded = (tower(*rows) for tower in towers)
    for name in ("attribute", "behavior", "alignment"):
        value, expected = getattr(rounded, name), getattr(exact, name)
        assert value.dtype == torch.float32 and not torch.equal(value, expected)
        torch.testing.assert_close(value, expected, rtol=0.02, atol=0.01)
    (rounded.attribute + rounded.behavior + rounded.alignment).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in towers[1].parameters())
    virtual_NLD = towers[1].virtual_behavior(rows[0])
    assert virtual_NLD.dtype == torch.float32
    torch.testing.assert_close(virtual_NLD, towers[0].virtual_behavior(rows[0]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("lengths", [[], [3]])
def test_autocast_steps_on_no_rows_and_on_one(lengths):
    tower = tower_of(replace(SMALL, autocast=True))
    losses = tower(*old_rows(lengths))
    (losses.attribute + losses.behavior + losses.alignment).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())


def test_tower_builds_on_meta_and_reset_makes_it_work():
    with torch.device("meta"):
        tower = ZeroShotTower(SMALL, SHAPE)
    tower.to_empty(device="cpu")
    for parameter in tower.parameters():
        parameter.data.fill_(float("nan"))
    tower.reset_parameters()
    limit = np.sqrt(6 / (D + 12))  # Xavier, uniform
    weight = tower.attribute_encoder.first.weight
    assert weight.abs().max() <= limit and weight.std() > limit / 3 and not tower.attribute_encoder.first.bias.any()
    assert torch.isfinite(tower(*old_rows([2, 1])).attribute)


@pytest.mark.parametrize("wrong, message", [({"kernel": "linear"}, "fixed, median"), ({"dropout": 1.0}, "dropout"),
                                            ({"hidden": (4,)}, "2 layer sizes"), ({"latent": 0}, "latent"),
                                            ({"bandwidth": 0.0}, "bandwidth"), ({"alignment": "cca"}, "mmd, mse"),
                                            ({"variant": "triple"}, "none, single, dual, base"),
                                            ({"joint": 1}, "joint"), ({"token_weight": 0}, "token_weight"),
                                            ({"autocast": "yes"}, "autocast")])
def test_a_configuration_that_does_not_fit_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        ZeroShotConfig(**wrong)
