"""The promotion rule by hand and by what must hold of it; what a version's description says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mail_core.errors import InputError
from mail_core.evaluation.comparison import NO_DIFFERENCE, PairedDifference
from mail_core.evaluation.metrics import CohortMetrics
from mail_core.evaluation.promotion import (CohortEvidence, Promotion, PromotionConfig, beats_constant,
                                            format_promotion, gain_is_lost, non_inferior)
from mail_core.tracking.descriptions import MOST, version_description, with_promotion

CONFIG = PromotionConfig(auc_margin=0.005, logloss_margin=0.01, least_clicks=100)


def evidence(cohort="old", auc=(0.0, -0.002, 0.002), logloss=(0.0, -0.001, 0.001), clicks=500):
    """(difference, low, high) of both metrics; the champion's log loss is .2, so that the margin is .002."""
    model = CohortMetrics(cohort=cohort, rows=20 * clicks, users=9, ctr=0.05, auc=0.6, gauc=None, logloss=0.2, ece=None)
    differences = [PairedDifference(cohort=cohort, metric=metric, difference=d, low=low, high=high)
                   for metric, (d, low, high) in (("auc", auc), ("logloss", logloss))]
    return CohortEvidence.of(model, auc=differences[0], logloss=differences[1], against_auc=0.6, against_logloss=0.2)


@pytest.mark.parametrize("old, new, promoted, said", [
    ({}, {}, True, "non-inferior (margin 0.005 AUC, 1.0% log loss): old AUC +0.0000 [-0.0020, +0.0020]; new AUC"),
    ({"auc": (-0.001, -0.005, 0.001)}, {}, True, "non-inferior"),
    ({"auc": (0.001, -0.0051, 0.007)}, {}, False, "old may lose more than the margin of 0.005 AUC: +0.0010 [-0.0051"),
    ({}, {"auc": (-0.02, -0.03, -0.01)}, False, "new loses more than the margin of 0.005 AUC: -0.0200 [-0.0300, -0."),
    ({"auc": (0.1, 0.09, 0.11), "logloss": (0.001, 0.0, 0.0021)}, {}, False, "old log loss may be higher by more than"),
    ({"logloss": (0.01, 0.009, 0.011)}, {}, False, "old log loss is higher by more than the margin of 1.0% (0.0020)"),
    ({}, {"auc": (-0.1, -0.2, -0.05), "clicks": 99}, True, "new not judged: 99 clicks in 1,980 rows, 100 are needed"),
    ({"clicks": 3}, {"clicks": 0, "auc": (None,) * 3, "logloss": (None,) * 3}, False,
     "no cohort can be judged: old not judged: 3 clicks in 60 rows, 100 are needed; new not judged: 0 clicks in 0"),
    ({}, {"auc": (None,) * 3, "clicks": 200}, True, "new not judged: 200 clicks in 4,000 rows"),
])
def test_the_rule_by_hand(old, new, promoted, said):
    decision = non_inferior([evidence("old", **old), evidence("new", **new), evidence("all", auc=(-1, -1, -1))], CONFIG)
    assert decision.promoted is promoted and said in decision.reason, decision.reason


numbers = st.floats(-0.05, 0.05)
triples = st.tuples(numbers, numbers, numbers).map(lambda t: (sorted(t)[1], min(t), max(t)))
cohorts = st.fixed_dictionaries({"auc": triples, "logloss": triples, "clicks": st.integers(0, 300)})


@given(cohorts, cohorts, st.floats(0, 0.05), st.floats(0, 0.05))
def test_a_challenger_that_gets_better_is_never_refused_for_it(old, new, auc_gain, loss_gain):
    def better(cohort):
        return {**cohort, "auc": tuple(x + auc_gain for x in cohort["auc"]),
                "logloss": tuple(x - loss_gain for x in cohort["logloss"])}

    before, after = (non_inferior([evidence("old", **a), evidence("new", **b)], CONFIG)
                     for a, b in ((old, new), (better(old), better(new))))
    assert after.promoted or not before.promoted


@given(cohorts, cohorts)
def test_better_everywhere_is_promoted_and_worse_beyond_the_margin_is_not(old, new):
    rows = [evidence("old", **old), evidence("new", **new)]
    judged = [e for e in rows if e.clicks >= 100]
    assume(judged)
    decision = non_inferior(rows, CONFIG)
    if all(e.auc_low >= 0 and e.logloss_high <= 0 for e in judged):
        assert decision.promoted
    if any(e.auc_difference < -0.005 or e.logloss_difference > 0.002 for e in judged):
        assert not decision.promoted


