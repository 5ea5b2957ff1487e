"""Ranking and calibration metrics of one set of scored rows, by cohort (the paper's 4.1.3); None where undefined.

Shapes: B rows, U users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

CALIBRATION_BINS = 15
METRICS = ("rows", "users", "ctr", "auc", "gauc", "logloss", "ece")


@dataclass(frozen=True, kw_only=True)
class CohortMetrics:
    """The metrics of one cohort of one model."""

    cohort: str
    rows: int
    users: int
    ctr: float | None
    """Clicks per impression."""
    auc: float | None
    gauc: float | None
    """AUC of each user's own impressions, weighted by their number; users with one class are left out."""
    logloss: float | None
    """Natural logarithm, mean over rows."""
    ece: float | None
    """Expected calibration error over CALIBRATION_BINS bins of equal width."""

    def items(self) -> list[tuple[str, float | None]]:
        """(metric, value) in the order of METRICS."""
        return [(name, None if (value := getattr(self, name)) is None else float(value)) for name in METRICS]


def cohort_metrics(labels: np.ndarray, probabilities: np.ndarray, user_keys: np.ndarray,
                   cohorts: Mapping[str, np.ndarray]) -> list[CohortMetrics]:
    """Metrics of every cohort.

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) predicted CTR.
        user_keys: (B,) whatever tells users apart.
        cohorts: cohort -> (B,) bool, as of `cohort_masks`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return [metrics_of(name, labels[mask], probabilities[mask], np.asarray(user_keys)[mask])
            for name, mask in cohorts.items()]


def metrics_of(cohort: str, labels: np.ndarray, probabilities: np.ndarray, user_keys: np.ndarray) -> CohortMetrics:
    """Metrics of the rows of one cohort; the arguments are those of `cohort_metrics`."""
    # Half of the imports' time of every job, rank and worker, most of which measure nothing.
    import torch
    from sklearn.metrics import log_loss
    from torchmetrics.functional.classification import binary_calibration_error

    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not len(labels):
        return CohortMetrics(cohort=cohort, rows=0, users=0, ctr=None, auc=None, gauc=None, logloss=None, ece=None)
    return CohortMetrics(
        cohort=cohort, rows=len(labels), users=len(np.unique(user_keys)), ctr=float(np.mean(labels)),
        auc=auc(labels, probabilities), gauc=gauc(labels, probabilities, user_keys),
        logloss=float(log_loss(labels, probabilities, labels=[0, 1])),
        ece=float(binary_calibration_error(torch.tensor(probabilities), torch.tensor(labels.astype(np.int64)),
                                           n_bins=CALIBRATION_BINS)))


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve, ties counting half; None where a class is absent."""
    from sklearn.metrics import roc_auc_score  # as in metrics_of

    clicks = int(np.sum(labels))
    return float(roc_auc_score(labels, probabilities)) if 0 < clicks < len(labels) else None


def conversion_aucs(clicks: np.ndarray, conversions: np.ndarray, ctr: np.ndarray,
                    cvr: np.ndarray) -> dict[str, float | None]:
    """`ctcvr_auc`: of ctr * cvr over all (B,) rows; `cvr_auc`: of the CVR over clicked rows."""
    clicked = np.asarray(clicks) > 0
    return {"ctcvr_auc": auc(conversions, ctr * cvr), "cvr_auc": auc(conversions[clicked], cvr[clicked])}


def gauc(labels: np.ndarray, probabilities: np.ndarray, user_keys: np.ndarray) -> float | None:
    """Impression-weighted mean of the users' AUCs; None where no user has both classes."""
    users, auc_U, rows_U = user_aucs(labels, probabilities, user_keys)
    defined = ~np.isnan(auc_U)
    return float(np.average(auc_U[defined], weights=rows_U[defined])) if defined.any() else None


def user_aucs(labels: np.ndarray, probabilities: np.ndarray,
              user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users in sorted order, their AUC by the rank-sum formula (NaN with one class), and their rows: each (U,)."""
    users, user_index = np.unique(user_keys, return_inverse=True)
    order = np.lexsort((probabilities, user_index))
    user_B, score_B, label_B = user_index[order], np.asarray(probabilities)[order], np.asarray(labels)[order]
    rows_U = np.bincount(user_B, minlength=len(users))
    user_start_B = (np.cumsum(rows_U) - rows_U)[user_B]
    # Rows tied within a user share the mean of their ranks, which counts a tied pair as half.
    tie_first = np.flatnonzero(np.r_[True, (user_B[1:] != user_B[:-1]) | (score_B[1:] != score_B[:-1])][:len(user_B)])
    tie_rows = np.diff(np.r_[tie_first, len(user_B)])
    rank_B = np.repeat(tie_first + (tie_rows + 1) / 2, tie_rows) - user_start_B
    positive_U = np.bincount(user_B, weights=label_B, minlength=len(users))
    rank_sum_U = np.bincount(user_B, weights=rank_B * label_B, minlength=len(users))
    pairs_U = positive_U * (rows_U - positive_U)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc_U = np.where(pairs_U > 0, (rank_sum_U - positive_U * (positive_U + 1) / 2) / pairs_U, np.nan)
    return users, auc_U, rows_U


def relative_improvement(a: float | None, b: float | None) -> float | None:
    """RI = (b - a) / a * 100, in per cent: what b gains over a. None where either is undefined or a is 0."""
    return None if a is None or b is None or a == 0 else (b - a) / a * 100.0
