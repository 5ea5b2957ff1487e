"""Users and their logs, a block of users at a time: NumPy only, each block a function of (configuration, items, block).

Times are seconds from the first local midnight of the behaviour window. Nothing is kept of users x items.

Shapes: U users of a block, N rows, K latent dimensions, A attributes, C categories, M candidate items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mail_core.simulation.attributes import draw_levels
from mail_core.simulation.planted import GroupSampler, Items, Stream, WorldConfig, sigmoid

BLOCK = 1_000
"""Users of a block."""
DAY_SECONDS = 86_400
PIDS = ("430548_1007", "430539_1007")
BEHAVIOR_TYPES = ("pv", "cart", "fav", "buy")
_BEHAVIOR_SHARES = (0.95, 0.02, 0.015, 0.015)
_HOURS = np.array([2, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 8, 9, 8, 5], dtype=float)
_TIES = 0.05  # share of rows that take the time of the user's row before, of either log
_CANDIDATES = 4


@dataclass(frozen=True, kw_only=True)
class Users:
    """A block of users; user u has ID first_id + u."""

    first_id: int
    latent_UK: np.ndarray
    levels_UA: np.ndarray
    activity_U: np.ndarray
    """Positive, mean 1, skewed."""
    has_profile_U: np.ndarray
    newcomer_U: np.ndarray
    """bool: in no log before the last day."""
    silent_U: np.ndarray
    """bool: no behaviour at all."""


@dataclass(frozen=True, kw_only=True)
class Logs:
    """A block's logs in order of time; users and items as indices."""

    impression_user_N: np.ndarray
    impression_time_N: np.ndarray
    item_N: np.ndarray
    pid_N: np.ndarray
    click_N: np.ndarray
    behavior_user_N: np.ndarray
    behavior_time_N: np.ndarray
    btag_N: np.ndarray
    touched_N: np.ndarray
    """Items behind the behaviours."""


class Samplers:
    """Ways to draw items; made once a process, they are as large as the items."""

    def __init__(self, items: Items):
        categories = len(items.category_CK)
        one_group, known_weight = np.zeros_like(items.category_I), np.where(items.newcomer_I, 0.0, items.weight_I)
        self.known_by_category = GroupSampler(items.category_I, known_weight, categories)
        self.all_by_category = GroupSampler(items.category_I, items.weight_I, categories)
        self.known = GroupSampler(one_group, known_weight, 1)
        self.all = GroupSampler(one_group, items.weight_I, 1)
        # Tempered, so that interest and not a category's size decides most choices.
        self.log_popularity_C = 0.5 * np.log(np.bincount(items.category_I, weights=known_weight, minlength=categories))


def draw_users(config: WorldConfig, items: Items, block: int, size: int, stream: Stream = Stream.USERS) -> Users:
    """`size` users of block `block`."""
    rng = config.stream(stream, block)
    latent_UK = rng.standard_normal((size, config.dimensions))
    activity_U = rng.gamma(1.5, 1 / 1.5, size)
    newcomer_U, silent_U, no_profile_U = (rng.random(size) < share for share in (
        config.newcomer_share, config.silent_share, config.no_profile_share))
    levels_UA = draw_levels(rng, latent_UK, items.attribute_weights_AK, config.attribute_strength)
    return Users(first_id=block * BLOCK + 1, latent_UK=latent_UK, levels_UA=levels_UA, activity_U=activity_U,
                 has_profile_U=~no_profile_U, newcomer_U=newcomer_U, silent_U=silent_U)


def draw_logs(config: WorldConfig, items: Items, samplers: Samplers, users: Users, rng: np.random.Generator) -> Logs:
    """Behaviours and impressions of a block of users."""
    last = config.behavior_days - 1
    window = max(0, config.behavior_days - config.days)  # impressions begin this many days after the behaviours
    length_U = np.where(users.newcomer_U, 1, config.days)
    shown_U = 1 + rng.poisson(users.activity_U * (config.impressions_per_user - 1) * length_U / config.days)
    span_U = np.where(users.newcomer_U, 1 / config.behavior_days, 1.0)
    behaved_U = rng.poisson(users.activity_U * config.behaviors_per_user * span_U) * ~users.silent_U
    index = np.arange(len(shown_U))
    impression_user, behavior_user = np.repeat(index, shown_U), np.repeat(index, behaved_U)
    impression_day = window + _days(rng, users.newcomer_U[impression_user], config.days)
    behavior_day = _days(rng, users.newcomer_U[behavior_user], config.behavior_days)
    if config.days > config.behavior_days:  # the window then starts with the impressions
        behavior_day, last = behavior_day + config.days - config.behavior_days, config.days - 1
    time = _times(rng, np.concatenate([impression_user, behavior_user]), np.concatenate([impression_day, behavior_day]))
    impression_time, behavior_time = np.split(time, [len(impression_user)])
    item = _shown_items(rng, config, items, samplers, users, impression_user, impression_day == last)
    # One impression a (user, time, item): repeats would read as duplicates of the log.
    _, first = np.unique(np.stack([impression_user, impression_time, item]), axis=1, return_index=True)
    first = first[np.lexsort((first, impression_time[first]))]
    impression_user, impression_time, item = impression_user[first], impression_time[first], item[first]
    probability = sigmoid(items.logit(users.latent_UK[impression_user], item))
    touched = _touched_items(rng, config, items, samplers, users, behavior_user)
    order = np.argsort(behavior_time, kind="stable")
    return Logs(impression_user_N=impression_user, impression_time_N=impression_time, item_N=item,
                pid_N=(rng.random(len(item)) < 0.4).astype(np.int64), click_N=rng.random(len(item)) < probability,
                behavior_user_N=behavior_user[order], behavior_time_N=behavior_time[order],
                btag_N=rng.choice(len(BEHAVIOR_TYPES), size=len(order), p=_BEHAVIOR_SHARES),
                touched_N=touched[order])


