"""Lift of one ranker over another from what their users did, with a bootstrap interval over users.

Shapes: U users, 2 arms (the model's, then that of the one it is held against).
"""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from typing import Sequence

import numpy as np

from mail_core.evaluation.comparison import BootstrapConfig
from mail_core.evaluation.metrics import relative_improvement


@dataclass(frozen=True, kw_only=True)
class Served:
    """What came of the users' impressions; a user who is not in an arm has zeros there."""

    shown_U2: np.ndarray
    clicks_U2: np.ndarray
    conversions_U2: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Lift:
    """One rate of both arms in one cohort; None where undefined."""

    cohort: str
    metric: str
    """ctr (clicks an impression) or ctcvr (conversions an impression)."""
    model_users: int
    against_users: int
    model: float | None
    against: float | None
    lift: float | None
    """What `model` is above `against`, in per cent of the latter."""
    low: float | None
    high: float | None


def lifts(cohort: str, served: Served, config: BootstrapConfig = BootstrapConfig()) -> list[Lift]:
    """Lift of CTR and CTCVR among the users of a cohort.

    Users are drawn with the arm that they are in, so that one way serves users split between the arms, whose sizes
    then vary with the draw, and users in both, who stay paired. The interval is of the draws that define a lift.
    """
    counts = np.stack([served.shown_U2, served.clicks_U2, served.conversions_U2], axis=1).astype(np.float64)
    users = (served.shown_U2 > 0).sum(axis=0)
    rates, found, drawn = _rates(counts.sum(axis=0)), [], []
    if len(counts):
        rng, share_U = np.random.default_rng(config.seed), np.full(len(counts), 1 / len(counts))
        drawn = [_rates(np.tensordot(rng.multinomial(len(counts), share_U), counts, 1))
                 for _ in range(config.resamples)]
    for metric in ("ctr", "ctcvr"):
        low, high = _interval([relative_improvement(r[metric][1], r[metric][0]) for r in drawn], config.confidence)
        model, against = rates[metric]
        found.append(Lift(cohort=cohort, metric=metric, model_users=int(users[0]), against_users=int(users[1]),
                          model=model, against=against, lift=relative_improvement(against, model), low=low, high=high))
    return found


def lifts_csv(found: Sequence[Lift]) -> str:
    """A header of the fields of `Lift`, then a line each; undefined cells are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in fields(Lift)])
    writer.writerows(astuple(lift) for lift in found)
    return text.getvalue()


def _rates(counts_32: np.ndarray) -> dict[str, tuple[float | None, float | None]]:
    """(model, against) of each metric, from (shown, clicks, conversions) of both arms."""
    shown, clicks, conversions = counts_32.tolist()
    return {metric: (part[0] / shown[0] if shown[0] else None, part[1] / shown[1] if shown[1] else None)
            for metric, part in (("ctr", clicks), ("ctcvr", conversions))}


def _interval(values: Sequence[float | None], confidence: float) -> tuple[float | None, float | None]:
    defined = [value for value in values if value is not None]
    if not defined:
        return None, None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
