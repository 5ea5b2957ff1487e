"""DIN against a plain NumPy computation of its attention; packed sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from tower_inputs import D, array, blocks, hidden_layers, inputs_of, leaky, linear, shape, side_by_side, stir

from mail_core.errors import InputError
from mail_core.models.inputs import TowerInputs
from mail_core.models.mail import MailConfig
from mail_core.models.packed import Packing
from mail_core.models.ranking.din import Din, DinConfig, TargetAttention


def tower_of() -> Din:
    torch.manual_seed(6)
    tower = Din(DinConfig(attention=(7, 6), hidden=(11, 8), dropout=0.0), shape())
    stir(tower)
    return tower


def interest(attention: TargetAttention, q: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One row, its first layer not split: q (D,), keys (n, D)."""
    total = np.zeros(D)
    for k in keys:
        h = leaky(linear(attention.first, np.concatenate([q, k, q - k, q * k])))
        total += linear(attention.score, leaky(linear(attention.second, h))) * k
    return total


def logits(tower: Din, x: TowerInputs, training: bool) -> np.ndarray:
    found = [interest(tower.attention, linear(tower.query, array(x.t_BTD[i]).ravel()), array(x.v_BLD[i, :length]))
             for i, length in enumerate(x.mask_BL.sum(1).tolist())]
    return linear(tower.output, hidden_layers(side_by_side(np.stack(found), x), blocks(tower), training))[:, 0]


@pytest.mark.parametrize("training", [True, False])
def test_logits_equal_the_plain_computation_over_valid_positions(training):
    tower, inputs = tower_of().train(training), inputs_of([2, 0, 5, 1])
    output = tower(inputs)
    np.testing.assert_allclose(array(output.logits_B), logits(tower, inputs, training), atol=1e-4 if training else 1e-5)
    assert not output.auxiliary


def test_gradients_equal_those_of_the_padded_unsplit_attention():
    attention, inputs = tower_of().attention.double(), inputs_of([2, 0, 5, 1])
    leaves = [torch.randn(4, D, dtype=torch.float64).requires_grad_(), inputs.v_BLD.double().requires_grad_()]
    q_BD, v_BLD = leaves
    wanted = [*leaves, *attention.parameters()]
    weight_BD = torch.randn(4, D, dtype=torch.float64)
    found = torch.autograd.grad((attention(q_BD, replace(inputs, v_BLD=v_BLD)) * weight_BD).sum(), wanted)
    q_BLD = q_BD[:, None].expand_as(v_BLD)
    h = nn.functional.leaky_relu(attention.first(torch.cat([q_BLD, v_BLD, q_BLD - v_BLD, q_BLD * v_BLD], 2)), 0.2)
    w_BL1 = attention.score(nn.functional.leaky_relu(attention.second(h), 0.2)) * inputs.mask_BL[:, :, None]
    expected = torch.autograd.grad(((w_BL1 * v_BLD).sum(1) * weight_BD).sum(), wanted)
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_an_empty_sequence_has_no_interest_and_a_fresh_tower_weighs_behaviours_near_one():
    attention, inputs = TargetAttention(D, (7, 6)), inputs_of([0, 5])
    found_BD = attention(0 * inputs.t_BTD[:, 0], replace(inputs, v_BLD=1e-3 * inputs.v_BLD))
    assert not found_BD[0].any()
    torch.testing.assert_close(found_BD[1], 1e-3 * inputs.v_BLD[1].sum(0), rtol=0.05, atol=1e-5)


def test_bfloat16_attention_changes_the_interest_little_and_keeps_types():
    exact = tower_of().attention
    rounded = TargetAttention(D, (7, 6), autocast=True)
    rounded.load_state_dict(exact.state_dict())
    inputs = inputs_of([2, 0, 5, 1])
    found, expected = (attention(inputs.t_BTD[:, 0], inputs) for attention in (rounded, exact))
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    found.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in rounded.parameters())


def test_a_token_counts_as_several_equal_positions():
    attention, inputs = tower_of().attention, inputs_of([5, 5])
    token_B1D = torch.randn(2, 1, D)
    four = replace(inputs, v_BLD=torch.cat([inputs.v_BLD, token_B1D.expand(2, 4, D)], 1),
                   mask_BL=torch.ones(2, 9, dtype=torch.bool))
    q_BD = inputs.t_BTD[:, 0]
    torch.testing.assert_close(attention(q_BD, inputs.with_token(token_B1D, 4.0)), attention(q_BD, four))


def test_packing_takes_positions_wherever_they_lie():
    mask_BL = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    x_BLD = torch.arange(9.0).view(3, 3, 1).requires_grad_()
    packing = Packing.of(mask_BL)
    assert packing.pack(x_BLD).squeeze(1).tolist() == [1, 2, 6, 8]
    assert packing.spread(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(1).tolist() == [1, 1, 3, 3]
    total_BD = packing.sum(packing.pack(x_BLD))
    assert total_BD.squeeze(1).tolist() == [3, 0, 14]
    total_BD.square().sum().backward()
    assert x_BLD.grad.squeeze(2).tolist() == [[0, 6, 6], [0, 0, 0], [28, 0, 28]]


@pytest.mark.parametrize("wrong", [{"attention": (4,)}, {"hidden": (4, 0)}, {"dropout": -0.1}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DinConfig(**wrong)


def test_a_configuration_of_another_tower_is_refused():
    with pytest.raises(InputError, match="tower din takes a DinConfig"):
        MailConfig(tower="din")
