"""The items' side of the planted world: categories, brands and items in the latent space, chances to click and convert.

Everything is a pure function of the configuration (one seed): the driver makes it once and ships it to the executors.
Sums over the latent dimensions use einsum, not BLAS, whose rounding may depend on the number of threads.

Shapes: I items, C categories, K latent dimensions, A attributes, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mail_core.errors import InputError
from mail_core.simulation.attributes import ATTRIBUTES

NO_BRAND = 0
"""Brand of an item without one; brands count from 1."""


class Stream(IntEnum):
    """Independent random streams; a stream's block is seeded by (seed, stream, block) and by nothing else."""

    ITEMS = 0
    CALIBRATION = 1
    USERS = 2
    LOGS = 3
    ORACLE = 4
    CONVERSION_EFFECTS = 5
    CONVERSIONS = 6
    ITEM_CELLS = 7
    PROFILE_CELLS = 8
    IMPRESSION_CELLS = 9
    BEHAVIOR_CELLS = 10


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A planted world. The defaults were fixed by the oracles alone, before any model was trained on them."""

    users: int = 20_000
    items: int = 4_000
    days: int = 8
    """Days with impressions, the last one ending the schema's window."""
    behavior_days: int = 22
    """Days with behaviours, ending the same day."""
    impressions_per_user: float = 11.0
    """Mean of a user's impressions over all days; everybody but the newcomers has at least one, newcomers too."""
    behaviors_per_user: float = 60.0
    """Mean of a user's behaviours over all days, of users who have any."""
    attribute_strength: float = 0.5
    """S in [0, 1]: how much of an attribute's score is interest; the rest is noise."""
    seed: int = 0
    dimensions: int = 6
    """K, of the interest space."""
    decay: float = 0.45
    """Ratio of the items' spread in one latent direction to the one before: few directions carry most of the taste."""
    ctr: float = 0.05
    """The intercept of the click function is calibrated to this mean."""
    interest_scale: float = 1.75
    """Standard deviation of the interest part of a click's logit, users and items drawn at random."""
    quality_scale: float = 0.5
    """Standard deviation of the items' quality in the logit."""
    popularity_scale: float = 0.25
    """Weight in the logit of the items' standardised log popularity."""
    cvr: float = 0.1
    """The intercept of the conversion function is calibrated to this mean over clicks."""
    conversion_interest_scale: float = 0.5
    """Standard deviation of the interest part of a conversion's logit, users and items drawn at random."""
    price_scale: float = 0.75
    """Weight in a conversion's logit of the items' standardised log price: dear ones are bought less."""
    conversion_quality_scale: float = 0.25
    """Standard deviation of the rest of the items' part in a conversion's logit."""
    exposure_interest: float = 0.25
    """Share of impressions that follow the user's interest; the others follow popularity."""
    behavior_interest: float = 0.8
    """Share of behaviours that follow the user's interest; the others follow popularity."""
    focus: float = 1.0
    """Sharpness of the interest-driven choice of category (and of item, for behaviours)."""
    silent_share: float = 0.05
    """Share of users without any behaviour."""
    newcomer_share: float = 0.02
    """Share of users, and of items, that first appear on the last day."""
    no_profile_share: float = 0.07
    """Share of users without a profile row."""

    def __post_init__(self) -> None:
        for name, least in (("users", 1), ("items", 20), ("days", 2), ("seed", 0), ("impressions_per_user", 1),
                            ("behaviors_per_user", 0), ("behavior_days", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.attribute_strength <= 1:
            raise InputError(f"attribute_strength is {self.attribute_strength}; expected a number in [0, 1]")

    def stream(self, stream: Stream, block: int = 0) -> np.random.Generator:
        """The generator of one block of one stream."""
        return np.random.default_rng([self.seed, stream, block])


class GroupSampler:
    """Draws a member of a given group by weight: members sorted by group, cumulative weights offset by group."""

    def __init__(self, group_I: np.ndarray, weight_I: np.ndarray, groups: int):
        self.order_I = np.argsort(group_I, kind="stable")
        sizes = np.bincount(group_I, minlength=groups)
        self.last_G = np.cumsum(sizes) - 1
        weight, group = weight_I[self.order_I], group_I[self.order_I]
        cumulative = np.cumsum(weight)
        before = np.concatenate([[0.0], cumulative[self.last_G]])
        total = np.diff(before)
        assert (sizes > 0).all() and (total > 0).all(), "every group needs a member that can be drawn"
        self.cumulative_I = group + np.minimum((cumulative - before[group]) / total[group], 1.0)
        self.cumulative_I[self.last_G] = np.arange(groups) + 1.0

    def draw(self, rng: np.random.Generator, group_N: np.ndarray) -> np.ndarray:
        """(N,) one member's index for each entry of `group_N`."""
        position = np.searchsorted(self.cumulative_I, group_N + rng.random(group_N.shape), side="right")
        return self.order_I[np.minimum(position, self.last_G[group_N])]


@dataclass(frozen=True, kw_only=True)
class Items:
    """The items' world. Item i has ID i + 1, category c has ID c + 1."""

    latent_IK: np.ndarray
    category_I: np.ndarray
    brand_I: np.ndarray
    """Brand ID, NO_BRAND for none."""
    effect_I: np.ndarray
    """Quality and popularity in a click's logit."""
    weight_I: np.ndarray
    """Popularity (Zipf); sums to 1."""
    newcomer_I: np.ndarray
    """bool: shown on the last day only."""
    price_I: np.ndarray
    campaign_I: np.ndarray
    customer_I: np.ndarray
    category_CK: np.ndarray
    attribute_weights_AK: np.ndarray
    interest_scale: float
    """Factor of u . z in a click's logit."""
    conversion_interest_scale: float
    """Factor of u . z in a conversion's logit."""
    conversion_effect_I: np.ndarray
    """The items' part in a conversion's logit, the intercept in it once it is calibrated."""
    intercept: float = 0.0

    def logit(self, latent_NK: np.ndarray, item_N: np.ndarray) -> np.ndarray:
        """(N,) logit of the click probability of users with these latents on these items (indices)."""
        interest_N = np.einsum("nk,nk->n", latent_NK, self.latent_IK[item_N])
        return self.intercept + self.interest_scale * interest_N + self.effect_I[item_N]

    def conversion_logit(self, latent_NK: np.ndarray, item_N: np.ndarray) -> np.ndarray:
        """(N,) logit of the probability that a conversion follows a click of users with these latents on these items.
        """
        interest_N = np.einsum("nk,nk->n", latent_NK, self.latent_IK[item_N])
        return self.conversion_interest_scale * interest_N + self.conversion_effect_I[item_N]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows ** 2).sum(axis=1, keepdims=True))


