"""Real Parquet files read by real Petastorm, by the plan and against the manifest."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_core.encoding.encode import to_arrow
from mail_core.errors import InputError
from mail_core.loading.batches import WEIGHT, epoch_batches
from mail_core.loading.manifest import ColumnEntry, FileEntry, Manifest, day_number

COLUMNS = (ColumnEntry(name="user", dtype="int32", width=0), ColumnEntry(name="user_key", dtype="int64", width=0),
           ColumnEntry(name="price", dtype="float32", width=0), ColumnEntry(name="genres", dtype="int32", width=1),
           ColumnEntry(name="behavior_cate", dtype="int32", width=4))


def block(start: int, rows: int) -> dict[str, np.ndarray]:
    index = np.arange(start, start + rows)
    return {"user": index.astype(np.int32), "user_key": index * 2 ** 40, "price": (index / 2).astype(np.float32),
            "genres": index[:, None].astype(np.int32),
            "behavior_cate": (index[:, None] + np.arange(4)).astype(np.int32)}


def export(folder, sizes: list[int]) -> Manifest:
    """Files whose rows are numbered from 1 throughout, and their manifest."""
    starts, files = np.cumsum([1, *sizes]), []
    for number, (start, rows) in enumerate(zip(starts, sizes)):
        (folder / "data-1/train").mkdir(parents=True, exist_ok=True)
        entry = FileEntry(path=f"data-1/train/part-{number:05}.parquet", rows=rows)
        pq.write_table(pa.Table.from_batches([to_arrow(block(start, rows))]), folder / entry.path)
        files.append(entry)
    return Manifest(schema_name="x", schema_fingerprint="x", encoder_fingerprint="x", new_users="natural", days=8,
                    end_date=date(2017, 5, 13), delta_versions={}, sequence_length=4, data="data-1", columns=COLUMNS,
                    splits={"train": tuple(files)}, statistics={})


def read(folder, manifest: Manifest, rank: int = 0, world_size: int = 1, shuffle: bool = True, **changes) -> list[dict]:
    settings = {"seed": 3, "epoch": 0, "batch_size": 10, **changes}
    return list(epoch_batches(str(folder), manifest, ("train",), world_size=world_size, rank=rank, shuffle=shuffle,
                              **settings))


@pytest.mark.parametrize("sizes, world_size", [([25], 1), ([25, 3, 30, 1, 12], 2), ([4], 3), ([7, 7, 7, 7], 3)])
def test_every_row_of_the_files_comes_once_as_it_was_written(tmp_path, sizes, world_size):
    manifest = export(tmp_path, sizes)
    ranks = [read(tmp_path, manifest, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen: Counter = Counter()
    for batch in (batch for batches in ranks for batch in batches):
        assert {name: (str(a.dtype), a.shape[1:]) for name, a in batch.items() if name != WEIGHT} == \
            {c.name: (c.dtype, (c.width,) if c.width else ()) for c in COLUMNS}
        if batch[WEIGHT][0]:
            seen.update(batch["user"].tolist())
            for name, written in block(0, sum(sizes) + 1).items():
                np.testing.assert_array_equal(batch[name], written[batch["user"]])
        else:
            assert all(len(a) == 1 and not a.any() for a in batch.values())
    assert seen == Counter(range(1, sum(sizes) + 1))


def dated(folder, manifest: Manifest) -> Manifest:
    """The rows of every file in turn of 6, 7 and 8 May."""
    entries = []
    for entry in manifest.splits["train"]:
        table = pq.read_table(folder / entry.path)
        numbers = np.array([day_number(date(2017, 5, 6 + row % 3)) for row in range(entry.rows)], dtype=np.int32)
        pq.write_table(table.append_column("day", pa.array(numbers)), folder / entry.path)
        days = {f"2017-05-0{6 + back}": len(range(back, entry.rows, 3)) for back in range(3) if back < entry.rows}
        entries.append(replace(entry, days=days))
    return replace(manifest, columns=(*COLUMNS, ColumnEntry(name="day", dtype="int32", width=0)),
                   splits={"train": tuple(entries)})


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_rows_from_a_day_on_come_once_and_no_others(tmp_path, world_size):
    manifest = dated(tmp_path, export(tmp_path, [25, 2, 30, 1, 12]))
    since = date(2017, 5, 8)
    ranks = [read(tmp_path, manifest, rank, world_size, since=since) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    real = [batch for batches in ranks for batch in batches if batch[WEIGHT][0]]
    assert {int(day) for batch in real for day in batch["day"]} == {day_number(since)}
    # Every third row of each file; two files have none.
    expected = [start + row for start, rows in ((1, 25), (28, 30), (59, 12)) for row in range(2, rows, 3)]
    assert sorted(int(user) for batch in real for user in batch["user"]) == expected
    assert manifest.rows("train", since=since) == len(expected)


def test_a_manifest_that_counts_a_days_rows_wrongly_is_refused(tmp_path):
    manifest = dated(tmp_path, export(tmp_path, [9]))
    [entry] = manifest.splits["train"]
    moved = replace(entry, days={"2017-05-06": 2, "2017-05-07": 3, "2017-05-08": 4})
    with pytest.raises(InputError, match="part-00000.parquet: 3 rows of the days from 2017-05-08 on, .* says 4"):
        read(tmp_path, replace(manifest, splits={"train": (moved,)}), since=date(2017, 5, 8))


@pytest.mark.parametrize("sizes", [[0], [7, 0, 5], [0, 0, 9]])
def test_a_file_without_rows_is_passed_over(tmp_path, sizes):
    manifest = export(tmp_path, sizes)
    assert sum(batch["user"].size for batch in read(tmp_path, manifest, shuffle=False)) == sum(sizes)
    ranks = [read(tmp_path, manifest, rank, 2) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    seen = [user for batches in ranks for batch in batches for user in batch["user"][batch[WEIGHT] > 0]]
    assert sorted(seen) == list(range(1, sum(sizes) + 1))


def test_rows_in_a_file_that_the_manifest_calls_empty_are_refused(tmp_path):
    manifest = export(tmp_path, [4, 3])
    first, second = manifest.splits["train"]
    with pytest.raises(InputError, match="part-00001.parquet: 3 rows, the manifest says 0"):
        read(tmp_path, replace(manifest, splits={"train": (first, replace(second, rows=0))}))


def test_files_are_read_in_the_planned_order(tmp_path):
    manifest = export(tmp_path, [3, 3, 3, 3])
    files = manifest.splits["train"]
    backwards = replace(manifest, splits={"train": files[::-1]})
    rows = np.concatenate([b["user"] for b in read(tmp_path, backwards, shuffle=False)])
    assert rows.tolist() == [10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3]


def test_reading_again_gives_the_same_batches_and_another_epoch_others(tmp_path):
    manifest = export(tmp_path, [20, 20, 20])
    first, again, other = (np.concatenate([b["user"] for b in read(tmp_path, manifest, epoch=e)]) for e in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_file_that_differs_from_the_manifest_is_refused_by_name(tmp_path):
    manifest = export(tmp_path, [5, 6])
    files = manifest.splits["train"]
    with pytest.raises(InputError, match="part-00001.parquet: 6 rows in its row group, the manifest says 7"):
        read(tmp_path, replace(manifest, splits={"train": (files[0], replace(files[1], rows=7))}))
    with pytest.raises(InputError, match="part-00000.parquet: column 'behavior_cate' is int32 .5, 4., .* 9"):
        read(tmp_path, replace(manifest, columns=(*COLUMNS[:-1], replace(COLUMNS[-1], width=9))), shuffle=False)
    with pytest.raises(InputError, match="part-00000.parquet: column 'absent' is absent"):
        read(tmp_path, replace(manifest, columns=(*COLUMNS, replace(COLUMNS[0], name="absent"))), shuffle=False)
    (tmp_path / files[1].path).unlink()
    with pytest.raises(InputError, match="part-00001.parquet: no such file"):
        read(tmp_path, manifest)


def test_a_file_of_two_row_groups_is_refused(tmp_path):
    manifest = export(tmp_path, [6])
    path = tmp_path / manifest.splits["train"][0].path
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    with pytest.raises(InputError, match="part-00000.parquet: 3 rows in its row group"):
        read(tmp_path, manifest)


def test_a_reader_left_early_ends_its_thread(tmp_path):
    batches = epoch_batches(str(tmp_path), export(tmp_path, [50] * 6), ("train",), seed=0, epoch=0, world_size=1,
                            rank=0, batch_size=5, shuffle=False, buffer_rows=1)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if "petastorm" in type(t).__module__ and t.is_alive()]


def test_reading_is_quiet(tmp_path):
    manifest = export(tmp_path, [5])
    with warnings.catch_warnings(record=True) as heard:
        read(tmp_path, manifest)
    assert [str(w.message) for w in heard if "petastorm" in w.filename] == []


def test_a_folder_with_spaces_and_signs_in_its_name_is_read_or_refused(tmp_path):
    folder, refused = tmp_path / "a lake %20 ü", tmp_path / "lake#1"
    folder.mkdir(), refused.mkdir()
    assert sum(len(b["user"]) for b in read(folder, export(folder, [5, 5]))) == 10
    with pytest.raises(InputError, match="Petastorm reads no path with '#'"):
        read(refused, export(refused, [5]))