@pytest.mark.parametrize("auc, loss, promoted", [
    (0.6, (-0.01, -0.02, -0.001), True), (0.6, (-0.01, -0.02, 0.001), False), (0.5, (-0.01, -0.02, -0.001), False),
    (None, (-0.01, -0.02, -0.001), False), (0.6, (None,) * 3, False)])
def test_a_first_version_must_beat_the_constant_ctr(auc, loss, promoted):
    everybody = replace(evidence("all", logloss=loss), auc=auc)
    assert beats_constant(everybody).promoted is promoted


def test_a_gain_is_lost_when_its_whole_interval_lies_below():
    gain = PairedDifference(cohort="new", metric="auc", difference=-0.01, low=-0.02, high=-0.001)
    assert gain_is_lost(gain, CONFIG) and not gain_is_lost(replace(gain, high=0.001), CONFIG)
    assert gain_is_lost(replace(gain, high=0.001), PromotionConfig(least_gain=0.002))
    assert not gain_is_lost(NO_DIFFERENCE, CONFIG)


@pytest.mark.parametrize("settings, said", [
    ({"cohorts": ("old", "young")}, "cohorts: young"), ({"cohorts": ()}, "cohorts: none"),
    ({"gain_cohort": "x"}, "gain_cohort: x"), ({"auc_margin": -0.1}, "auc_margin: -0.1"),
    ({"logloss_margin": 1.0}, "logloss_margin"), ({"least_clicks": 0}, "least_clicks: 0"), ({"confidence": 1}, "1"),
    ({"resamples": 0}, "0 resamples")])
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        PromotionConfig(**settings)


PROMOTION = Promotion(
    day=date(2017, 5, 13), model_name="m", model_version="3", champion="2", decision="promoted", reason="non-inferior",
    new_users="natural", cohorts=(evidence("old"), evidence("new", auc=(None, None, None))),
    virtual_behavior_gain=-0.01, virtual_behavior_gain_low=-0.02, virtual_behavior_gain_high=-0.001,
    gain_cohort="new", gain_lost=True, auc_margin=0.005, logloss_margin=0.01, confidence=0.9,
    decided_at=datetime(2017, 5, 14, 1, 2, 3, 4, timezone.utc))
ROLLED_BACK = replace(PROMOTION, rolled_back_to="2", rolled_back_at=datetime(2017, 5, 15, tzinfo=timezone.utc),
                      rollback_reason="CTR fell")


@pytest.mark.parametrize("promotion", [PROMOTION, ROLLED_BACK, replace(PROMOTION, champion=None, cohorts=())])
def test_a_decision_comes_back_from_its_tag(promotion):
    assert Promotion.from_json(promotion.to_json()) == promotion
    assert "\n" not in promotion.to_json()


def test_a_decision_is_printed_with_its_figures_and_alarm():
    lines = format_promotion(ROLLED_BACK).splitlines()
    assert lines[0] == "m version 3, 2017-05-13: promoted"
    assert lines[4].split() == ["old", "10,000", "500", "0.6000", "0.6000", "+0.0000", "[-0.0020,", "+0.0020]",
                                "0.2000", "0.2000", "+0.0000", "[-0.0010,", "+0.0010]"]
    assert lines[-2].endswith("its own tower with virtual behaviour switched off: -0.0100 [-0.0200, -0.0010], LOST")
    assert lines[-1] == "rolled back to version 2 on 2017-05-15 00:00 UTC: CTR fell"


def test_a_description_tells_window_metrics_and_the_latest_decision():
    lineage = {"new_users": "natural", "export": {"first_day": "2017-05-06", "end_date": "2017-05-13"}}
    metrics = {"cohorts": [{"cohort": "new", "rows": 1200, "ctr": 0.05, "auc": 0.6, "gauc": None, "logloss": 0.2,
                            "ece": 0.01}]}
    plain = version_description(lineage, metrics)
    assert plain.startswith("Trained on 2017-05-06 to 2017-05-12, measured on 2017-05-13; new users: natural.")
    assert plain.endswith("| new | 1,200 | 0.0500 | 0.6000 | - | 0.2000 | 0.0100 |")
    decided = with_promotion(plain, PROMOTION)
    assert decided.startswith(plain) and "**Promoted** on 2017-05-13 (measured against version 2" in decided
    assert "Virtual behaviour gains nothing" in decided
    again = with_promotion(decided, ROLLED_BACK)
    assert again.count("## Promotion") == 1
    assert "**Rolled back** to version 2 on 2017-05-15 00:00 UTC: CTR fell" in again
    assert with_promotion(again, PROMOTION) == decided
    assert len(with_promotion(plain, replace(PROMOTION, reason="x" * 9000))) == MOST
    assert version_description({"new_users": "natural"}, {}) == "New users: natural."
