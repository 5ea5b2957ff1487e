"""Metrics against numbers worked out by hand, scikit-learn's and slow loops; undefined ones are None."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mail_core.errors import InputError
from mail_core.evaluation.behavior_fit import BehaviorFit
from mail_core.evaluation.comparison import (BootstrapConfig, _weighted_auc, _weighted_gauc, loss_difference,
                                             paired_differences)
from mail_core.evaluation.metrics import METRICS, cohort_metrics, gauc, metrics_of, relative_improvement, user_aucs
from mail_core.evaluation.tables import format_differences, format_table

scored_rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40)


def test_gauc_by_hand():
    # User 1: clicks .8 and .3, no clicks .5 and .3: (.8>.5) 1, (.8>.3) 1, (.3<.5) 0, (.3=.3) 1/2 -> 2.5 / 4, 4 rows.
    # User 2: click .1, no click .9 -> 0 of 2 rows. User 3 has no click, user 4 clicks alone: both left out.
    labels = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1])
    scores = np.array([.8, .3, .5, .3, .1, .9, .2, .4, .7])
    users = np.array([1, 1, 1, 1, 2, 2, 3, 3, 4])
    assert gauc(labels, scores, users) == pytest.approx((4 * 2.5 / 4 + 2 * 0.0) / 6)
    _, auc_of_user, rows = user_aucs(labels, scores, users)
    np.testing.assert_allclose(auc_of_user, [0.625, 0.0, np.nan, np.nan])
    assert rows.tolist() == [4, 2, 2, 1]


@given(scored_rows)
def test_user_aucs_equal_scikit_learns(rows):
    labels, scores, users = np.array(rows).T
    found_users, auc_of_user, _ = user_aucs(labels, scores / 4, users)
    for user, found in zip(found_users, auc_of_user):
        own = labels[users == user]
        if own.min() == own.max():
            assert np.isnan(found)
        else:
            assert found == pytest.approx(roc_auc_score(own, scores[users == user]))


def test_metrics_by_hand():
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 0.5])
    found = metrics_of("all", labels, scores, np.array([7, 7, 8, 8]))
    assert (found.rows, found.users, found.ctr) == (4, 2, 0.5)
    assert found.auc == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert found.gauc == pytest.approx((2 * 1 + 2 * 0.5) / 4)
    assert found.logloss == pytest.approx(-(2 * np.log(0.9) + 2 * np.log(0.5)) / 4)
    # Bins of .9, .1 and .5: |1 - .9|, |0 - .1| and |.5 - .5|, weighted by their rows.
    assert found.ece == pytest.approx((0.1 + 0.1 + 0.0) / 4, abs=1e-6)


def test_undefined_metrics_are_none_and_print_as_a_dash():
    labels, scores, users = np.array([0, 0]), np.array([0.2, 0.4]), np.array([1, 2])
    cohorts = {"old": np.array([True, True]), "new": np.array([False, False])}
    one_class, empty = cohort_metrics(labels, scores, users, cohorts)
    assert (one_class.auc, one_class.gauc) == (None, None)
    assert one_class.logloss == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert [value for _, value in empty.items()] == [0.0, 0.0] + [None] * 5
    lines = format_table({"m": [one_class, empty]}).splitlines()
    assert lines[1].split() == ["cohort", "rows", "CTR", "AUC", "GAUC", "logloss", "ECE"]
    assert lines[2].split()[:5] == ["old", "2", "0.0000", "-", "-"]
    assert lines[3].split() == ["new", "0", "-", "-", "-", "-", "-"]


def test_every_metric_is_an_item():
    found = metrics_of("all", np.array([0, 1]), np.array([0.1, 0.2]), np.array([1, 1]))
    assert tuple(name for name, _ in found.items()) == METRICS


def test_relative_improvement_is_a_share_of_the_baseline():
    assert relative_improvement(0.5862, 0.5934) == pytest.approx(1.228, abs=1e-3)  # Table 2 of the paper: 1.22 %
    assert relative_improvement(0.5, 0.45) == pytest.approx(-10)
    assert relative_improvement(None, 0.5) is None and relative_improvement(0.5, None) is None
    assert relative_improvement(0.0, 0.5) is None


@settings(max_examples=50)
@given(scored_rows, st.integers(0, 2**32 - 1))
def test_weighting_users_equals_repeating_their_rows(rows, seed):
    labels, scores, users = np.array(rows).T
    weights = np.random.default_rng(seed).integers(0, 4, len(np.unique(users)))
    times = weights[np.unique(users, return_inverse=True)[1]]
    repeated = [np.repeat(column, times) for column in (labels, scores, users)]
    found = _weighted_auc(labels, scores, users)(weights)
    if repeated[0].size and 0 < repeated[0].sum() < repeated[0].size:
        assert found == pytest.approx(roc_auc_score(repeated[0], repeated[1]))
    else:
        assert np.isnan(found)
    found_users, auc_of_user, _ = user_aucs(labels, scores, users)
    mass = [(np.sum(users == user) * weight, auc) for user, weight, auc in zip(found_users, weights, auc_of_user)
            if weight and not np.isnan(auc)]
    found = _weighted_gauc(labels, scores, users)(weights)
    assert found == pytest.approx(sum(m * a for m, a in mass) / sum(m for m, _ in mass)) if mass else np.isnan(found)


def simulated(gain, seed=0, rows=4000, users=200):
    """Labels, scores of a model and of one that is noisier by `gain`, and users."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(size=rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return labels, logit, logit + gain * generator.normal(size=rows), generator.integers(0, users, rows)


