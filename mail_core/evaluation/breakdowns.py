"""Where a model's scores are good and where they are off: by the number of behaviours, and by what it predicts.

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mail_core.evaluation.metrics import auc

LENGTHS = (0, 1, 2, 5, 10, 20, 50)
"""First number of behaviours of each group; the last one is open."""
BINS = 10


@dataclass(frozen=True, kw_only=True)
class LengthGroup:
    """Rows with `first` to `last` behaviours."""

    first: int
    last: int | None
    """None: no end."""
    rows: int
    auc: float | None
    """None where the group has one class only."""

    @property
    def title(self) -> str:
        """`0`, `2 to 4`, `50 and more`."""
        if self.last is None:
            return f"{self.first} and more"
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Rows of neighbouring predictions."""

    rows: int
    predicted: float
    """Mean predicted CTR."""
    clicked: float
    """Clicks a row."""


def auc_by_length(labels: np.ndarray, probabilities: np.ndarray, lengths: np.ndarray) -> list[LengthGroup]:
    """AUC of the rows of each group of LENGTHS; `lengths` (B,) counts the behaviours that the model saw."""
    groups = []
    for first, following in zip(LENGTHS, (*LENGTHS[1:], None)):
        mask = (lengths >= first) & (lengths < (np.inf if following is None else following))
        groups.append(LengthGroup(first=first, last=None if following is None else following - 1, rows=int(mask.sum()),
                                  auc=auc(labels[mask], probabilities[mask])))
    return groups


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[CalibrationBin]:
    """Predicted and observed CTR of `bins` groups of equally many rows, from the lowest predictions to the highest."""
    order = np.argsort(probabilities, kind="stable")
    return [CalibrationBin(rows=len(part), predicted=float(probabilities[part].mean()),
                           clicked=float(labels[part].mean()))
            for part in np.array_split(order, bins) if len(part)]
