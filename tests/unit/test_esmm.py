"""ESMM's loss: hand numbers, extremes, its gradient; and what two towers in one teach which tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema, small_config

from mail_core.errors import InputError
from mail_core.models.esmm import Esmm, product_logits, ranking_losses
from mail_core.models.inputs import RankingOutput
from mail_core.models.mail import MailConfig, MailModel
from mail_core.training.predict import Predictions, conversion_figures
from mail_core.training.presets import model_config, model_label


def odds(p: float) -> float:
    return math.log(p / (1 - p))


def losses(ctr: list[float], cvr: list[float], clicks: list[int], conversions: list[int]) -> torch.Tensor:
    """Of rows with these log odds."""
    a, b, y, z = (torch.tensor(x, dtype=torch.float64) for x in (ctr, cvr, clicks, conversions))
    return ranking_losses(RankingOutput(logits_B=a, conversion_logits_B=b), y, z)


def test_the_loss_is_that_of_the_click_and_that_of_the_product_on_every_row():
    found = losses([odds(0.2)] * 3, [odds(0.5)] * 3, [0, 1, 1], [0, 0, 1])
    # -ln .8 - ln .9, -ln .2 - ln .9, -ln .2 - ln .1
    assert found.tolist() == pytest.approx([0.3285040670, 1.7147984281, 3.9120230054], abs=1e-9)


def test_without_a_cvr_tower_it_is_the_click_loss():
    found = ranking_losses(RankingOutput(logits_B=torch.tensor([odds(0.2), odds(0.2)])), torch.tensor([0.0, 1.0]), None)
    assert found.tolist() == pytest.approx([0.2231435513, 1.6094379124], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_finite_losses_and_gradients(dtype):
    extremes = torch.tensor([-1e4, -300.0, -30.0, 0.0, 30.0, 300.0, 1e4], dtype=dtype)
    a, b = (x.flatten().requires_grad_() for x in torch.meshgrid(extremes, extremes, indexing="ij"))
    for label, conversion in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)):
        found = ranking_losses(RankingOutput(logits_B=a, conversion_logits_B=b), torch.full_like(a, label),
                               torch.full_like(a, conversion))
        gradients = torch.autograd.grad(found.sum(), (a, b))
        assert torch.isfinite(found).all() and (found >= 0).all()
        assert all(torch.isfinite(g).all() and (g.abs() <= 2 + 1e-5).all() for g in gradients)


@pytest.mark.parametrize("a, b, log_odds", [
    (-40.0, -40.0, -80.0), (40.0, 40.0, 40.0 - math.log(2)), (90.0, 200.0, 90.0), (90.0, -200.0, -200.0),
    (0.0, 0.0, -math.log(3))])
def test_the_products_log_odds_keep_what_its_rounded_probability_has_lost(a, b, log_odds):
    found = product_logits(torch.tensor([a]), torch.tensor([b]))
    assert float(found) == pytest.approx(log_odds, rel=1e-6)


def test_the_gradient_equals_finite_differences():
    draw = torch.Generator().manual_seed(0)
    a, b = ((3 * torch.randn(12, dtype=torch.float64, generator=draw)).requires_grad_() for _ in range(2))
    y = (torch.arange(12) % 2).double()
    z = (torch.arange(12) % 4 == 1).double()
    assert torch.autograd.gradcheck(
        lambda a, b: ranking_losses(RankingOutput(logits_B=a, conversion_logits_B=b), y, z), (a, b))


def test_the_product_is_below_both_and_learned_by_both_towers():
    schema = short_schema("alimama")
    model = MailModel(replace(small_config(), head="esmm"), layout_of(schema)).eval()
    output = model.outputs(encoded_batch(schema, [5, 0, 2, 3, 0, 1]))
    joint = product_logits(output.logits_B, output.conversion_logits_B)
    assert (joint < torch.minimum(output.logits_B, output.conversion_logits_B)).all()
    torch.testing.assert_close(joint.sigmoid(), output.logits_B.sigmoid() * output.conversion_logits_B.sigmoid())
    clicks = torch.tensor([0.0, 1, 0, 0, 0, 0])
    ranking_losses(output, clicks, torch.zeros(6)).sum().backward()
    assert isinstance(model.ranking, Esmm)
    for tower in (model.ranking.click, model.ranking.conversion):  # also from rows that were not clicked
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_the_ctr_tower_starts_as_it_does_alone_and_priors_are_its_own():
    schema = short_schema("alimama")
    models = []
    for head in ("ctr", "esmm"):
        torch.manual_seed(3)
        models.append(MailModel(replace(small_config(zero_shot=False), head=head), layout_of(schema)).eval())
    alone, both = models[0].ranking, models[1].ranking
    for (name, mine), its in zip(alone.state_dict().items(), both.click.state_dict().values()):
        assert torch.equal(mine, its), name
    assert not torch.equal(both.click.output.weight, both.conversion.output.weight)
    both.set_prior(0.2)
    both.set_conversion_prior(0.1)
    assert both.click.output.bias.item() == pytest.approx(odds(0.2))
    assert both.conversion.output.bias.item() == pytest.approx(odds(0.1))


def test_the_product_is_measured_on_every_row_and_the_cvr_on_clicked_ones():
    nothing = np.zeros(5, dtype=np.int64)
    found = conversion_figures(Predictions(
        probabilities=np.array([0.9, 0.8, 0.5, 0.4, 0.1]), cvr=np.array([0.5, 0.1, 0.2, 0.9, 0.9]), user_keys=nothing,
        labels=np.array([1, 1, 1, 0, 0]), conversions=np.array([1, 0, 1, 0, 0]), masked=nothing, unseen=nothing,
        is_new=np.array([0, 0, 0, 1, 1])))
    # Products .45, .08, .10, .36, .09: the conversions' .45 and .10 stand above 3 and 2 of the 3 others.
    assert found["all/ctcvr_auc"] == pytest.approx(5 / 6) and found["old/ctcvr_auc"] == 1.0
    assert found["all/cvr_auc"] == 1.0 and found["new/cvr_auc"] is None and found["new/ctcvr_auc"] is None


def test_the_head_stands_in_configuration_and_name():
    config = model_config("tiny", "din", "base", head="esmm")
    assert MailConfig.from_dict(config.to_dict()) == config and model_label(config) == "mail-esmm-din"
    older = {k: v for k, v in model_config("tiny", "din", "off").to_dict().items() if k != "head"}
    assert MailConfig.from_dict(older).head == "ctr"
    with pytest.raises(InputError, match="head: 'cvr'"):
        model_config("tiny", "din", "base", head="cvr")
