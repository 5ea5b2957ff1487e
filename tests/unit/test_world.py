"""The planted world: what its logs look like, and that its oracles tell the truth about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mail_core.errors import InputError
from mail_core.simulation.attributes import ATTRIBUTES, MISSING_LEVEL, draw_levels, level_bounds, posterior
from mail_core.simulation.draws import (BLOCK, DAY_SECONDS, Logs, Samplers, Users, calibrated, draw_conversions,
                                        draw_logs, draw_users)
from mail_core.simulation.planted import GroupSampler, Items, Stream, WorldConfig, draw_items, sigmoid
from mail_core.simulation.world import World, items_table, users_table, world_document

BLOCKS = 6


class Drawn:
    """A world of six blocks with its logs side by side; users as IDs."""

    def __init__(self, config: WorldConfig):
        self.config = config
        self.items: Items = calibrated(config, draw_items(config))
        samplers = Samplers(self.items)
        self.users: list[Users] = [draw_users(config, self.items, b, BLOCK) for b in range(BLOCKS)]
        self.logs: list[Logs] = [draw_logs(config, self.items, samplers, u, config.stream(Stream.LOGS, b))
                                 for b, u in enumerate(self.users)]

    def log(self, name: str) -> np.ndarray:
        first = [u.first_id if name.endswith("user_N") else 0 for u in self.users]
        return np.concatenate([getattr(log, name) + f if f else getattr(log, name) for log, f in zip(self.logs, first)])

    def user(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(u, name) for u in self.users])

    def save(self, folder: Path) -> str:
        (folder / "users").mkdir(parents=True)
        (folder / "world.json").write_text(world_document(self.config, self.items))
        pq.write_table(items_table(self.items), folder / "items.parquet")
        pq.write_table(pa.concat_tables([users_table(u) for u in self.users]), folder / "users" / "part-00000.parquet")
        return str(folder)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return Drawn(WorldConfig())


@pytest.fixture(scope="module")
def world(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.load(drawn.save(tmp_path_factory.mktemp("world")))


def impressions(drawn: Drawn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User IDs, item IDs, clicks."""
    return drawn.log("impression_user_N"), drawn.log("item_N") + 1, drawn.log("click_N")


def expected_auc(score: np.ndarray, truth: np.ndarray) -> float:
    """AUC over clicks in expectation: every row is a click with weight p and none with weight 1 - p."""
    labels = np.repeat([1, 0], len(truth))
    return roc_auc_score(labels, np.tile(score, 2), sample_weight=np.concatenate([truth, 1 - truth]))


def test_ctr_is_about_five_percent_for_any_seed(drawn: Drawn) -> None:
    assert drawn.log("click_N").mean() == pytest.approx(0.05, abs=0.004)
    assert Drawn(WorldConfig(seed=5, items=400)).log("click_N").mean() == pytest.approx(0.05, abs=0.005)


def test_volumes_suffice_for_the_quickstart(drawn: Drawn) -> None:
    factor = drawn.config.users / (BLOCKS * BLOCK)
    assert drawn.config.users >= 20_000
    assert factor * len(drawn.log("click_N")) > 205_000
    assert factor * len(drawn.log("btag_N")) > 1_050_000


def test_cells_profiles_and_brands_are_missing_at_the_published_rates(drawn: Drawn) -> None:
    empty = dict(zip((a.name for a in ATTRIBUTES), (drawn.user("levels_UA") == MISSING_LEVEL).mean(axis=0)))
    assert empty.pop("pvalue_level") == pytest.approx(0.54, abs=0.02)
    assert empty.pop("new_user_class_level") == pytest.approx(0.32, abs=0.02)
    assert set(empty.values()) == {0.0}
    assert 1 - drawn.user("has_profile_U").mean() == pytest.approx(0.07, abs=0.01)
    assert (drawn.items.brand_I == 0).mean() == pytest.approx(0.29, abs=0.03)


