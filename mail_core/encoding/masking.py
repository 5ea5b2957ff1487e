"""Who is made new for an export: nobody (natural), or the paper's fixed share of users, whose behaviour is removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_core.encoding.hashing import stable_hash, unit_interval
from mail_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NewUserMode:
    """`natural`, or `masked:FRACTION:SEED` (the paper's protocol, section 4.1.1)."""

    fraction: float = 0.0
    """Share of users whose behaviour is removed, in training and test alike; 0: natural."""
    seed: int = 0
    """Which users: a hash of this seed and the user's ID as text decides."""

    @classmethod
    def parse(cls, text: str) -> NewUserMode:
        """`natural` or `masked:FRACTION:SEED`. Raises InputError on anything else."""
        if text == "natural":
            return cls()
        kind, *rest = text.split(":")
        try:
            fraction, seed = rest
            mode = cls(fraction=float(fraction), seed=int(seed))
        except ValueError:
            mode = cls()
        if kind != "masked" or not 0 < mode.fraction <= 1 or mode.seed < 0:
            raise InputError(f"new users {text!r}: expected natural or masked:FRACTION:SEED with 0 < FRACTION <= 1 and "
                             "a whole SEED >= 0, such as masked:0.4:7")
        return mode

    def __str__(self) -> str:
        return f"masked:{self.fraction!r}:{self.seed}" if self.fraction else "natural"

    @property
    def folder(self) -> str:
        """The mode as part of a folder's name: `natural` or `masked-0.4-7`."""
        return str(self).replace(":", "-")

    def is_masked(self, users: pa.Array) -> np.ndarray:
        """bool (B,): the users whose behaviour is removed; a function of each ID's text and the seed alone."""
        if not self.fraction:
            return np.zeros(len(users), dtype=bool)
        return unit_interval(stable_hash(users, salt=f"{self.seed}:")) < self.fraction
