"""Masked users are a function of the user's ID and the seed, and nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mail_core.encoding.hashing import stable_hash, unit_interval
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError


def test_natural_masks_nobody():
    assert not NewUserMode.parse("natural").is_masked(pa.array([1, 2, 3])).any()


def test_the_share_of_masked_users_is_the_fraction():
    users = pa.array(np.arange(100_000))
    assert NewUserMode.parse("masked:0.4:7").is_masked(users).mean() == pytest.approx(0.4, abs=0.006)
    assert NewUserMode.parse("masked:1:7").is_masked(users).all()


def test_seeds_pick_independent_users():
    users = pa.array(np.arange(100_000))
    first, second = (NewUserMode(fraction=0.5, seed=s).is_masked(users) for s in (1, 2))
    assert (first & second).mean() == pytest.approx(0.25, abs=0.006)


def test_a_larger_fraction_keeps_the_users_of_a_smaller_one():
    users = pa.array(np.arange(1000))
    few, many = (NewUserMode(fraction=f, seed=3).is_masked(users) for f in (0.2, 0.6))
    assert (many[few]).all() and many.sum() > few.sum()


def test_integers_of_any_width_and_their_text_are_the_same_user():
    mode, ids = NewUserMode.parse("masked:0.4:7"), np.arange(500)
    expected = mode.is_masked(pa.array(ids, pa.int64()))
    for users in (pa.array(ids, pa.int32()), pa.array([str(i) for i in ids]), pa.array(ids).cast(pa.large_string())):
        np.testing.assert_array_equal(mode.is_masked(users), expected)


def test_order_and_company_do_not_matter():
    mode, ids = NewUserMode.parse("masked:0.4:7"), np.arange(300)
    alone = [bool(mode.is_masked(pa.array([i]))[0]) for i in ids[::-1]]
    assert alone[::-1] == mode.is_masked(pa.array(ids)).tolist()


def test_the_hash_is_the_one_of_stored_versions():
    # Written down once: a change would pick other users and move hashed codes of registered versions.
    assert stable_hash(pa.array([1, 2])).tolist() == stable_hash(pa.array(["1", "2"])).tolist()
    assert stable_hash(pa.array(["1", "user-2", "ü"])).tolist() == [0xc3444e7c22a633f1, 0x3f131f1dc829df53,
                                                                    0x6ba94adf6e4fd5b2]
    assert unit_interval(np.array([0, 2 ** 64 - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2 ** -53]


@pytest.mark.parametrize("text, kept, folder", [("natural", "natural", "natural"),
                                                ("masked:0.4:7", "masked:0.4:7", "masked-0.4-7"),
                                                ("masked:.40:07", "masked:0.4:7", "masked-0.4-7")])
def test_a_mode_is_read_and_written(text, kept, folder):
    mode = NewUserMode.parse(text)
    assert (str(mode), mode.folder) == (kept, folder)
    assert NewUserMode.parse(str(mode)) == mode


@pytest.mark.parametrize("text", ["", "masked", "masked:0.4", "masked:0:1", "masked:1.5:1", "masked:nan:1",
                                  "masked:x:1", "masked:0.4:-1", "masked:0.4:1:2", "other:0.4:1"])
def test_any_other_text_is_refused(text):
    with pytest.raises(InputError, match="expected natural or masked:FRACTION:SEED"):
        NewUserMode.parse(text)
