"""User attributes of the planted world: noisy, quantised functions of the latent interest, and what they tell about it.

Shapes: U users, K latent dimensions, A attributes, P particles.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import ndtr

MISSING_LEVEL = -1
NOISE_FLOOR = 0.05
"""Least noise that the posterior assumes: at strength 1 the intervals are hard and importance weights would die out."""


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One profile column."""

    name: str
    first_value: int
    """Value of level 0; the values are consecutive."""
    shares: tuple[float, ...]
    """Share of users at each level."""
    empty_share: float = 0.0
    """Share of profile rows whose cell is empty."""

    @property
    def bounds(self) -> np.ndarray:
        """(levels + 1,) interval bounds on the standard normal score, from -inf to inf."""
        inner = [NormalDist().inv_cdf(min(share, 1 - 1e-12)) for share in np.cumsum(self.shares)[:-1]]
        return np.array([-np.inf, *inner, np.inf])


def _even(levels: int) -> tuple[float, ...]:
    return (1 / levels,) * levels


ATTRIBUTES = (
    Attribute(name="cms_segid", first_value=0, shares=_even(97)),
    Attribute(name="cms_group_id", first_value=0, shares=_even(13)),
    Attribute(name="final_gender_code", first_value=1, shares=(0.36, 0.64)),
    Attribute(name="age_level", first_value=0, shares=(0.02, 0.10, 0.22, 0.26, 0.22, 0.14, 0.04)),
    Attribute(name="pvalue_level", first_value=1, shares=(0.3, 0.5, 0.2), empty_share=0.54),
    Attribute(name="shopping_level", first_value=1, shares=(0.15, 0.25, 0.6)),
    Attribute(name="occupation", first_value=0, shares=(0.85, 0.15)),
    Attribute(name="new_user_class_level", first_value=1, shares=(0.2, 0.4, 0.25, 0.15), empty_share=0.32),
)
"""The eight profile columns of Alimama with its numbers of levels and its shares of empty cells."""


def draw_levels(rng: np.random.Generator, latent_UK: np.ndarray, weights_AK: np.ndarray,
                strength: float) -> np.ndarray:
    """(U, A) int levels of strength * (w . u) + sqrt(1 - strength²) * noise; MISSING_LEVEL for empty cells."""
    score_UA = strength * np.einsum("uk,ak->ua", latent_UK, weights_AK)
    score_UA += np.sqrt(1 - strength ** 2) * rng.standard_normal(score_UA.shape)
    empty_UA = rng.random(score_UA.shape) < np.array([a.empty_share for a in ATTRIBUTES])
    columns = [np.searchsorted(a.bounds[1:-1], score_UA[:, i], side="right") for i, a in enumerate(ATTRIBUTES)]
    return np.where(empty_UA, MISSING_LEVEL, np.stack(columns, axis=1)).astype(np.int64)


def level_bounds(levels_UA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U, A) lower and upper bounds on the scores; (-inf, inf) where the cell is empty."""
    lower_UA, upper_UA = (np.full(levels_UA.shape, v) for v in (-np.inf, np.inf))
    for i, attribute in enumerate(ATTRIBUTES):
        known = levels_UA[:, i] != MISSING_LEVEL
        lower_UA[known, i] = attribute.bounds[levels_UA[known, i]]
        upper_UA[known, i] = attribute.bounds[levels_UA[known, i] + 1]
    return lower_UA, upper_UA


@dataclass(frozen=True, kw_only=True)
class Particles:
    """A weighted sample of the posterior of the latents given the attributes."""

    latent_UPK: np.ndarray
    weight_UP: np.ndarray
    """Sums to 1 for each user."""


def posterior(lower_UA: np.ndarray, upper_UA: np.ndarray, weights_AK: np.ndarray, strength: float,
              normal_PK: np.ndarray) -> Particles:
    """Importance sampling of u ~ N(0, I) given that each score lies in its interval.

    The proposal is the Gaussian posterior under moment-matched observations of the scores, widened; the weights are
    prior x interval probabilities / proposal. Attributes with the interval (-inf, inf) drop out of both.

    Args:
        lower_UA, upper_UA: bounds of the observed scores.
        weights_AK: unit vectors of the attributes' directions.
        strength: share S of the score that is interest.
        normal_PK: standard normal draws, the same for every user, so that a user's answer depends on nobody else's.
    """
    noise = max(np.sqrt(1 - strength ** 2), NOISE_FLOOR)
    interest = np.sqrt(1 - noise ** 2)
    value_UA, precision_UA = _matched_observations(lower_UA, upper_UA, noise)
    information_UKK = interest ** 2 * np.einsum("ua,aj,ak->ujk", precision_UA, weights_AK, weights_AK)
    covariance_UKK = np.linalg.inv(np.eye(weights_AK.shape[1]) + information_UKK)
    mean_UK = np.einsum("ujk,ua,ak->uj", covariance_UKK, precision_UA * value_UA, interest * weights_AK)
    root_UKK = np.linalg.cholesky(covariance_UKK * 1.2)
    latent_UPK = mean_UK[:, None] + np.einsum("ujk,pk->upj", root_UKK, normal_PK)
    log_weight_UP = 0.5 * (normal_PK ** 2).sum(1) - 0.5 * (latent_UPK ** 2).sum(2)
    for i in range(weights_AK.shape[0]):
        center_UP = interest * (latent_UPK @ weights_AK[i])
        inside_UP = _interval((lower_UA[:, i, None] - center_UP) / noise, (upper_UA[:, i, None] - center_UP) / noise)
        log_weight_UP += np.log(np.maximum(inside_UP, 1e-300))
    weight_UP = np.exp(log_weight_UP - log_weight_UP.max(axis=1, keepdims=True))
    return Particles(latent_UPK=latent_UPK, weight_UP=weight_UP / weight_UP.sum(axis=1, keepdims=True))


def _interval(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """P(lower < N(0, 1) < upper), taken in the lower tail, where differences keep their digits."""
    flip = lower > 0
    return ndtr(np.where(flip, -lower, upper)) - ndtr(np.where(flip, -upper, lower))


def _matched_observations(lower_UA: np.ndarray, upper_UA: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Value and precision (given u) of the Gaussian observation with the interval's moments under a N(0, 1) score."""
    density_lower, density_upper = (np.exp(-0.5 * b ** 2) / np.sqrt(2 * np.pi) for b in (lower_UA, upper_UA))
    mass = np.maximum(_interval(lower_UA, upper_UA), 1e-300)
    finite_lower, finite_upper = (np.where(np.isfinite(b), b, 0.0) for b in (lower_UA, upper_UA))
    mean_UA = (density_lower - density_upper) / mass
    variance_UA = 1 + (finite_lower * density_lower - finite_upper * density_upper) / mass - mean_UA ** 2
    variance_UA = np.clip(variance_UA, 1e-6, 1 - 1e-9)
    known_UA = np.isfinite(lower_UA) | np.isfinite(upper_UA)
    spread_UA = variance_UA / (1 - variance_UA)
    return np.where(known_UA, mean_UA * (1 + spread_UA), 0.0), np.where(known_UA, 1 / (spread_UA + noise ** 2), 0.0)
