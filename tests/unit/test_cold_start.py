"""MetaEmb's meta gradient and pairs, LLAE's moments, and how both complete new rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema, small_config

from mail_core.errors import InputError
from mail_core.models.esmm import HEADS
from mail_core.models.fields import pool_behavior
from mail_core.models.llae import LlaeConfig
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.meta_emb import MetaEmbConfig
from mail_core.schema.definition import USER_KEY, WEIGHT
from mail_core.training.cold_start import meta_loss, user_pairs

SCHEMA = short_schema("alimama")
LENGTHS = [5, 0, 2, 3, 0, 1]
NEW = torch.tensor([n == 0 for n in LENGTHS])


def model_of(peer: LlaeConfig | MetaEmbConfig, head: str = "ctr") -> MailModel:
    torch.manual_seed(2)
    model = MailModel(replace(small_config(zero_shot=False), cold_start=peer, head=head), layout_of(SCHEMA)).eval()
    with torch.no_grad():
        for parameter in model.ranking.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def rows_of(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Encoded rows, clicks and conversions, in float64."""
    number = torch.arange(len(LENGTHS))
    return encoded_batch(SCHEMA, LENGTHS, seed), (number % 2).double(), (number % 4 == 1).double()


@pytest.mark.parametrize("head", HEADS)
def test_the_meta_gradient_equals_finite_differences(head):
    model = model_of(MetaEmbConfig(alpha=0.3, inner_learning_rate=0.5), head).double()
    meta, (cold, warm) = model.cold_start, (rows_of(1), rows_of(2))
    meta_loss(model, cold, warm).backward()
    weight, found = meta.generator.weight, meta.generator.weight.grad.clone()
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-5 * direction)
            value = meta_loss_value(model, cold, warm)
            weight.sub_(sign * 1e-5 * direction)
        values.append(value)
    assert float((found * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    assert all(p.grad is None or not p.grad.any() for p in [model.tables.weight])


def meta_loss_value(model: MailModel, cold, warm) -> float:
    with torch.enable_grad():
        return float(meta_loss(model, cold, warm).detach())


def test_the_meta_loss_is_alpha_cold_plus_the_rest_warm_after_one_step():
    """Against the two losses computed one after the other, with the inner gradient by finite differences."""
    model = model_of(MetaEmbConfig(alpha=0.25, inner_learning_rate=0.5)).double()
    meta = model.cold_start
    (cold, labels_a, _), (warm, labels_b, _) = rows_of(1), rows_of(2)

    def losses(encoded, labels, phi):
        hidden = {**encoded, "behavior_btag": torch.zeros_like(encoded["behavior_btag"])}
        with torch.no_grad():
            inputs = model.tables.gather(hidden).inputs
            a = inputs.a_BAD.clone()
            a[:, meta.user_id] = phi
            p = torch.sigmoid(model.ranking(replace(inputs, a_BAD=a)).logits_B)
        return -(labels * p.log() + (1 - labels) * (1 - p).log())

    with torch.no_grad():
        phi = meta(model.tables.gather(cold).inputs.a_BAD)
    slope = torch.zeros_like(phi)
    for d in range(phi.shape[1]):
        step = torch.zeros_like(phi)
        step[:, d] = 1e-6
        slope[:, d] = (losses(cold, labels_a, phi + step) - losses(cold, labels_a, phi - step)) / 2e-6
    expected = 0.25 * losses(cold, labels_a, phi) + 0.75 * losses(warm, labels_b, phi - 0.5 * slope)
    found = meta_loss_value(model, (cold, labels_a, None), (warm, labels_b, None))
    assert found == pytest.approx(float(expected.sum()), rel=1e-6)


def test_pairs_are_disjoint_rows_of_one_user_and_leave_fillers_out():
    keys = np.array([7, 3, 7, 7, 3, 9, 7, 7, 3])
    chunk = {USER_KEY: keys, WEIGHT: np.array([1, 1, 1, 1, 1, 1, 1, 1, 0], dtype=np.float32)}
    first, second = user_pairs(chunk)
    assert (keys[first] == keys[second]).all() and sorted(keys[first]) == [3, 7, 7]
    assert len(set(first) | set(second)) == 6 and 8 not in {*first, *second}
    nothing = user_pairs({USER_KEY: keys[:0], WEIGHT: np.zeros(0, dtype=np.float32)})
    assert [len(part) for part in nothing] == [0, 0]


@pytest.mark.parametrize("peer", [LlaeConfig(), MetaEmbConfig()])
def test_an_unfitted_peer_changes_nothing(peer):
    model = model_of(peer)
    inputs = model.tables.gather(encoded_batch(SCHEMA, LENGTHS)).inputs
    assert model.complete(inputs) is inputs


def test_meta_emb_gives_new_rows_another_id_embedding_and_nothing_else():
    model = model_of(MetaEmbConfig())
    model.cold_start.fitted.fill_(True)
    inputs = model.tables.gather(encoded_batch(SCHEMA, LENGTHS)).inputs
    completed = model.complete(inputs)
    position = model.cold_start.user_id
    assert [f.name for f in SCHEMA.group("user")][position] == SCHEMA.user_id_feature
    others = [i for i in range(inputs.a_BAD.shape[1]) if i != position]
    torch.testing.assert_close(completed.a_BAD[NEW, position], model.cold_start(inputs.a_BAD)[NEW])
    assert torch.equal(completed.a_BAD[:, others], inputs.a_BAD[:, others])
    assert torch.equal(completed.a_BAD[~NEW], inputs.a_BAD[~NEW]) and completed.v_BLD is inputs.v_BLD


def test_llae_gives_new_rows_one_position_that_pools_to_the_decoded_attributes():
    model = model_of(LlaeConfig())
    model.cold_start.w_KD.normal_()
    model.cold_start.fitted.fill_(True)
    inputs = model.tables.gather(encoded_batch(SCHEMA, LENGTHS)).inputs
    completed = model.complete(inputs)
    expected = model.cold_start.virtual_behavior(inputs.a_BAD)[NEW, 0]
    for pooling in ("sum", "mean"):
        torch.testing.assert_close(pool_behavior(completed, pooling)[NEW], expected)
    assert torch.equal(completed.v_BLD[~NEW], inputs.v_BLD[~NEW]) and completed.mask_BL[NEW].sum(1).tolist() == [1, 1]
    assert completed.is_virtual_B.tolist() == NEW.tolist()


@pytest.mark.parametrize("peer", [LlaeConfig(low_rank=(1.0, 30.0)), MetaEmbConfig(epochs=3)])
def test_configuration_survives_json(peer):
    config = replace(small_config(zero_shot=False), cold_start=peer)
    assert MailConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("document, message", [
    ({"zero_shot": None, "cold_start": {"method": "dropout_net"}}, "llae, meta_emb"),
    ({"zero_shot": None, "cold_start": {"encoding": 3}}, "expected a mapping with a method"),
    ({"cold_start": {"method": "llae"}}, "none beside a zero-shot tower"),
    ({"zero_shot": None, "cold_start": {"method": "meta_emb", "alpha": 1.5}}, r"cold_start\.alpha: 1\.5")])
def test_a_document_that_does_not_fit_is_refused(document, message):
    with pytest.raises(InputError, match=message):
        MailConfig.from_dict(document)