def draw_items(config: WorldConfig) -> Items:
    """The items' world of a configuration, intercept not yet calibrated."""
    rng = config.stream(Stream.ITEMS)
    count = config.items
    categories = max(4, min(int(2.5 * count ** 0.58), count // 4))  # about Alimama's ratio at its size
    spread_K = config.decay ** np.arange(config.dimensions)
    spread_K /= np.sqrt((spread_K ** 2).sum())  # so that a row drawn with it has a mean squared length of 1
    category_CK = _unit(rng.standard_normal((categories, config.dimensions)) * spread_K)
    shares = 1 / (rng.permutation(categories) + 5.0) ** 0.7
    category_I = np.concatenate([np.arange(categories), np.arange(categories), rng.choice(
        categories, size=count - 2 * categories, p=shares / shares.sum())])
    brand_I, brand_latents = _draw_brands(rng, category_I, spread_K)
    own_IK = rng.standard_normal((count, config.dimensions)) * spread_K
    # One length for all: otherwise long items, shown mostly to those who love them, would be known by their ID alone.
    latent_IK = _unit(np.sqrt(0.6) * category_CK[category_I] + np.sqrt(0.25) * brand_latents[brand_I]
                      + np.sqrt(0.15) * own_IK)
    weight_I = 1 / (rng.permutation(count) + 10.0)
    weight_I /= weight_I.sum()
    popularity_I = (np.log(weight_I) - np.log(weight_I).mean()) / np.log(weight_I).std()
    newcomer_I = rng.random(count) < config.newcomer_share
    newcomer_I[:categories] = False  # every category can be drawn on every day
    newcomer_I[-1] |= config.newcomer_share > 0
    # Every attribute loads on the main directions, with signs of its own: no world owes its strength to a lucky draw.
    directions_AK = rng.choice([-1.0, 1.0], (len(ATTRIBUTES), config.dimensions)) * spread_K
    campaign_I = rng.integers(max(1, count // 2), size=count) + 1
    effect_I = config.quality_scale * rng.standard_normal(count) + config.popularity_scale * popularity_I
    price_I = np.round(np.exp(rng.normal(5.0, 1.2, count)) + 0.01, 2)
    return Items(latent_IK=latent_IK, category_I=category_I, brand_I=brand_I, weight_I=weight_I, newcomer_I=newcomer_I,
                 effect_I=effect_I,
                 price_I=price_I, conversion_effect_I=_conversion_effects(config, price_I),
                 campaign_I=campaign_I, customer_I=(campaign_I - 1) // 2 + 1, category_CK=category_CK,
                 attribute_weights_AK=_unit(directions_AK), interest_scale=config.interest_scale,
                 conversion_interest_scale=config.conversion_interest_scale)


def _conversion_effects(config: WorldConfig, price_I: np.ndarray) -> np.ndarray:
    """From a stream of their own, so that they move nothing else of the world."""
    quality_I = config.stream(Stream.CONVERSION_EFFECTS).standard_normal(len(price_I))
    dearness_I = (np.log(price_I) - np.log(price_I).mean()) / np.log(price_I).std()
    return config.conversion_quality_scale * quality_I - config.price_scale * dearness_I


def _draw_brands(rng: np.random.Generator, category_I: np.ndarray,
                 spread_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brand of each item (29 % none) and the brands' offsets in the latent space, row NO_BRAND zero."""
    brands_C = np.maximum(1, np.bincount(category_I) // 8)
    first_C = np.cumsum(brands_C) - brands_C + 1
    # Squaring a uniform draw makes a category's first brands larger than its last ones.
    within_I = (brands_C[category_I] * rng.random(len(category_I)) ** 2).astype(np.int64)
    brand_I = np.where(rng.random(len(category_I)) < 0.29, NO_BRAND, first_C[category_I] + within_I)
    latents = rng.standard_normal((int(brands_C.sum()) + 1, len(spread_K))) * spread_K
    latents[NO_BRAND] = 0.0
    return brand_I, latents
