"""Which rows count as old, new and unseen: new is a property of a row, unseen one of its user."""

from __future__ import annotations

import numpy as np

COHORTS = ("old", "new_masked", "new_natural", "new", "unseen", "all")
"""In the order of every table."""


def cohort_masks(is_new: np.ndarray, masked: np.ndarray, unseen: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each cohort, in the order of COHORTS; a row is in several.

    Args:
        is_new: (B,) the row's as-of sequence, after masking, is empty (Eq. 9).
        masked: (B,) the row's user is masked; such a row is `new_masked` whether or not it had behaviour to lose.
        unseen: (B,) the row's user is absent from the training days (no trained embedding of the user's ID).
    """
    is_new, masked, unseen = (np.asarray(flags).astype(bool) for flags in (is_new, masked, unseen))
    assert is_new.shape == masked.shape == unseen.shape, "the three flags are of the same rows"
    masks = {"old": ~is_new, "new_masked": is_new & masked, "new_natural": is_new & ~masked, "new": is_new,
             "unseen": unseen, "all": np.ones_like(is_new)}
    return {cohort: masks[cohort] for cohort in COHORTS}
