"""The whole model: completion of new rows, parameter groups, gradients that must not flow, scoring by user part."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema, small_config
from torch import nn

from mail_core.errors import InputError
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.ranking import TOWERS
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.zero_shot import ZeroShotConfig

LENGTHS = [5, 0, 2, 3, 0, 1]
NEW = [n == 0 for n in LENGTHS]


def model_of(name: str = "movielens", zero_shot: bool = True) -> MailModel:
    torch.manual_seed(2)
    return MailModel(small_config(zero_shot), layout_of(short_schema(name)))


def test_complete_gives_new_rows_virtual_behaviour_and_touches_no_other():
    model = model_of().train()
    inputs = model.tables.gather(encoded_batch(short_schema("movielens"), LENGTHS)).inputs
    completed, new_B = model.complete(inputs), torch.tensor(NEW)
    assert torch.equal(completed.v_BLD[new_B], model.zero_shot.virtual_behavior(inputs.a_BAD[new_B]))
    assert completed.v_BLD[new_B].abs().sum() > 0 and completed.mask_BL[new_B].all()
    assert torch.equal(completed.v_BLD[~new_B], inputs.v_BLD[~new_B])
    assert torch.equal(completed.mask_BL[~new_B], inputs.mask_BL[~new_B])
    assert completed.is_virtual_B.tolist() == NEW and not completed.is_new_B.any()
    for part in ("a_BAD", "c_BCD", "t_BTD", "dense_BF"):
        assert getattr(completed, part) is getattr(inputs, part)
    assert not inputs.v_BLD[new_B].any() and not inputs.is_virtual_B.any()  # the batch itself stays as it was
    assert all(m.training for m in model.modules())


def test_virtual_behaviour_is_computed_for_new_rows_only():
    model, seen = model_of(), []
    model.zero_shot.attribute_attention.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    schema = short_schema("movielens")
    model.complete(model.tables.gather(encoded_batch(schema, LENGTHS)).inputs)
    model.complete(model.tables.gather(encoded_batch(schema, [3, 1])).inputs)
    assert seen == [2]


def test_without_a_zero_shot_tower_nothing_is_completed():
    model = model_of(zero_shot=False)
    inputs = model.tables.gather(encoded_batch(short_schema("movielens"), LENGTHS)).inputs
    assert model.complete(inputs) is inputs and not inputs.is_virtual_B.any()
    assert model.parameter_groups()["zero_shot"] == []


@pytest.mark.parametrize("zero_shot", [True, False])
def test_parameter_groups_are_disjoint_and_cover_the_model(zero_shot):
    model = model_of(zero_shot=zero_shot)
    groups = model.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert set(groups) == {"zero_shot", "ranking", "embedding", "cold_start"}
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert [id(p) for p in groups["embedding"]] == [id(model.tables.weight)]


def test_a_parameter_in_two_groups_or_in_none_is_noticed():
    shared, stray = model_of(), model_of()
    shared.ranking.output.weight = shared.zero_shot.attribute_attention.score.weight
    with pytest.raises(AssertionError, match="two groups"):
        shared.parameter_groups()
    stray.extra = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="no group"):
        stray.parameter_groups()


def test_no_gradient_of_the_zero_shot_loss_reaches_a_table():
    model = model_of()
    gathered = model.tables.gather(encoded_batch(short_schema("movielens"), LENGTHS))
    old = gathered.inputs.select(~gathered.inputs.is_new_B)
    losses = model.zero_shot(old.a_BAD, old.v_BLD, old.mask_BL)
    (losses.attribute + losses.behavior + losses.alignment).backward()
    assert model.tables.weight.grad is None and not gathered.row_gradients()[1].any()
    assert all(p.grad is None for p in model.ranking.parameters())


def test_the_ranking_loss_of_virtual_rows_does_not_reach_the_zero_shot_tower():
    model = model_of()
    gathered = model.tables.gather(encoded_batch(short_schema("movielens"), [0, 0, 0]))
    model.ranking(model.complete(gathered.inputs)).logits_B.square().sum().backward()
    assert all(p.grad is None for p in model.zero_shot.parameters())
    assert all(p.grad is not None for p in model.ranking.parameters())
    rows_R, grad_RD = gathered.row_gradients()
    assert grad_RD.abs().sum() > 0
    assert (rows_R < model.layout.action.offset).all()  # no behaviour was gathered


@pytest.mark.parametrize("name", ["movielens", "alimama"])
def test_ranking_by_user_part_equals_forward_on_the_joined_rows(name):
    schema, model = short_schema(name), model_of(name).eval()
    users = encoded_batch(schema, LENGTHS)
    index_B = torch.tensor([1, 1, 0, 5, 4, 2, 2, 1])
    candidates = encoded_batch(schema, [1] * len(index_B), seed=9)
    of_user = [f.name for f in schema.group("user")] + list(schema.behavior_vocabularies)
    joined = {n: users[n][index_B] if n in of_user else candidates[n] for n in users}
    expected = model(joined)
    part = model.embed_users({n: users[n] for n in of_user})
    of_candidate = {n: v for n, v in candidates.items() if n not in of_user}
    found = model.rank(part, index_B, of_candidate).logits_B
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
    chunks = [model.rank(part, index_B[i:i + 3], {n: v[i:i + 3] for n, v in of_candidate.items()}).logits_B
              for i in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(chunks), expected.detach(), rtol=0, atol=1e-6)
    assert part.is_virtual_U.tolist() == NEW
    with pytest.raises(AssertionError, match="eval"):
        model.train().rank(part, index_B, of_candidate)


def test_forward_of_a_row_does_not_depend_on_its_batch():
    schema, model = short_schema("alimama"), model_of("alimama").eval()
    encoded = encoded_batch(schema, LENGTHS)
    with torch.no_grad():
        together = model(encoded)
        alone = torch.cat([model({n: v[i:i + 1] for n, v in encoded.items()}) for i in range(len(LENGTHS))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [[], [0], [2], [0, 0], [3, 1]])
@pytest.mark.parametrize("zero_shot", [True, False])
def test_empty_one_row_all_new_and_all_old_batches_step(lengths, zero_shot):
    model = model_of(zero_shot=zero_shot).train()
    gathered = model.tables.gather(encoded_batch(short_schema("movielens"), lengths))
    if model.zero_shot is not None:
        old = gathered.inputs.select(~gathered.inputs.is_new_B)
        losses = model.zero_shot(old.a_BAD, old.v_BLD, old.mask_BL)
        (losses.attribute + losses.behavior + losses.alignment).backward()
    model.ranking(model.complete(gathered.inputs)).logits_B.sum().backward()
    gradients = [p.grad for p in model.parameters() if p is not model.tables.weight] + [gathered.row_gradients()[1]]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("zero_shot", [True, False])
def test_model_built_on_meta_equals_one_built_directly(zero_shot):
    with torch.device("meta"):
        lazy = model_of(zero_shot=zero_shot)
    lazy.to_empty(device="cpu")
    for value in (*lazy.parameters(), *lazy.buffers()):
        value.data.fill_(-1)
    torch.manual_seed(7)
    lazy.reset_parameters()
    direct = model_of(zero_shot=zero_shot)
    torch.manual_seed(7)
    direct.reset_parameters()
    for (name, found), expected in zip(lazy.state_dict().items(), direct.state_dict().values()):
        assert torch.equal(found, expected), name
    encoded = encoded_batch(short_schema("movielens"), LENGTHS)
    assert torch.equal(lazy.eval()(encoded), direct.eval()(encoded))


@pytest.mark.parametrize("config", [MailConfig(), small_config(), small_config(zero_shot=False),
                                    replace(small_config(), zero_shot=ZeroShotConfig(kernel="multi", variant="dual"))])
def test_configuration_survives_json(config):
    document = config.to_dict()
    assert json.loads(json.dumps(document)) == document and MailConfig.from_dict(document) == config


def test_defaults_are_filled_in():
    assert MailConfig.from_dict({"dim": 8}) == MailConfig(dim=8)
    assert MailConfig.from_dict({"tower_config": {"dropout": 0.0}}).tower_config == BaseDnnConfig(dropout=0.0)


@pytest.mark.parametrize("document, message", [
    ({"dims": 8}, r"model configuration\.dims: unknown key; known keys: tower, dim"),
    ({"tower_config": {"units": [1, 2]}}, r"tower_config\.units: unknown key"),
    ({"zero_shot": {"sigma": 1}}, r"zero_shot\.sigma: unknown key"), ({"zero_shot": 3}, "expected a mapping"),
    ({"tower": "resnet"}, f"'resnet' .expected one of {', '.join(TOWERS)}"), ({"dim": 0}, "dim: 0"),
    ({"dim": "8"}, "dim: '8'"), ({"embedding_std": -1}, "embedding_std"), ([], "expected a mapping")])
def test_a_document_that_does_not_fit_is_refused(document, message):
    with pytest.raises(InputError, match=message):
        MailConfig.from_dict(document)


def test_a_tower_configuration_of_another_type_is_refused():
    with pytest.raises(InputError, match="BaseDnnConfig"):
        MailConfig(tower_config=ZeroShotConfig())  # type: ignore[arg-type]
