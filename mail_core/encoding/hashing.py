"""One stable 64-bit hash of a value's text: the same in every engine, process and version of the pipeline."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

# SipHash's key: part of every hashed code, masked user and user key, so it never changes.
_KEY = "mail-core-hash-1"


def stable_hash(values: pa.Array, salt: str = "") -> np.ndarray:
    """SipHash of `salt` + each value's text, uint64 (B,). An integer and its decimal text hash alike; NULL as ''."""
    text = values.cast(pa.string()).fill_null("")
    if salt:
        text = pc.binary_join_element_wise(pa.scalar(salt), text, "")
    return hash_array(text.to_numpy(zero_copy_only=False), hash_key=_KEY)


def unit_interval(hashes: np.ndarray) -> np.ndarray:
    """uint64 hashes (B,) -> float64 in [0, 1): the upper 53 bits, which a float64 holds exactly."""
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0 ** 53