def draw_conversions(items: Items, users: Users, logs: Logs, rng: np.random.Generator) -> np.ndarray:
    """bool (N,): the block's clicks that a conversion follows."""
    logit_N = items.conversion_logit(users.latent_UK[logs.impression_user_N], logs.item_N)
    return logs.click_N & (rng.random(len(logit_N)) < sigmoid(logit_N))


def calibrated(config: WorldConfig, items: Items) -> Items:
    """The items with the intercepts at which a sample of impressions has the configured mean click probability, and its
    clicks the configured mean conversion probability."""
    samplers, click, conversion = Samplers(items), [], []
    for block in range(4):
        users = draw_users(config, items, 2 * block, BLOCK, stream=Stream.CALIBRATION)
        logs = draw_logs(config, items, samplers, users, config.stream(Stream.CALIBRATION, 2 * block + 1))
        latent_NK = users.latent_UK[logs.impression_user_N]
        click.append(items.logit(latent_NK, logs.item_N))
        conversion.append(items.conversion_logit(latent_NK, logs.item_N))
    click_N, conversion_N = np.concatenate(click), np.concatenate(conversion)
    intercept = _intercept(click_N, None, config.ctr)
    of_conversions = _intercept(conversion_N, sigmoid(click_N + intercept), config.cvr)
    return replace(items, intercept=intercept, conversion_effect_I=items.conversion_effect_I + of_conversions)


def _intercept(logit_N: np.ndarray, weight_N: np.ndarray | None, mean: float) -> float:
    """What has to be added to logits for their probabilities' weighted mean to be `mean`."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        below = np.average(sigmoid(logit_N + middle), weights=weight_N) < mean
        low, high = (middle, high) if below else (low, middle)
    return low


def _days(rng: np.random.Generator, newcomer_N: np.ndarray, days: int) -> np.ndarray:
    return np.where(newcomer_N, days - 1, rng.integers(days, size=len(newcomer_N)))


def _times(rng: np.random.Generator, user_N: np.ndarray, day_N: np.ndarray) -> np.ndarray:
    """Seconds in the window: hours by the daily profile; some rows take the time of the same day's row before."""
    hour_N = rng.choice(24, size=len(user_N), p=_HOURS / _HOURS.sum())
    time_N = day_N * DAY_SECONDS + hour_N * 3_600 + rng.integers(3_600, size=len(user_N))
    order = np.lexsort((time_N, user_N))
    time, user, day = time_N[order], user_N[order], day_N[order]
    tied = np.flatnonzero((rng.random(len(time)) < _TIES)[1:] & (user[1:] == user[:-1]) & (day[1:] == day[:-1])) + 1
    time[tied] = time[tied - 1]
    time_N[order] = time
    return time_N


def _categories(rng: np.random.Generator, config: WorldConfig, items: Items, samplers: Samplers, users: Users,
                user_N: np.ndarray) -> np.ndarray:
    """(N,) an interest-driven category for each row: softmax of affinity and popularity over the categories."""
    sharpness = config.focus * items.interest_scale
    score_UC = sharpness * np.einsum("uk,ck->uc", users.latent_UK, items.category_CK) + samplers.log_popularity_C
    cumulative_UC = np.cumsum(np.exp(score_UC - score_UC.max(axis=1, keepdims=True)), axis=1)
    cumulative_UC /= cumulative_UC[:, -1:]
    row_U = np.arange(len(cumulative_UC))
    wanted_N = user_N + rng.random(len(user_N))
    position_N = np.searchsorted((cumulative_UC + row_U[:, None]).ravel(), wanted_N, side="right")
    return np.minimum(position_N - user_N * cumulative_UC.shape[1], cumulative_UC.shape[1] - 1)


def _shown_items(rng: np.random.Generator, config: WorldConfig, items: Items, samplers: Samplers, users: Users,
                 user_N: np.ndarray, last_day_N: np.ndarray) -> np.ndarray:
    """(N,) items of impressions: partly by popularity, partly by interest; newcomers on the last day only."""
    category_N, one_group_N = _categories(rng, config, items, samplers, users, user_N), np.zeros_like(user_N)
    by_interest_N = np.where(last_day_N, samplers.all_by_category.draw(rng, category_N),
                             samplers.known_by_category.draw(rng, category_N))
    by_popularity_N = np.where(last_day_N, samplers.all.draw(rng, one_group_N),
                               samplers.known.draw(rng, one_group_N))
    return np.where(rng.random(len(user_N)) < config.exposure_interest, by_interest_N, by_popularity_N)


def _touched_items(rng: np.random.Generator, config: WorldConfig, items: Items, samplers: Samplers, users: Users,
                   user_N: np.ndarray) -> np.ndarray:
    """(N,) items behind behaviours: a category by interest, then the choice among a few popular items of it."""
    category_N = _categories(rng, config, items, samplers, users, user_N)
    candidate_NM = samplers.known_by_category.draw(rng, np.repeat(category_N[:, None], _CANDIDATES, axis=1))
    affinity_NM = np.einsum("nk,nmk->nm", users.latent_UK[user_N], items.latent_IK[candidate_NM])
    # Gumbel noise makes the largest sum a draw from the softmax.
    chosen_N = (config.focus * items.interest_scale * affinity_NM + rng.gumbel(size=affinity_NM.shape)).argmax(axis=1)
    by_interest_N = candidate_NM[np.arange(len(user_N)), chosen_N]
    by_popularity_N = samplers.known.draw(rng, np.zeros_like(user_N))
    return np.where(rng.random(len(user_N)) < config.behavior_interest, by_interest_N, by_popularity_N)
