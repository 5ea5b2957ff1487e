"""A/B tests in a planted world: who is served by whom, what the better ranker gains, and that equal ones do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mail_core.errors import InputError
from mail_core.evaluation.comparison import BootstrapConfig
from mail_core.evaluation.lift import Served, lifts, lifts_csv
from mail_core.evaluation.tables import format_lifts
from mail_core.simulation.ab_test import AbTestConfig, arms, draw_session
from mail_core.simulation.planted import WorldConfig
from mail_core.simulation.world import World

USERS, ITEMS = 3_000, 80
CONFIG = AbTestConfig(candidates=20, shown=4, seed=3)
IDS = pa.array(np.arange(USERS) + 1)
ITEM_IDS = np.arange(ITEMS) + 1


@pytest.fixture(scope="module")
def world() -> World:
    config, rng = WorldConfig(users=USERS, items=ITEMS), np.random.default_rng(1)
    return World(config=config, intercept=-2.5, interest_scale=1.5, attribute_weights_AK=np.zeros((8, 3)),
                 user_ids_U=np.arange(USERS) + 1, user_latent_UK=rng.standard_normal((USERS, 3)),
                 levels_UA=np.zeros((USERS, 8), dtype=int), item_ids_I=ITEM_IDS,
                 item_latent_IK=rng.standard_normal((ITEMS, 3)) / np.sqrt(3),
                 item_effect_I=0.3 * rng.standard_normal(ITEMS), conversion_effect_I=rng.standard_normal(ITEMS) - 1.0)


def served(world: World, config: AbTestConfig, *rankers: str) -> Served:
    """Two rankers, each `truth` (click probability), `both` (click and conversion) or a seed of random scores."""
    session, in_arm = draw_session(IDS, ITEM_IDS, world, config), arms(IDS, config)
    ids = np.repeat(IDS.to_numpy(), config.candidates), ITEM_IDS[session.position_UN.ravel()]
    counts = []
    for arm, ranker in enumerate(rankers):
        scores = (world.click_probability(*ids) if ranker == "truth" else
                  world.click_probability(*ids) * world.conversion_probability(*ids) if ranker == "both" else
                  np.random.default_rng(int(ranker)).random(len(ids[0])))
        clicks, conversions = session.outcomes(scores.reshape(session.position_UN.shape), config.shown)
        counts.append(np.stack([np.full(USERS, config.shown), clicks, conversions]) * in_arm[:, arm])
    shown, clicks, conversions = np.stack(counts, axis=-1)
    return Served(shown_U2=shown, clicks_U2=clicks, conversions_U2=conversions)


def test_lifts_of_a_handful_of_users_equal_hand_numbers():
    some = Served(shown_U2=np.array([[10, 0], [10, 0], [0, 10], [0, 30]]),
                  clicks_U2=np.array([[3, 0], [3, 0], [0, 2], [0, 6]]),
                  conversions_U2=np.array([[1, 0], [0, 0], [0, 1], [0, 0]]))
    ctr, ctcvr = lifts("old", some, BootstrapConfig(resamples=50))
    assert (ctr.cohort, ctr.metric, ctr.model_users, ctr.against_users) == ("old", "ctr", 2, 2)
    assert (ctr.model, ctr.against, ctr.lift) == pytest.approx((0.3, 0.2, 50.0))
    assert (ctcvr.metric, ctcvr.model, ctcvr.against) == ("ctcvr", pytest.approx(0.05), pytest.approx(0.025))
    assert (ctr.low, ctr.high) == pytest.approx((50.0, 50.0))  # each arm's users have one rate
    assert ctcvr.lift == pytest.approx(100.0) and ctcvr.low <= ctcvr.lift <= ctcvr.high
    nobody = Served(shown_U2=np.zeros((0, 2)), clicks_U2=np.zeros((0, 2)), conversions_U2=np.zeros((0, 2)))
    empty = lifts("new", nobody)[0]
    assert (empty.model, empty.lift, empty.low, empty.model_users) == (None, None, None, 0)
    text = lifts_csv([ctr, empty]).splitlines()
    assert text[0] == "cohort,metric,model_users,against_users,model,against,lift,low,high"
    assert text[1].startswith("old,ctr,2,2,0.3,0.2,") and text[2] == "new,ctr,0,0,,,,,"
    assert format_lifts("title", [empty], 0.95).splitlines()[-1].split() == \
        ["new", "ctr", "0", "0", "-", "-", "-", "[-,", "-]"]


@pytest.mark.parametrize("paired", [False, True])
def test_the_truth_gains_over_chance_and_the_interval_says_so(world, paired):
    config = replace(CONFIG, paired=paired)
    ctr, ctcvr = lifts("all", served(world, config, "truth", "5"))
    assert 0 < ctr.low < ctr.lift < ctr.high and 0 < ctcvr.low < ctcvr.lift
    worse, _ = lifts("all", served(world, config, "5", "truth"))
    assert worse.low < worse.lift < worse.high < 0


def test_ranking_by_clicks_and_conversions_trades_clicks_for_conversions(world):
    ctr, ctcvr = lifts("all", served(world, replace(CONFIG, paired=True), "both", "truth"))
    assert ctr.high < 0 < ctcvr.low


def test_equal_rankers_gain_nothing_and_pairing_narrows_the_interval(world):
    for metric in lifts("all", served(world, CONFIG, "truth", "truth")):
        assert metric.low < 0 < metric.high
    for metric in lifts("all", served(world, replace(CONFIG, paired=True), "truth", "truth")):
        assert (metric.low, metric.lift, metric.high) == (0, 0, 0)
    apart, paired = (lifts("all", served(world, replace(CONFIG, paired=p), "truth", "5"))[0] for p in (False, True))
    assert paired.high - paired.low < apart.high - apart.low


def test_each_user_is_in_one_arm_by_a_hash_or_in_both():
    one = arms(IDS, CONFIG)
    assert (one.sum(axis=1) == 1).all() and one[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(arms(IDS[100:200], CONFIG), one[100:200])
    assert (arms(IDS, replace(CONFIG, seed=4)) != one).any()
    assert arms(IDS, replace(CONFIG, paired=True)).all()


def test_a_users_session_depends_on_no_other_user_and_follows_the_world(world):
    session = draw_session(IDS, ITEM_IDS, world, CONFIG)
    assert all(len(set(row)) == CONFIG.candidates for row in session.position_UN.tolist())
    alone = draw_session(IDS[40:42], ITEM_IDS, world, CONFIG)
    for name in ("position_UN", "click_UN", "conversion_UN"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(session, name)[40:42])
    assert not (session.conversion_UN & ~session.click_UN).any()
    ids = np.repeat(IDS.to_numpy(), CONFIG.candidates), ITEM_IDS[session.position_UN.ravel()]
    click, both = world.click_probability(*ids), world.click_probability(*ids) * world.conversion_probability(*ids)
    for happened, chance in ((session.click_UN, click), (session.conversion_UN, both)):
        assert happened.mean() == pytest.approx(chance.mean(), abs=4 * np.sqrt(chance.mean() / chance.size))
    few = draw_session(IDS[:3], ITEM_IDS[:5], world, CONFIG)
    assert few.position_UN.shape == (3, 5)
    assert few.outcomes(np.zeros((3, 5)), 9)[0].tolist() == few.click_UN.sum(axis=1).tolist()
    np.testing.assert_array_equal(few.outcomes(np.zeros((3, 5)), 1)[0], few.click_UN[:, 0])


@pytest.mark.parametrize("changes, message", [
    ({"shown": 21}, "shown 21, candidates 20"), ({"shown": 0}, "shown 0"),
    ({"rank_by": "cvr"}, "expected one of ctr, ctcvr"), ({"seed": -1}, "seed -1")])
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
