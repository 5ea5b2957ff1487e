"""Every row exactly once an epoch and equal steps on every rank, over rows x files x ranks x epochs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mail_core.loading.batches import WEIGHT, padded, rebatched
from mail_core.loading.manifest import ColumnEntry, FileEntry
from mail_core.loading.plan import rank_plan

COLUMNS = (ColumnEntry(name="row", dtype="int64", width=0), ColumnEntry(name="list", dtype="int32", width=3))
CASES = dict(sizes=st.lists(st.integers(1, 40), max_size=9), seed=st.integers(0, 5), epoch=st.integers(0, 5),
             world_size=st.integers(1, 5), batch_size=st.integers(1, 16), shuffle=st.booleans(),
             buffer_rows=st.integers(1, 60))


def entries(sizes: list[int]) -> list[FileEntry]:
    return [FileEntry(path=f"part-{i}", rows=rows) for i, rows in enumerate(sizes)]


def epoch(sizes, seed, epoch, world_size, batch_size, shuffle, buffer_rows) -> list[list[dict[str, np.ndarray]]]:
    """Each rank's batches, over files whose rows are numbered from 1 throughout."""
    files, starts = entries(sizes), np.cumsum([1, *sizes])
    blocks = {f.path: {"row": np.arange(s, s + f.rows), "list": np.repeat(np.arange(s, s + f.rows, dtype=np.int32), 3)
                       .reshape(-1, 3)} for f, s in zip(files, starts)}
    ranks = []
    for rank in range(world_size):
        plan = rank_plan(files, seed, epoch, world_size, rank, batch_size, shuffle)
        rng = np.random.default_rng([seed, epoch, rank]) if shuffle else None
        ranks.append(list(padded(rebatched((blocks[f.path] for f in plan.files), batch_size, buffer_rows, rng),
                                 plan.steps, COLUMNS)))
    return ranks


@given(**CASES)
def test_every_row_is_read_exactly_once_in_equal_steps(sizes, seed, **case):
    ranks = epoch(sizes, seed, **case)
    real = np.concatenate([b["row"][b[WEIGHT] > 0] for batches in ranks for b in batches] or [np.array([])])
    assert sorted(real) == list(range(1, sum(sizes) + 1))
    assert len({len(batches) for batches in ranks}) == 1
    for batches in ranks:
        for batch in batches:
            assert 1 <= len(batch["row"]) <= case["batch_size"]
            assert (batch["list"] == batch["row"][:, None]).all()    # a row's columns stay together
            assert (batch[WEIGHT] == 1).all() or (len(batch["row"]) == 1 and batch["row"][0] == batch[WEIGHT][0] == 0)
        weights = [batch[WEIGHT].max() for batch in batches]
        assert weights == sorted(weights, reverse=True)    # the filling comes last
        full = [len(b["row"]) for b in batches if b[WEIGHT][0]][:-1]
        assert full == [case["batch_size"]] * len(full)


@given(**CASES)
def test_the_same_arguments_give_the_same_batches(**case):
    for first, second in zip(epoch(**case), epoch(**case)):
        assert len(first) == len(second)
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, second) for name in a)


@given(sizes=st.lists(st.integers(0, 99), min_size=1, max_size=30), seed=st.integers(0, 9),
       world_size=st.integers(1, 8))
def test_files_are_shared_out_evenly(sizes, seed, world_size):
    plans = [rank_plan(entries(sizes), seed, 0, world_size, rank, 10, True) for rank in range(world_size)]
    assert sorted(f.path for p in plans for f in p.files) == sorted(f.path for f in entries(sizes))
    assert all(p.rows == sum(f.rows for f in p.files) for p in plans)
    assert max(p.rows for p in plans) - min(p.rows for p in plans) <= max(sizes)
    assert {p.steps for p in plans} == {max(-(-p.rows // 10) for p in plans)}


def test_an_epoch_draws_its_own_order_of_files_and_rows():
    orders = {tuple(f.path for f in rank_plan(entries([5] * 8), seed, number, 1, 0, 4, True).files)
              for seed in range(3) for number in range(3)}
    assert len(orders) == 9
    rows = [tuple(np.concatenate([batch["row"] for batch in epoch([50], 0, number, 1, 10, True, 100)[0]]))
            for number in range(2)]
    assert rows[0] != rows[1] and rows[0] != tuple(sorted(rows[0]))


def test_without_shuffling_rows_come_in_the_given_order():
    (batches,) = epoch([3, 1, 4], 0, 0, 1, 5, False, 2)
    assert [b["row"].tolist() for b in batches] == [[1, 2, 3, 4, 5], [6, 7, 8]]


def test_more_ranks_than_rows_still_take_equal_steps():
    ranks = epoch([1, 1], 0, 0, 4, 8, True, 10)
    assert sorted(float(b[WEIGHT].sum()) for batches in ranks for b in batches) == [0, 0, 1, 1]


def test_no_rows_at_all_are_no_steps():
    assert epoch([], 0, 0, 2, 8, True, 10) == [[], []]
