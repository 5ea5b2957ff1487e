"""Two models on the same rows: paired differences with a bootstrap interval over users.

Rows of a user are not independent, so whole users are drawn.

Shapes: B rows, U users, R resamples, G groups of tied scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from mail_core.errors import InputError
from mail_core.evaluation.metrics import auc, gauc, user_aucs


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How the interval is drawn."""

    resamples: int = 200
    """R, multinomial draws of U users out of U."""
    confidence: float = 0.95
    """Share of the resamples between the interval's two ends (percentile interval)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise InputError(f"bootstrap: {self.resamples} resamples, confidence {self.confidence} (expected 1 or "
                             "more, and a share between 0 and 1)")


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """`model - against` of one metric, with its interval; None where undefined."""

    cohort: str
    metric: str
    """auc, gauc or logloss."""
    difference: float | None
    low: float | None
    high: float | None


NO_DIFFERENCE = PairedDifference(cohort="", metric="", difference=None, low=None, high=None)
"""Of what was not compared."""


def paired_differences(cohort: str, labels: np.ndarray, probabilities: np.ndarray, against: np.ndarray,
                       user_keys: np.ndarray, config: BootstrapConfig = BootstrapConfig()) -> list[PairedDifference]:
    """Difference of AUC and of GAUC between two models on the same (B,) rows, `probabilities` less `against`."""
    labels = np.asarray(labels)
    scores = [np.asarray(p, dtype=np.float64) for p in (probabilities, against)]
    differences = []
    metrics = (("auc", auc, _weighted_auc), ("gauc", lambda y, p: gauc(y, p, user_keys), _weighted_gauc))
    for metric, point, prepare in metrics:
        values = [point(labels, p) for p in scores] if len(labels) else [None, None]
        if values[0] is None or values[1] is None:
            differences.append(PairedDifference(cohort=cohort, metric=metric, difference=None, low=None, high=None))
            continue
        evaluators = [prepare(labels, p, user_keys) for p in scores]
        drawn = np.array([evaluators[0](weights) - evaluators[1](weights) for weights in _draws(user_keys, config)])
        differences.append(_difference(cohort, metric, values[0] - values[1], drawn, config))
    return differences


def loss_difference(cohort: str, labels: np.ndarray, probabilities: np.ndarray, against: np.ndarray,
                    user_keys: np.ndarray, config: BootstrapConfig = BootstrapConfig()) -> PairedDifference:
    """Difference of log loss on the same (B,) rows, `probabilities` less `against`: below 0 the model is better.

    Probabilities of 0 and 1 count as the float64 next to them.
    """
    if not len(labels):
        return PairedDifference(cohort=cohort, metric="logloss", difference=None, low=None, high=None)
    excess_B = _losses(labels, probabilities) - _losses(labels, against)
    user_B = np.unique(user_keys, return_inverse=True)[1]
    excess_U, rows_U = np.bincount(user_B, weights=excess_B), np.bincount(user_B)
    drawn = np.array([weights @ excess_U / (weights @ rows_U) for weights in _draws(user_keys, config)])
    return _difference(cohort, "logloss", float(excess_B.mean()), drawn, config)


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float64).eps
    p_B = np.clip(np.asarray(probabilities, dtype=np.float64), tiny, 1 - tiny)
    return -np.where(np.asarray(labels) > 0, np.log(p_B), np.log1p(-p_B))


def _difference(cohort: str, metric: str, difference: float, drawn: np.ndarray,
                config: BootstrapConfig) -> PairedDifference:
    """With the percentile interval of the (R,) drawn differences; NaN where a draw has one class."""
    tail = (1 - config.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if np.isfinite(drawn).any() else (None, None)
    return PairedDifference(cohort=cohort, metric=metric, difference=difference,
                            low=None if low is None else float(low), high=None if high is None else float(high))


def _draws(user_keys: np.ndarray, config: BootstrapConfig):
    """R times (U,) how often each user is drawn; the same draws for every model and metric."""
    users = len(np.unique(user_keys))
    generator = np.random.default_rng(config.seed)
    for _ in range(config.resamples):
        yield np.bincount(generator.integers(0, users, users), minlength=users)


def _weighted_auc(labels: np.ndarray, scores: np.ndarray, user_keys: np.ndarray) -> Callable[[np.ndarray], float]:
    """(U,) weights of users -> AUC of the weighted rows, NaN with one class. The sort is done once, here."""
    order = np.argsort(scores, kind="stable")
    user_B = np.unique(user_keys, return_inverse=True)[1][order]
    positive_B = labels[order] > 0
    first_G = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])

    def evaluate(weights_U: np.ndarray) -> float:
        weights_B = weights_U[user_B].astype(np.float64)
        positive_G = np.add.reduceat(weights_B * positive_B, first_G)
        negative_G = np.add.reduceat(weights_B * ~positive_B, first_G)
        below_G = np.cumsum(negative_G) - negative_G
        pairs = positive_G.sum() * negative_G.sum()
        return float(positive_G @ (below_G + negative_G / 2) / pairs) if pairs else float("nan")

    return evaluate


def _weighted_gauc(labels: np.ndarray, scores: np.ndarray, user_keys: np.ndarray) -> Callable[[np.ndarray], float]:
    """(U,) weights of users -> GAUC: the users' own AUCs do not depend on the draw."""
    _, auc_U, rows_U = user_aucs(labels, scores, user_keys)
    defined_U = ~np.isnan(auc_U)

    def evaluate(weights_U: np.ndarray) -> float:
        mass = (weights_U * rows_U)[defined_U]
        return float(mass @ auc_U[defined_U] / mass.sum()) if mass.any() else float("nan")

    return evaluate
