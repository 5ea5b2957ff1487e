"""DIN against a plain NumPy computation of its attention; packed sequences; small batches; DIN as MAIL's tower."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema, small_config
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape, TowerInputs, no_virtual
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.packed import Packing
from mail_core.models.ranking.din import Din, DinConfig, TargetAttention

A, LENGTH, C, T, D = 3, 5, 2, 4, 4
SMALL = DinConfig(attention=(7, 6), hidden=(11, 8), dropout=0.5)


def inputs_of(lengths: list[int], dense: int = 2) -> TowerInputs:
    torch.manual_seed(5)
    rows = len(lengths)
    mask_BL = torch.arange(LENGTH) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return TowerInputs(a_BAD=torch.randn(rows, A, D), v_BLD=torch.randn(rows, LENGTH, D), mask_BL=mask_BL,
                       c_BCD=torch.randn(rows, C, D), t_BTD=torch.randn(rows, T, D), dense_BF=torch.randn(rows, dense),
                       is_virtual_B=no_virtual(mask_BL))


def tower_of(dense: int = 2) -> Din:
    """A tower whose biases and running statistics are not the initial ones."""
    torch.manual_seed(6)
    tower = Din(SMALL, InputShape(attributes=A, length=LENGTH, contexts=C, targets=T, dense=dense, dim=D))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for norm in (tower.norm1, tower.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return tower


def array(value: Tensor) -> np.ndarray:
    return value.detach().numpy().astype(np.float64)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def interest(attention: TargetAttention, q: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One row, its first layer not split: q (D,), keys (n, D)."""
    total = np.zeros(D)
    for k in keys:
        h = leaky(linear(attention.first, np.concatenate([q, k, q - k, q * k])))
        total += linear(attention.score, leaky(linear(attention.second, h))) * k
    return total


def logits(tower: Din, x: TowerInputs) -> np.ndarray:
    rows = []
    for i, length in enumerate(x.mask_BL.sum(1).tolist()):
        target = array(x.t_BTD[i]).ravel()
        found = interest(tower.attention, linear(tower.query, target), array(x.v_BLD[i, :length]))
        rows.append(np.concatenate([found, array(x.a_BAD[i]).ravel(), array(x.c_BCD[i]).ravel(), target,
                                    array(x.dense_BF[i])]))
    h = np.stack(rows)
    for dense, norm in ((tower.dense1, tower.norm1), (tower.dense2, tower.norm2)):
        h = (linear(dense, h) - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + norm.eps)
        h = leaky(h * array(norm.weight) + array(norm.bias))
    return linear(tower.output, h)[:, 0]


def test_evaluation_equals_the_plain_computation_over_valid_positions():
    tower, inputs = tower_of().eval(), inputs_of([2, 0, 5, 1])
    output = tower(inputs)
    np.testing.assert_allclose(array(output.logits_B), logits(tower, inputs), atol=1e-5)
    assert output.logits_B.shape == (4,) and not output.auxiliary
    inputs.v_BLD[~inputs.mask_BL] = 100.0  # padding
    np.testing.assert_array_equal(array(tower(inputs).logits_B), array(output.logits_B))