def test_attribute_levels_have_their_shares(drawn: Drawn) -> None:
    for i, attribute in enumerate(ATTRIBUTES):
        level = drawn.user("levels_UA")[:, i]
        shares = np.bincount(level[level != MISSING_LEVEL], minlength=len(attribute.shares)) / (level >= 0).sum()
        np.testing.assert_allclose(shares, attribute.shares, atol=0.025)


def test_some_users_have_no_behavior_and_the_silent_never_do(drawn: Drawn) -> None:
    everybody = np.arange(BLOCKS * BLOCK) + 1
    behaved = np.isin(everybody, drawn.log("behavior_user_N"))
    assert not behaved[drawn.user("silent_U")].any()
    assert 0.04 < 1 - behaved.mean() < 0.09
    assert np.isin(everybody, drawn.log("impression_user_N")).all()


def test_newcomers_are_in_no_log_before_the_last_day(drawn: Drawn) -> None:
    last = drawn.config.behavior_days - 1
    newcomers = np.flatnonzero(drawn.user("newcomer_U")) + 1
    assert len(newcomers) == pytest.approx(0.02 * BLOCKS * BLOCK, rel=0.3)
    for log in ("impression", "behavior"):
        day = drawn.log(f"{log}_time_N") // DAY_SECONDS
        assert (day[np.isin(drawn.log(f"{log}_user_N"), newcomers)] == last).all()
    new_item = drawn.items.newcomer_I[drawn.log("item_N")]
    assert new_item.any()
    assert (drawn.log("impression_time_N")[new_item] // DAY_SECONDS == last).all()


def test_days_end_together_and_hours_follow_the_evening(drawn: Drawn) -> None:
    shown, behaved = (drawn.log(f"{log}_time_N") for log in ("impression", "behavior"))
    assert set(shown // DAY_SECONDS) == set(range(14, 22)) and set(behaved // DAY_SECONDS) == set(range(22))
    by_hour = np.bincount(behaved % DAY_SECONDS // 3_600, minlength=24)
    assert by_hour.argmax() in (20, 21, 22) and by_hour[3] < 0.3 * by_hour[21]


def test_times_tie_within_and_across_the_logs_but_no_impression_repeats(drawn: Drawn) -> None:
    shown = list(zip(drawn.log("impression_user_N"), drawn.log("impression_time_N")))
    behaved = list(zip(drawn.log("behavior_user_N"), drawn.log("behavior_time_N")))
    assert len(set(shown)) < len(shown) and len(set(behaved)) < len(behaved)
    assert set(shown) & set(behaved)
    assert len(set(zip(shown, drawn.log("item_N")))) == len(shown)


def test_behaviors_follow_interest(drawn: Drawn) -> None:
    latent, categories = drawn.user("latent_UK"), drawn.items.category_CK[drawn.items.category_I]
    own = np.einsum("nk,nk->n", latent[drawn.log("behavior_user_N") - 1], categories[drawn.log("touched_N")])
    other = np.einsum("nk,nk->n", np.roll(latent, 1, axis=0)[drawn.log("behavior_user_N") - 1],
                      categories[drawn.log("touched_N")])
    assert own.mean() > 0.5 > 0.1 > abs(other.mean())


def test_a_block_depends_on_its_number_alone(drawn: Drawn) -> None:
    again = draw_users(drawn.config, drawn.items, 3, BLOCK)
    np.testing.assert_array_equal(again.latent_UK, drawn.users[3].latent_UK)
    logs = draw_logs(drawn.config, drawn.items, Samplers(drawn.items), again, drawn.config.stream(Stream.LOGS, 3))
    np.testing.assert_array_equal(logs.item_N, drawn.logs[3].item_N)
    assert not np.array_equal(drawn.users[2].latent_UK, drawn.users[3].latent_UK)


def test_click_probability_is_what_clicks_were_drawn_from(drawn: Drawn, world: World) -> None:
    users, items, clicks = impressions(drawn)
    probability = world.click_probability(users, items)
    logit = drawn.items.logit(drawn.user("latent_UK")[users - 1], items - 1)
    np.testing.assert_array_equal(probability, sigmoid(logit))
    for bucket in np.array_split(np.argsort(probability), 8):
        p = probability[bucket]
        assert clicks[bucket].mean() == pytest.approx(p.mean(), abs=4 * np.sqrt((p * (1 - p)).sum()) / len(p))


def test_conversions_follow_clicks_by_the_probability_that_the_world_keeps(drawn: Drawn, world: World) -> None:
    users, items, clicks = impressions(drawn)
    probability = world.conversion_probability(users, items)
    logit = drawn.items.conversion_logit(drawn.user("latent_UK")[users - 1], items - 1)
    np.testing.assert_array_equal(probability, sigmoid(logit))
    assert probability[clicks].mean() == pytest.approx(0.1, abs=0.01)
    converted = np.concatenate([draw_conversions(drawn.items, u, log, drawn.config.stream(Stream.CONVERSIONS, b))
                                for b, (u, log) in enumerate(zip(drawn.users, drawn.logs))])
    assert not (converted & ~clicks).any()
    for bucket in np.array_split(np.flatnonzero(clicks)[np.argsort(probability[clicks])], 4):
        p = probability[bucket]
        assert converted[bucket].mean() == pytest.approx(p.mean(), abs=4 * np.sqrt((p * (1 - p)).sum()) / len(p))
    dear = drawn.items.price_I > np.median(drawn.items.price_I)
    conversion_effect = drawn.items.conversion_effect_I
    assert conversion_effect[dear].mean() < conversion_effect[~dear].mean() - 1


def test_a_world_of_an_older_simulator_keeps_its_clicks_and_has_no_conversions(drawn: Drawn, tmp_path: Path) -> None:
    folder = Path(drawn.save(tmp_path / "world"))
    older = pq.read_table(folder / "items.parquet").drop_columns(["conversion_effect"])
    pq.write_table(older, folder / "items.parquet")
    world, one = World.load(str(folder)), np.array([1])
    assert 0 < float(world.click_probability(one, one)[0]) < 1
    with pytest.raises(InputError, match="run simulate_logs again"):
        world.conversion_probability(one, one)


def test_the_oracles_stand_in_order_and_attributes_tell_more_with_strength(tmp_path: Path) -> None:
    attribute_auc = []
    for strength in (0.0, 0.5, 1.0):
        drawn = Drawn(WorldConfig(attribute_strength=strength))
        world = World.load(drawn.save(tmp_path / str(strength)))
        users, items, _ = (column[::20] for column in impressions(drawn))
        truth = world.click_probability(users, items)
        quality_only = expected_auc(drawn.items.effect_I[items - 1], truth)
        attribute_auc.append(expected_auc(world.attribute_only_probability(users, items), truth))
        assert 0.86 < expected_auc(truth, truth) < 0.90
        if strength:
            assert quality_only + 0.05 < attribute_auc[-1] < expected_auc(truth, truth) - 0.02
        else:
            assert attribute_auc[-1] == pytest.approx(quality_only, abs=0.01)
    assert attribute_auc[0] + 0.08 < attribute_auc[1] < attribute_auc[2] - 0.05


def test_attribute_only_probability_is_calibrated_where_exposure_tells_nothing(world: World) -> None:
    rng = np.random.default_rng(3)
    users, items = (rng.integers(1, size + 1, 8_000) for size in (BLOCKS * BLOCK, world.config.items))
    predicted, truth = world.attribute_only_probability(users, items), world.click_probability(users, items)
    for bucket in np.array_split(np.argsort(predicted), 5):
        assert truth[bucket].mean() == pytest.approx(predicted[bucket].mean(), rel=0.12)


def test_attribute_only_probability_of_a_row_depends_on_no_other_row(drawn: Drawn, world: World) -> None:
    users, items, _ = (column[:3_000] for column in impressions(drawn))
    together, rows = world.attribute_only_probability(users, items), [2_999, 7, 1_500]
    np.testing.assert_allclose(world.attribute_only_probability(users[rows], items[rows]), together[rows], rtol=1e-9)
    heavy = world.attribute_only_probability(np.repeat(users[7], 2_500), items[:2_500])  # one user, several steps
    assert heavy[7] == pytest.approx(together[7], rel=1e-9)


@pytest.mark.parametrize("strength", [0.3, 0.7, 0.95])
def test_importance_sampling_agrees_with_integration_over_a_grid(strength: float) -> None:
    weights_AK = np.zeros((len(ATTRIBUTES), 2))
    weights_AK[:, 0], weights_AK[:, 1] = np.cos(np.arange(len(ATTRIBUTES))), np.sin(np.arange(len(ATTRIBUTES)))
    rng = np.random.default_rng(0)
    latent_UK = rng.standard_normal((12, 2))
    levels_UA = draw_levels(rng, latent_UK, weights_AK, strength)
    levels_UA[0] = MISSING_LEVEL  # nothing observed: the prior
    lower_UA, upper_UA = level_bounds(levels_UA)
    sample = posterior(lower_UA, upper_UA, weights_AK, strength, rng.standard_normal((4_000, 2)))

    axis = np.linspace(-5, 5, 301)
    grid_GK = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    item_K = np.array([1.2, -0.7])
    for u in range(12):
        density_G = np.exp(-0.5 * (grid_GK ** 2).sum(1))
        for a in range(len(ATTRIBUTES)):
            center_G, noise = strength * grid_GK @ weights_AK[a], np.sqrt(1 - strength ** 2)
            density_G *= norm.cdf((upper_UA[u, a] - center_G) / noise) - norm.cdf((lower_UA[u, a] - center_G) / noise)
        exact = (density_G * sigmoid(grid_GK @ item_K - 2)).sum() / density_G.sum()
        estimate = (sample.weight_UP[u] * sigmoid(sample.latent_UPK[u] @ item_K - 2)).sum()
        assert estimate == pytest.approx(exact, rel=0.03), u


def test_a_group_sampler_draws_by_weight_within_the_group_and_never_weight_zero() -> None:
    group, weight = np.array([1, 0, 1, 0, 1]), np.array([3.0, 1.0, 0.0, 1.0, 1.0])
    drawn = GroupSampler(group, weight, 2).draw(np.random.default_rng(1), np.repeat([0, 1], 20_000))
    assert set(drawn[:20_000]) == {1, 3} and set(drawn[20_000:]) == {0, 4}
    assert (drawn[20_000:] == 0).mean() == pytest.approx(0.75, abs=0.02)


def test_unknown_ids_are_named(world: World) -> None:
    with pytest.raises(InputError, match=r"user 999999 \(row 1\)"):
        world.click_probability(np.array([1, 999_999]), np.array([1, 1]))
    with pytest.raises(InputError, match=r"item 0 \(row 0\)"):
        world.attribute_only_probability(np.array([1]), np.array([0]))
    with pytest.raises(InputError, match="one length"):
        world.click_probability(np.array([1, 2]), np.array([1]))


def test_a_folder_without_a_finished_world_is_refused(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="world.json"):
        World.load(str(tmp_path / "nowhere"))
    folder = Path(drawn.save(tmp_path / "world"))
    (folder / "world.json").write_text('{"format": "something-else"}')
    with pytest.raises(InputError, match="something-else"):
        World.load(str(folder))


@pytest.mark.parametrize("setting", [{"users": 0}, {"items": 3}, {"days": 1}, {"attribute_strength": 1.5}, {"seed": -1},
                                     {"impressions_per_user": 0.5}])
def test_settings_out_of_range_are_named(setting: dict) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        replace(WorldConfig(), **setting)
