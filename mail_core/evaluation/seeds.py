"""What several seeds say together: mean and spread of a figure, paired differences with a t-interval, closed gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
from scipy import stats

from mail_core.evaluation.metrics import relative_improvement

CONFIDENCE = 0.95

Scores = Mapping[int, float]
"""Seed -> a figure of the run with that seed."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds."""

    seeds: int
    mean: float
    sd: float | None
    """Standard deviation (n - 1); None for one seed."""


@dataclass(frozen=True, kw_only=True)
class SeedDifference:
    """A row less its reference, over the seeds that both have."""

    seeds: int
    mean: float
    low: float | None
    """Ends of the two-sided t-interval of the mean at CONFIDENCE; None for one seed."""
    high: float | None
    ri: float | None
    """RI of the means over these seeds, in per cent."""


@dataclass(frozen=True, kw_only=True)
class ClosedShare:
    """How much of the way from a tower alone to its oracle a method goes."""

    seeds: int
    share: float | None
    """(method - alone) / (oracle - alone) of the means; None where the oracle is no better than the tower alone."""
    low: float | None
    """Ends of the interval of (method - alone), each divided by the mean gap, which is taken as known."""
    high: float | None


def spread(scores: Scores) -> Spread | None:
    """Mean and standard deviation over seeds; None without any."""
    values = np.array(list(scores.values()), dtype=np.float64)
    if not len(values):
        return None
    return Spread(seeds=len(values), mean=float(values.mean()),
                  sd=float(values.std(ddof=1)) if len(values) > 1 else None)


def paired_difference(scores: Scores, reference: Scores) -> SeedDifference | None:
    """`scores - reference`, seed by seed; None without a common seed."""
    seeds = sorted(set(scores) & set(reference))
    if not seeds:
        return None
    own, other = (np.array([each[seed] for seed in seeds], dtype=np.float64) for each in (scores, reference))
    mean, half = float((own - other).mean()), None
    if len(seeds) > 1:
        error = float((own - other).std(ddof=1)) / len(seeds) ** 0.5
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * error
    return SeedDifference(seeds=len(seeds), mean=mean, low=None if half is None else mean - half,
                          high=None if half is None else mean + half,
                          ri=relative_improvement(float(other.mean()), float(own.mean())))


def closed_share(scores: Scores, alone: Scores, oracle: Scores) -> ClosedShare | None:
    """The share of the gap between `alone` and `oracle` that `scores` closes, over the seeds that all three have."""
    seeds = set(scores) & set(alone) & set(oracle)
    if not seeds:
        return None
    method, tower, best = ({seed: each[seed] for seed in seeds} for each in (scores, alone, oracle))
    gain, gap = paired_difference(method, tower), paired_difference(best, tower)
    assert gain is not None and gap is not None
    shares = [None if value is None or gap.mean <= 0 else value / gap.mean
              for value in (gain.mean, gain.low, gain.high)]
    return ClosedShare(seeds=len(seeds), share=shares[0], low=shares[1], high=shares[2])
