"""The variants of the zero-shot tower: what each learns, what it builds, and how its virtual behaviour enters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema, small_config
from test_zero_shot import SHAPE, SMALL, D, array, attention, decoder, encoder, old_rows

from mail_core.errors import InputError
from mail_core.models.alignment import alignment_loss
from mail_core.models.fields import pool_behavior
from mail_core.models.inputs import TowerInputs
from mail_core.models.mail import MailModel
from mail_core.models.zero_shot import VARIANTS, LinearMap, ZeroShotTower, mean_behavior, zero_shot_tower

LENGTHS = [5, 0, 2, 3, 0, 1]
NEW = torch.tensor([n == 0 for n in LENGTHS])
SCHEMA = short_schema("movielens")
TOKENS = [name for name, variant in VARIANTS.items() if variant.token]


def tower_of(variant: str, **changes) -> ZeroShotTower | LinearMap:
    torch.manual_seed(3)
    return zero_shot_tower(replace(SMALL, variant=variant, dropout=0.0, **changes), SHAPE)


def model_of(variant: str, joint: bool = False) -> MailModel:
    torch.manual_seed(2)
    config = small_config()
    pooling = "mean" if VARIANTS[variant].token else "sum"
    return MailModel(replace(config, zero_shot=replace(config.zero_shot, variant=variant, joint=joint),
                             tower_config=replace(config.tower_config, pooling=pooling)), layout_of(SCHEMA))


def inputs_of(model: MailModel) -> TowerInputs:
    return model.tables.gather(encoded_batch(SCHEMA, LENGTHS)).inputs


def test_single_learns_equation_3_alone_and_builds_nothing_for_behaviour():
    base, single = tower_of("base"), tower_of("single")
    shared = {name: value for name, value in base.state_dict().items() if name in single.state_dict()}
    assert set(base.state_dict()) - set(shared) and not [n for n in shared if n.startswith("behavior_a")]
    assert {name.split(".")[0] for name in set(base.state_dict()) - set(shared)} == {"behavior_attention",
                                                                                      "behavior_encoder"}
    single.load_state_dict(shared)
    with torch.no_grad():
        expected, found = base(*old_rows([2, 5, 1])), single(*old_rows([2, 5, 1]))
    assert float(found.attribute) == pytest.approx(float(expected.attribute), rel=1e-6)
    assert float(found.behavior) == float(found.alignment) == 0 and float(expected.behavior) > 0


def test_dual_is_base_without_alignment():
    base, dual = tower_of("base"), tower_of("dual")
    dual.load_state_dict(base.state_dict())
    with torch.no_grad():
        expected, found = base(*old_rows([2, 5, 1])), dual(*old_rows([2, 5, 1]))
    assert (found.attribute, found.behavior) == (expected.attribute, expected.behavior)
    assert float(expected.alignment) > 0 and float(found.alignment) == 0


def test_mse_alignment_is_the_mean_squared_difference_of_p_and_q():
    p, q = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert float(alignment_loss(p, q, "mse", "fixed", 1.0)) == pytest.approx((1 + 0 + 4 + 0) / 4)
    empty = torch.zeros(0, 2, requires_grad=True)
    loss = alignment_loss(empty, empty, "mse", "fixed", 1.0)
    loss.backward()
    assert float(loss.detach()) == 0 and empty.grad is not None


def test_a_tokens_target_is_the_mean_of_real_behaviour():
    tower, (a_NAD, v_NLD, mask_NL) = tower_of("mean_token"), old_rows([2, 5, 1])
    with torch.no_grad():
        losses = tower(a_NAD, v_NLD, mask_NL)
    attribute = 0.0
    for a_AD, v_LD, length in zip(array(a_NAD), array(v_NLD), (2, 5, 1)):
        p = encoder(tower.attribute_encoder, attention(tower.attribute_attention, a_AD))
        attribute += np.sum((decoder(tower.attribute_decoder, p) - a_AD.ravel()) ** 2)
        attribute += np.sum((decoder(tower.behavior_decoder, p) - v_LD[:length].mean(0)) ** 2)
    assert float(losses.attribute) == pytest.approx(attribute, rel=1e-5)
    assert tower.virtual_behavior(a_NAD).shape == (3, 1, D)


@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if variant.attributes])
def test_a_token_does_not_read_the_users_id_and_the_papers_variants_do(variant):
    torch.manual_seed(3)
    tower = zero_shot_tower(replace(SMALL, variant=variant, dropout=0.0), replace(SHAPE, user_id=1))
    a_NAD, v_NLD, mask_NL = old_rows([2, 5, 1])
    other_NAD = a_NAD.clone()
    other_NAD[:, 1] += 1.0
    with torch.no_grad():
        losses = [tower(x, v_NLD, mask_NL) for x in (a_NAD, other_NAD)]
        virtual = [tower._decoded(x) for x in (a_NAD, other_NAD)]
    alike = [torch.equal(*virtual), losses[0].attribute == losses[1].attribute]
    assert alike == [variant in TOKENS] * 2
    if variant in TOKENS:
        with pytest.raises(InputError, match=f"zero_shot.variant: '{variant}' .* beside the user's ID"):
            zero_shot_tower(replace(SMALL, variant=variant), replace(SHAPE, attributes=1, user_id=0))


def test_mean_behaviour_of_a_row_without_any_is_zero():
    _, v_NLD, mask_NL = old_rows([2, 0])
    found = mean_behavior(v_NLD + 7.0 * ~mask_NL.unsqueeze(2), mask_NL)
    torch.testing.assert_close(found, torch.stack([v_NLD[0, :2].mean(0), torch.zeros(D)]))


def test_the_linear_map_equals_its_matrix_and_belongs_to_the_ranking_optimiser():
    tower, a_NAD = tower_of("none"), old_rows([1, 1])[0]
    expected = [(array(tower.map.weight) @ a.ravel() + array(tower.map.bias)).reshape(SHAPE.length, D)
                for a in array(a_NAD)]
    np.testing.assert_allclose(array(tower.virtual_behavior(a_NAD)), expected, atol=1e-5)
    groups = model_of("none").parameter_groups()
    assert not groups["zero_shot"] and len(groups["ranking"]) == len(model_of("base").parameter_groups()["ranking"]) + 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_completion_leaves_no_row_without_behaviour_and_no_real_behaviour_changed(variant):
    model = model_of(variant).train()
    inputs = inputs_of(model)
    completed = model.complete(inputs)
    length = inputs.v_BLD.shape[1]
    assert torch.equal(completed.v_BLD[~NEW, :length], inputs.v_BLD[~NEW])
    assert torch.equal(completed.mask_BL[~NEW, :length], inputs.mask_BL[~NEW])
    assert not completed.is_new_B.any() and completed.is_virtual_B.tolist() == NEW.tolist()
    if variant in TOKENS:
        assert completed.v_BLD.shape[1] == length + 1 and completed.mask_BL[:, -1].all()
        assert not completed.mask_BL[NEW, :length].any() and completed.token_weight == 4.0
        torch.testing.assert_close(completed.v_BLD[:, -1:], model.zero_shot.virtual_behavior(inputs.a_BAD))
    else:
        assert completed.mask_BL[NEW].all() and completed.token_weight is None


@pytest.mark.parametrize("variant", TOKENS)
def test_a_token_counts_as_four_behaviours_and_is_all_that_a_new_row_has(variant):
    model = model_of(variant)
    inputs = inputs_of(model)
    virtual_BD = model.zero_shot.virtual_behavior(inputs.a_BAD)[:, 0]
    found = pool_behavior(model.complete(inputs), "mean")
    count_B1 = inputs.mask_BL.sum(1, keepdim=True)
    expected = ((inputs.v_BLD * inputs.mask_BL.unsqueeze(2)).sum(1) + 4 * virtual_BD) / (count_B1 + 4)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[NEW], virtual_BD[NEW])


@pytest.mark.parametrize("variant, joint", [(v, j) for v in VARIANTS for j in (False, True)])
def test_the_ranking_loss_reaches_the_zero_shot_tower_only_where_they_are_joined(variant, joint):
    model = model_of(variant, joint)
    gathered = model.tables.gather(encoded_batch(SCHEMA, LENGTHS))
    inputs, old_B = gathered.inputs, ~gathered.inputs.is_new_B
    wanted = inputs.a_BAD[model.to_complete(inputs)] if model.config.zero_shot.learns_by_ranking else None
    losses = model.zero_shot(inputs.a_BAD[old_B], inputs.v_BLD[old_B], inputs.mask_BL[old_B], wanted)
    completed = model.complete(inputs, None if wanted is None else losses.virtual_MKD)
    model.ranking(completed).logits_B.square().sum().backward()
    taught = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.zero_shot.parameters())
    # The gate is 0 before its first update, and so is what passes it.
    assert taught == ((joint or variant == "none") and VARIANTS[variant].gate is None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_built_on_meta_equals_one_built_directly(variant):
    with torch.device("meta"):
        lazy = model_of(variant)
    lazy.to_empty(device="cpu")
    for value in (*lazy.parameters(), *lazy.buffers()):
        value.data.fill_(-1)
    direct = model_of(variant)
    for model in (lazy, direct):
        torch.manual_seed(7)
        model.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(lazy.state_dict().values(), direct.state_dict().values()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranking_by_user_part_equals_forward_on_the_joined_rows(variant):
    model = model_of(variant).eval()
    users, index_B = encoded_batch(SCHEMA, LENGTHS), torch.tensor([1, 1, 0, 5, 4, 2])
    candidates = encoded_batch(SCHEMA, [1] * len(index_B), seed=9)
    of_user = [f.name for f in SCHEMA.group("user")] + list(SCHEMA.behavior_vocabularies)
    expected = model({n: users[n][index_B] if n in of_user else candidates[n] for n in users})
    part = model.embed_users({n: users[n] for n in of_user})
    of_candidate = {n: v for n, v in candidates.items() if n not in of_user}
    found = model.rank(part, index_B, of_candidate).logits_B
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)


def test_a_token_beside_sum_pooling_is_refused():
    config = small_config()
    with pytest.raises(InputError, match="zero_shot.variant: 'gated' .* pooling 'mean'"):
        replace(config, zero_shot=replace(config.zero_shot, variant="gated"))
