"""LLAE's closed form (Li et al., AAAI 2019): a low-rank linear autoencoder from behaviour to attributes.

W (K, D) encodes pooled behaviour X as attributes S (W X = S) and decodes with its transpose (X = W^T S). n old rows,
K attribute values, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from mail_core.models.llae import LlaeConfig

FOLDS = 5
"""Parts of the old users among which the weight is chosen."""
_ITERATIONS = 20


@dataclass(frozen=True)
class Moments:
    """Sums over rows, all that the closed form needs; `a + b` joins two parts."""

    ss_KK: np.ndarray
    xx_DD: np.ndarray
    sx_KD: np.ndarray

    @staticmethod
    def of(s_NK: np.ndarray, x_ND: np.ndarray) -> Moments:
        """Of n rows."""
        s, x = s_NK.astype(np.float64), x_ND.astype(np.float64)
        return Moments(s.T @ s, x.T @ x, s.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.ss_KK + other.ss_KK, self.xx_DD + other.xx_DD, self.sx_KD + other.sx_KD)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.ss_KK - other.ss_KK, self.xx_DD - other.xx_DD, self.sx_KD - other.sx_KD)

    def error(self, w_KD: np.ndarray) -> float:
        """||X - W^T S||² of these rows."""
        return float(np.trace(self.xx_DD) - 2 * np.sum(w_KD * self.sx_KD) + np.sum(w_KD * (self.ss_KK @ w_KD)))


def closed_form(moments: Moments, low_rank: float, encoding: float, rank: int) -> np.ndarray:
    """W (K, D): A W + W B = C with A = S S^T + low_rank V V^T, B = encoding X X^T, C = (1 + encoding) S X^T.

    V, the left singular vectors of W after its first `rank`, and W are found in turn, from V = 0 on.
    """
    from scipy.linalg import solve_sylvester  # a training without this peer does without

    w_KD = np.zeros_like(moments.sx_KD)
    projector_KK = np.zeros_like(moments.ss_KK)
    for _ in range(_ITERATIONS):
        before = w_KD
        w_KD = solve_sylvester(moments.ss_KK + low_rank * projector_KK, encoding * moments.xx_DD,
                               (1 + encoding) * moments.sx_KD)
        left_KK, _, _ = np.linalg.svd(w_KD, full_matrices=True)
        projector_KK = left_KK[:, rank:] @ left_KK[:, rank:].T
        if np.abs(w_KD - before).max() <= 1e-9 * max(np.abs(w_KD).max(), 1e-300):
            break
    return w_KD


def rank_of(moments: Moments, config: LlaeConfig) -> int:
    """The rank aimed at, 1 or more."""
    return max(1, round(config.rank_share * len(moments.xx_DD)))


def chosen_weight(folds: list[Moments], config: LlaeConfig) -> float:
    """The weight of the low-rank term with the least error on users left out in turn; the only one, if there is one."""
    if len(config.low_rank) == 1:
        return config.low_rank[0]
    total, rank = reduce(add, folds), rank_of(folds[0], config)

    def error(weight: float) -> float:
        return sum(fold.error(closed_form(total - fold, weight, config.encoding, rank)) for fold in folds)

    return min(config.low_rank, key=error)


def solve(folds: list[Moments], config: LlaeConfig) -> tuple[np.ndarray, float]:
    """W (K, D) of all folds together, and the weight that was taken."""
    weight = chosen_weight(folds, config)
    return closed_form(reduce(add, folds), weight, config.encoding, rank_of(folds[0], config)), weight
