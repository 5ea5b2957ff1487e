"""Section 4.5 by simulation: two rankers choose among the same candidates, the planted world says what users do.

Every item shown is looked at: position changes no chance.

Shapes: U users, N candidates of a user, K shown, 2 arms (the model's, then that of the one it is held against).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_core.encoding.hashing import stable_hash, unit_interval
from mail_core.errors import InputError
from mail_core.simulation.world import World

RANK_BY = ("ctr", "ctcvr")


@dataclass(frozen=True, kw_only=True)
class AbTestConfig:
    """How users are served."""

    candidates: int = 100
    """N: items that are ranked for a user, drawn alike from all items (all of them where there are fewer)."""
    shown: int = 10
    """K: the highest ranked of them."""
    rank_by: str = "ctr"
    """ctr, or ctcvr of versions with the head `esmm`."""
    paired: bool = False
    """False: a hash of user and seed puts every user into one of two equal arms, as in the paper. True: both versions
    serve every user, which no experiment on people can do: intervals are narrower."""
    seed: int = 0
    """Of arms, candidates, clicks and conversions."""

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= self.candidates:
            raise InputError(f"shown {self.shown}, candidates {self.candidates}: expected 1 <= shown <= candidates")
        if self.rank_by not in RANK_BY:
            raise InputError(f"rank by {self.rank_by!r}: expected one of {', '.join(RANK_BY)}")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: expected a whole number from 0")


@dataclass(frozen=True, kw_only=True)
class Session:
    """The users' candidates, and what they would do with each: the same for both rankers."""

    position_UN: np.ndarray
    """int64, of a candidate among all items."""
    click_UN: np.ndarray
    conversion_UN: np.ndarray
    """bool, within the clicks."""

    def outcomes(self, scores_UN: np.ndarray, shown: int) -> tuple[np.ndarray, np.ndarray]:
        """Clicks and conversions (U,) among the `shown` candidates of the highest scores (of equal ones the first)."""
        chosen_UK = np.argsort(-scores_UN, axis=1, kind="stable")[:, :shown]
        clicks, conversions = (np.take_along_axis(happened_UN, chosen_UK, axis=1).sum(axis=1)
                               for happened_UN in (self.click_UN, self.conversion_UN))
        return clicks, conversions

    def select(self, rows_U: np.ndarray) -> Session:
        """Some of the users."""
        return Session(position_UN=self.position_UN[rows_U], click_UN=self.click_UN[rows_U],
                       conversion_UN=self.conversion_UN[rows_U])


def arms(users: pa.Array, config: AbTestConfig) -> np.ndarray:
    """bool (U, 2): which arms a user is in, a function of the ID and the seed."""
    first_U = unit_interval(stable_hash(users, salt=f"ab-test:{config.seed}:")) < 0.5
    return np.ones((len(users), 2), dtype=bool) if config.paired else np.stack([first_U, ~first_U], axis=1)


def draw_session(users: pa.Array, item_ids: np.ndarray, world: World, config: AbTestConfig) -> Session:
    """Candidates among the items with these IDs, clicks and conversions; a user's depend on no other user's.

    Raises:
        InputError: a user or an item that is not in the world, or a world without conversions.
    """
    size = min(config.candidates, len(item_ids))
    positions, uniforms = [], []
    for key in stable_hash(users).tolist():
        rng = np.random.default_rng([config.seed, key])
        positions.append(rng.choice(len(item_ids), size, replace=False))
        uniforms.append(rng.random((2, size)))
    position_UN, uniform_U2N = np.array(positions).reshape(-1, size), np.array(uniforms).reshape(-1, 2, size)
    ids = np.repeat(users.to_numpy(zero_copy_only=False), size), item_ids[position_UN.ravel()]
    click_UN = uniform_U2N[:, 0] < world.click_probability(*ids).reshape(-1, size)
    converted_UN = uniform_U2N[:, 1] < world.conversion_probability(*ids).reshape(-1, size)
    return Session(position_UN=position_UN, click_UN=click_UN, conversion_UN=click_UN & converted_UN)