def test_gradients_equal_those_of_the_padded_unsplit_attention():
    attention, inputs = tower_of().attention.double(), inputs_of([2, 0, 5, 1])
    leaves = [torch.randn(4, D, dtype=torch.float64).requires_grad_(), inputs.v_BLD.double().requires_grad_()]
    q_BD, v_BLD = leaves
    wanted = [*leaves, *attention.parameters()]
    weight_BD = torch.randn(4, D, dtype=torch.float64)
    found = torch.autograd.grad((attention(q_BD, v_BLD, inputs.mask_BL) * weight_BD).sum(), wanted)
    q_BLD = q_BD[:, None].expand_as(v_BLD)
    h = nn.functional.leaky_relu(attention.first(torch.cat([q_BLD, v_BLD, q_BLD - v_BLD, q_BLD * v_BLD], 2)), 0.2)
    w_BL1 = attention.score(nn.functional.leaky_relu(attention.second(h), 0.2)) * inputs.mask_BL[:, :, None]
    expected = torch.autograd.grad(((w_BL1 * v_BLD).sum(1) * weight_BD).sum(), wanted)
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_an_empty_sequence_has_no_interest_and_a_fresh_tower_weighs_behaviours_near_one():
    attention, inputs = TargetAttention(D, (7, 6)), inputs_of([0, 5])
    found_BD = attention(0 * inputs.t_BTD[:, 0], 1e-3 * inputs.v_BLD, inputs.mask_BL)
    assert not found_BD[0].any()
    torch.testing.assert_close(found_BD[1], 1e-3 * inputs.v_BLD[1].sum(0), rtol=0.05, atol=1e-5)


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


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("lengths", [[], [3], [0], [0, 0], [4, 0]])
def test_small_batches_and_no_dense_feature_step(dense, lengths):
    tower = tower_of(dense).train()
    logits_B = tower(inputs_of(lengths, dense)).logits_B
    logits_B.sum().backward()
    assert logits_B.shape == (len(lengths),) and torch.isfinite(logits_B).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())


def test_tower_builds_on_meta_and_reset_makes_it_work():
    with torch.device("meta"):
        tower = Din(SMALL, InputShape(attributes=A, length=LENGTH, contexts=C, targets=T, dense=2, dim=D))
    tower.to_empty(device="cpu")
    for value in (*tower.parameters(), *tower.buffers()):
        value.data.fill_(-1)
    tower.reset_parameters()
    assert torch.isfinite(tower.eval()(inputs_of([1, 2])).logits_B).all() and not tower.dense1.bias.any()


def test_a_prior_makes_the_fresh_tower_start_at_the_constant_click_rate():
    tower = tower_of().eval()
    nn.init.zeros_(tower.output.weight)
    tower.set_prior(0.05)
    torch.testing.assert_close(torch.sigmoid(tower(inputs_of([0, 2, 5])).logits_B), torch.full((3,), 0.05))


@pytest.mark.parametrize("wrong", [{"attention": (4,)}, {"hidden": (4, 0)}, {"dropout": -0.1}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DinConfig(**wrong)


@pytest.mark.parametrize("name", ["movielens", "alimama"])
def test_mail_trains_din_on_virtual_behaviour_and_ranks_by_user_part(name):
    schema, lengths = short_schema(name), [5, 0, 2, 0]
    config = replace(small_config(), tower="din", tower_config=SMALL)
    document = json.loads(json.dumps(config.to_dict()))
    assert MailConfig.from_dict(document) == config
    torch.manual_seed(2)
    model = MailModel(config, layout_of(schema))
    encoded = encoded_batch(schema, lengths)
    gathered = model.tables.gather(encoded)
    completed = model.complete(gathered.inputs)
    output = model.ranking(completed)
    silent = model.ranking(replace(completed, v_BLD=completed.v_BLD * ~completed.is_virtual_B[:, None, None]))
    assert (output.logits_B != silent.logits_B).all()  # batch norm: in training every row sees the others
    output.logits_B.square().sum().backward()
    assert gathered.row_gradients()[1].abs().sum() > 0
    assert all(p.grad is not None for p in model.ranking.parameters())
    assert all(p.grad is None for p in model.zero_shot.parameters())
    model.eval()
    of_user = [f.name for f in schema.group("user")] + list(schema.behavior_vocabularies)
    users = model.embed_users({n: encoded[n] for n in of_user})
    of_candidate = {n: v for n, v in encoded.items() if n not in of_user}
    found_B = model.rank(users, torch.arange(len(lengths)), of_candidate)
    torch.testing.assert_close(found_B, model(encoded).detach(), rtol=0, atol=1e-6)


def test_a_configuration_of_another_tower_is_refused():
    with pytest.raises(InputError, match="tower din takes a DinConfig"):
        MailConfig(tower="din")
