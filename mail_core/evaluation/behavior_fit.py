"""How well virtual behaviour predicts the behaviour of masked users, from sums that add up over batches and workers.

Shapes: B rows, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BehaviorFit:
    """Partial sums over rows; `a + b` joins two parts."""

    rows: int
    real_D: np.ndarray
    """Sum of the pooled real behaviour, (D,)."""
    real_squares: float
    """Sum of its squares over rows and dimensions."""
    error_squares: float
    """Sum of (real - virtual)² over rows and dimensions."""
    cosines: float
    """Sum over rows of the cosine; 0 for a row where either vector is zero."""

    @staticmethod
    def of(real_BD: np.ndarray, virtual_BD: np.ndarray) -> BehaviorFit:
        """Sums of a batch of pooled real and pooled virtual behaviour, pooled alike."""
        real, virtual = (np.asarray(x, dtype=np.float64) for x in (real_BD, virtual_BD))
        assert real.shape == virtual.shape, (real.shape, virtual.shape)
        norms = np.linalg.norm(real, axis=1) * np.linalg.norm(virtual, axis=1)
        cosines = np.divide((real * virtual).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
        return BehaviorFit(len(real), real.sum(axis=0), float((real ** 2).sum()), float(((real - virtual) ** 2).sum()),
                           float(cosines.sum()))

    def __add__(self, other: BehaviorFit) -> BehaviorFit:
        return BehaviorFit(self.rows + other.rows, self.real_D + other.real_D, self.real_squares + other.real_squares,
                           self.error_squares + other.error_squares, self.cosines + other.cosines)

    @property
    def r2(self) -> float | None:
        """1 - squared error / squared distance of the real vectors from their mean; None without variance."""
        if self.rows < 2:
            return None
        variance = self.real_squares - float(self.real_D @ self.real_D) / self.rows
        return 1.0 - self.error_squares / variance if variance > 1e-12 * self.real_squares else None

    @property
    def reading(self) -> str:
        """What `r2` says of a gain for new users, in a sentence."""
        if self.r2 is None:
            return "no R2: there is nothing to predict"
        if self.r2 > 0:
            return ("R2 above 0: virtual behaviour is nearer to a new user's own than the average user's does. A gain "
                    "needs that, but does not follow from it")
        return ("R2 not above 0: virtual behaviour is no nearer to a new user's own than the average user's does: "
                "expect no gain by it")

    @property
    def cosine(self) -> float | None:
        """Mean cosine of real and virtual; None without rows."""
        return self.cosines / self.rows if self.rows else None
