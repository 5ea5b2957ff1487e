"""The as-of core against a few lines of plain Python."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_core.spark.context_features import derive, earliest_moments, local_moment, microseconds
from mail_core.spark.sequences import BehaviorIndex, Spans, partition_count, slices

US = pa.timestamp("us", tz="UTC")
KEY_TYPES = {"long": (pa.int64(), lambda u: u), "int": (pa.int32(), lambda u: -u),
             "string": (pa.string(), lambda u: f"u{u}")}


def index_of(behaviors, key_type=pa.int64(), key=lambda u: u):
    """behaviors: (user, time, action, cate, brand) tuples."""
    users, times, actions, cates, brands = zip(*behaviors) if behaviors else ((),) * 5
    return BehaviorIndex(pa.array([key(u) for u in users], key_type), pa.array(times, pa.int64()).cast(US),
                         {"action": pa.array(actions, pa.string()), "cate": pa.array(cates, pa.int64()),
                          "brand": pa.array(brands, pa.int64())})


def brute_force(behaviors, user, before, since, length):
    rows = [b for b in behaviors if b[0] == user and since <= b[1] < before]
    rows.sort(key=lambda b: (b[1], b[2], b[3], (b[4] is not None, b[4] or 0)))
    return [(b[2], b[3], b[4]) for b in rows[::-1][:length]]


def sequences(index, users, before, since, length):
    columns = index.gather(index.find(users, np.array(before, dtype=np.int64), np.array(since, dtype=np.int64), length))
    return [list(zip(*row)) for row in zip(*(columns[name].to_pylist() for name in ("action", "cate", "brand")))]


@st.composite
def logs(draw):
    # Few moments and few users, so that ties in time and users with most of the log are common.
    scale = draw(st.sampled_from([1, 10 ** 6, 10 ** 15]))
    moment = st.integers(-12, 12).map(lambda t: t * scale)
    user = st.sampled_from([1, 1, 1, 2, 3, 4])
    behaviors = draw(st.lists(st.tuples(user, moment, st.sampled_from(["pv", "buy", "cart"]), st.integers(0, 2),
                                        st.none() | st.integers(0, 2)), max_size=40))
    queries = draw(st.lists(st.tuples(st.integers(1, 6), moment, st.integers(0, 8)), max_size=12))
    return behaviors, [(user, before, before - back * scale) for user, before, back in queries]


@settings(deadline=None, max_examples=300)
@given(log=logs(), keys=st.sampled_from(sorted(KEY_TYPES)), length=st.integers(1, 5), seed=st.integers(0, 9))
def test_sequences_equal_brute_force_for_any_log_in_any_order(log, keys, length, seed):
    behaviors, queries = log
    key_type, key = KEY_TYPES[keys]
    shuffled = [behaviors[i] for i in np.random.default_rng(seed).permutation(len(behaviors))]
    users = pa.array([key(u) for u, _, _ in queries], key_type)
    _, before, since = zip(*queries) if queries else ((), (), ())
    found = sequences(index_of(shuffled, key_type, key), users, before, since, length)
    assert found == [brute_force(behaviors, u, before, since, length) for u, before, since in queries]


def test_a_behavior_at_the_moment_itself_and_one_before_the_look_back_do_not_count():
    index = index_of([(7, 99, "pv", 1, None), (7, 100, "buy", 2, 5), (7, 199, "cart", 3, 6), (7, 200, "fav", 4, 7)])
    assert sequences(index, pa.array([7]), [200], [100], 10) == [[("cart", 3, 6), ("buy", 2, 5)]]


def test_times_too_far_apart_for_a_combined_key_still_sort():
    century = 100 * 366 * 86_400 * 10 ** 6
    behaviors = [(u, century * (u % 30), "pv", u, None) for u in range(5_000)]
    index = index_of(behaviors)
    assert index._ticks is not None
    users, before = pa.array(range(5_000)), np.arange(5_000) % 30 * century + 1
    assert sequences(index, users, before, before - 2, 3) == [[("pv", u, None)] for u in range(5_000)]


def test_no_behaviors_at_all_give_empty_sequences():
    assert sequences(index_of([]), pa.array([1, 2]), [5, 6], [0, 0], 3) == [[], []]


def test_a_heavy_user_is_cut_to_the_latest_behaviors():
    index = index_of([(1, t, "pv", t, None) for t in range(50_000)] + [(2, 3, "buy", 9, 1)])
    assert sequences(index, pa.array([1, 2]), [40_000, 40_000], [0, 0], 100) == [
        [("pv", t, None) for t in range(39_999, 39_899, -1)], [("buy", 9, 1)]]


def test_spans_gathered_in_slices_equal_spans_gathered_at_once():
    rng = np.random.default_rng(0)
    index = index_of([(int(u), int(t), "pv", i, None) for i, (u, t) in enumerate(rng.integers(0, 50, (500, 2)))])
    users, before = pa.array(rng.integers(0, 60, 100)), rng.integers(0, 60, 100)
    spans = index.find(users, before, before - 20, 7)
    parts = [index.gather(Spans(starts_B=spans.starts_B[p], ends_B=spans.ends_B[p]))["cate"].to_pylist()
             for p in slices(100, 8)]
    assert sum(parts, []) == index.gather(spans)["cate"].to_pylist()


@pytest.mark.parametrize("rows, parallelism, partitions", [
    (0, 2, 2), (10, 8, 8), (20_000_001, 4, 24), (2_600_000, 2, 4)])
def test_partitions_hold_a_million_rows_at_most_and_as_many_on_every_core(rows, parallelism, partitions):
    assert partition_count(rows, parallelism) == partitions


@settings(deadline=None)
@given(moment=st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1), timezones=st.just(timezone.utc)),
       zone=st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe"]))
def test_derived_context_is_the_local_clock(moment, zone):
    times, local = pa.array([moment], US), moment.astimezone(ZoneInfo(zone))
    assert derive("hour", times, zone).to_pylist() == [local.hour]
    assert derive("day_of_week", times, zone).to_pylist() == [local.isoweekday()]
    assert derive("day_part", times, zone).to_pylist() == [local.hour // 6 + (4 if local.isoweekday() > 5 else 0)]


def test_the_look_back_begins_at_a_local_midnight():
    days = [date(2017, 5, 13), date(2017, 5, 6), date(2017, 5, 13)]
    midnights = [datetime(2017, 4, d, 16, tzinfo=timezone.utc) for d in (20, 13, 20)]  # 00:00 in UTC+8
    wanted = [microseconds(midnight) for midnight in midnights]
    assert earliest_moments(pa.array(days), 22, "Asia/Shanghai").tolist() == wanted
    evening, midnight = local_moment(days[0], time(20), "Asia/Shanghai"), local_moment(days[0], time(), "UTC")
    assert evening - midnight == timedelta(hours=12)