def test_the_interval_holds_the_difference_and_tells_a_gain_from_none():
    better = paired_differences("all", *simulated(gain=1.0))
    assert [d.metric for d in better] == ["auc", "gauc"]
    for d in better:
        assert 0 < d.low < d.difference < d.high
    labels, model, _, users = simulated(gain=1.0)
    same = paired_differences("all", labels, model, 2 * model + 1, users)
    assert all(d.difference == d.low == d.high == 0 for d in same)
    draw = simulated(gain=1.0)
    assert paired_differences("all", *draw) == paired_differences("all", *draw)
    other = paired_differences("all", *draw, BootstrapConfig(seed=1))
    assert other[0].difference == better[0].difference and other[0].low != better[0].low


def test_the_interval_is_as_wide_as_the_spread_over_fresh_users():
    once = BootstrapConfig(resamples=1)
    fresh = np.std([paired_differences("all", *simulated(1.0, seed, rows=1000), once)[0].difference
                    for seed in range(60)])
    widths = [(d.high - d.low) / (2 * 1.96) for seed in range(5)
              for d in paired_differences("all", *simulated(1.0, seed, rows=1000))[:1]]
    assert np.mean(widths) == pytest.approx(fresh, rel=0.35)


def test_an_undefined_difference_is_none():
    for labels in (np.array([0, 0]), np.array([], dtype=int)):
        scores = np.linspace(0.1, 0.9, len(labels))
        found = paired_differences("new", labels, scores, scores, np.arange(len(labels)))
        assert all((d.difference, d.low, d.high) == (None, None, None) for d in found)
    improvements = {("new", "auc"): None, ("new", "gauc"): None}
    assert "[-, -]" in format_differences("a less b", found, improvements, 0.95)


def test_the_difference_of_log_loss_by_hand_and_its_interval():
    labels, model, against = np.array([1, 0, 0]), np.array([0.5, 0.2, 1.0]), np.array([0.25, 0.2, 1.0])
    found = loss_difference("all", labels, model, against, np.array([1, 1, 2]))
    assert found.metric == "logloss" and found.difference == pytest.approx((np.log(0.25) - np.log(0.5)) / 3)
    # Draws are of two users: both, the first twice (a mean over two rows' -log 2 and 0), or the second twice (0).
    assert (found.low, found.high) == (pytest.approx(-np.log(2) / 2), pytest.approx(0))
    labels, logit, noisy, users = simulated(gain=1.0)
    better = loss_difference("all", labels, *(1 / (1 + np.exp(-x)) for x in (logit, noisy)), users)
    assert better.low < better.difference < better.high < 0
    nothing = loss_difference("new", labels[:0], model[:0], model[:0], users[:0])
    assert (nothing.difference, nothing.low, nothing.high) == (None, None, None)


def test_a_bootstrap_without_draws_is_refused():
    with pytest.raises(InputError, match="0 resamples"):
        BootstrapConfig(resamples=0)


def test_behavior_fit_by_hand_and_in_parts():
    real = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0]])
    virtual = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    fit = BehaviorFit.of(real, virtual)
    variance = ((real - real.mean(0)) ** 2).sum()
    assert fit.r2 == pytest.approx(1 - ((real - virtual) ** 2).sum() / variance)
    assert fit.cosine == pytest.approx((1 + 1 + 6 / 10 + 0) / 4)
    parts = BehaviorFit.of(real[:1], virtual[:1]) + BehaviorFit.of(real[1:], virtual[1:])
    assert (parts.rows, parts.r2, parts.cosine) == (4, pytest.approx(fit.r2), pytest.approx(fit.cosine))
    assert BehaviorFit.of(real, real).r2 == pytest.approx(1)
    assert BehaviorFit.of(real, real * 0 + real.mean(0)).r2 == pytest.approx(0)
    empty = BehaviorFit.of(real[:0], virtual[:0])
    assert "R2 above 0" in BehaviorFit.of(real, real).reading
    assert "expect no gain" in BehaviorFit.of(real, -real).reading
    assert "nothing to predict" in empty.reading
    assert (empty.r2, empty.cosine) == (None, None) and BehaviorFit.of(real[[0, 0]], virtual[:2]).r2 is None
