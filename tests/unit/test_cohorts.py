"""Who counts as old, new and unseen."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mail_core.evaluation.cohorts import COHORTS, cohort_masks


def test_every_kind_of_row_is_in_its_cohorts():
    is_new = [0, 1, 1, 0, 1]
    masked = [0, 1, 0, 0, 0]
    unseen = [0, 0, 0, 1, 1]
    found = {cohort: mask.tolist() for cohort, mask in cohort_masks(is_new, masked, unseen).items()}
    assert found == {"old": [True, False, False, True, False], "new_masked": [False, True, False, False, False],
                     "new_natural": [False, False, True, False, True], "new": [False, True, True, False, True],
                     "unseen": [False, False, False, True, True], "all": [True] * 5}
    assert list(found) == list(COHORTS)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans())))
def test_old_and_the_two_kinds_of_new_split_all_rows(flags):
    masks = cohort_masks(*np.array(flags, dtype=bool).reshape(-1, 3).T)
    parts = masks["old"].astype(int) + masks["new_masked"] + masks["new_natural"]
    assert (parts == 1).all() and masks["all"].all()
    np.testing.assert_array_equal(masks["new"], masks["new_masked"] | masks["new_natural"])
