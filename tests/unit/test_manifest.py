"""A manifest is read as it was written, and an export that does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit_encoders
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.loading.manifest import (MANIFEST, FileEntry, Manifest, export_columns, export_uri, find_export,
                                        read_manifest)
from mail_core.schema.arrow import input_schema

DAY = date(2017, 5, 13)


@pytest.fixture(scope="module")
def encoders(alimama) -> Encoders:
    return fit_encoders(input_schema(alimama).empty_table(), alimama)


@pytest.fixture
def manifest(alimama, encoders) -> Manifest:
    files = {"train": (FileEntry(path="data-1/train/part-00000.parquet", rows=5),), "validation": (),
             "test": (FileEntry(path="data-1/test/part-00000.parquet", rows=2),)}
    return Manifest(schema_name=alimama.name, schema_fingerprint=alimama.fingerprint, new_users="masked:0.4:7",
                    encoder_fingerprint=encoders.fingerprint, end_date=DAY, days=8, delta_versions={"features": 3},
                    sequence_length=alimama.sequence_length, data="data-1", columns=export_columns(alimama),
                    splits=files, statistics={"users": 4, "splits": {
                        "train": {"rows": 5, "clicks": 1}, "test": {"rows": 2, "clicks": 2}}})


def test_a_written_manifest_is_read_as_it_was(manifest, tmp_path):
    manifest = with_days(manifest)
    manifest.write(str(tmp_path))
    assert read_manifest(str(tmp_path)) == manifest
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]


def test_writing_replaces_the_manifest_in_place(manifest, tmp_path):
    manifest.write(str(tmp_path))
    replace(manifest, days=9).write(str(tmp_path))
    assert read_manifest(str(tmp_path)).days == 9


def test_click_rate_is_over_the_rows_of_all_named_splits(manifest):
    assert manifest.click_rate("train") == 1 / 5
    assert manifest.click_rate("train", "test") == 3 / 7


def with_days(manifest: Manifest) -> Manifest:
    """Two training files; the second holds nothing of the days from 10 May on."""
    days = ({"2017-05-06": 3, "2017-05-10": 2, "2017-05-11": 4}, {"2017-05-07": 6, "2017-05-09": 1})
    train = tuple(FileEntry(path=f"part-{i}", rows=sum(d.values()), days=d) for i, d in enumerate(days))
    validation = (FileEntry(path="part-v", rows=8, days={"2017-05-12": 8}),)
    return replace(manifest, splits={**manifest.splits, "train": train, "validation": validation})


@pytest.mark.parametrize("since, rows", [
    ("2017-05-01", [9, 7, 8]), ("2017-05-06", [9, 7, 8]), ("2017-05-07", [6, 7, 8]), ("2017-05-10", [6, 8]),
    ("2017-05-11", [4, 8]), ("2017-05-12", [8]), ("2017-05-13", [])])
def test_the_rows_from_a_day_on_are_counted_and_files_without_any_left_out(manifest, since, rows):
    files = with_days(manifest).files(("train", "validation"), date.fromisoformat(since))
    assert [entry.rows for entry in files] == rows
    assert [entry.stored for entry in files] == [{"part-0": 9, "part-1": 7, "part-v": 8}[e.path] for e in files]
    assert with_days(manifest).rows("train", "validation", since=date.fromisoformat(since)) == sum(rows)


def test_an_export_without_days_is_still_read_but_not_within_its_training_days(manifest, alimama, encoders, tmp_path):
    columns = tuple(column for column in manifest.columns if column.name != "day")
    older = replace(manifest, columns=columns)
    older.check(alimama, encoders)
    older.write(str(tmp_path))
    text = json.loads((tmp_path / MANIFEST).read_text())
    for entry in (entry for files in text["splits"].values() for entry in files):
        del entry["days"]
    (tmp_path / MANIFEST).write_text(json.dumps(text))
    older = read_manifest(str(tmp_path))
    assert [older.rows("train", "validation", since=date(2017, 5, day)) for day in (6, 12, 13)] == [5, 0, 0]
    with pytest.raises(InputError, match="part-00000.parquet: .* days from 2017-05-07 on; run export_training again"):
        older.rows("train", since=date(2017, 5, 7))


def test_rows_and_files_of_splits(manifest):
    assert manifest.rows("train", "test") == 7 and manifest.rows("validation") == 0
    assert [f.rows for f in manifest.files(("test", "train"))] == [2, 5]
    with pytest.raises(InputError, match="split holdout: expected some of train, validation, test"):
        manifest.files(("holdout",))


@pytest.mark.parametrize("change", [{"schema_fingerprint": "0"}, {"encoder_fingerprint": "0"}, {"sequence_length": 3},
                                    {"schema_name": "other"}, {"columns": ()}])
def test_an_export_that_does_not_fit_is_refused(manifest, alimama, encoders, change):
    manifest.check(alimama, encoders)
    with pytest.raises(InputError, match=f"{next(iter(change))} is .* expected"):
        replace(manifest, **change).check(alimama, encoders)


def test_an_absent_or_broken_manifest_is_refused(manifest, tmp_path):
    with pytest.raises(InputError, match="no such file; run export_training first"):
        read_manifest(str(tmp_path))
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(str(tmp_path))
    (tmp_path / MANIFEST).write_text(json.dumps({"days": 1}))
    with pytest.raises(InputError, match="missing or unknown"):
        read_manifest(str(tmp_path))


def test_the_one_finished_export_of_a_day_is_found(manifest, tmp_path):
    lake = str(tmp_path)
    roots = [export_uri(lake, DAY, 8, NewUserMode.parse(mode)) for mode in ("natural", "masked:0.4:7")]
    assert roots[1] == f"{lake}/exports/2017-05-13-8d-masked-0.4-7"
    with pytest.raises(InputError, match="no export ending on 2017-05-13; there are: none"):
        find_export(lake, DAY)
    manifest.write(roots[0])
    (tmp_path / "exports/2017-05-13-8d-masked-0.4-7/data-9").mkdir(parents=True)    # unfinished: no manifest
    assert find_export(lake, DAY) == find_export(lake, DAY, "natural") == roots[0]
    manifest.write(roots[1])
    assert find_export(lake, DAY, "masked:0.4:7") == roots[1]
    with pytest.raises(InputError, match="several exports ending on 2017-05-13; there are: .*masked-0.4-7, .*natural"):
        find_export(lake, DAY)
    with pytest.raises(InputError, match="no export ending on 2017-05-12 with new users natural; there are: .*natural"):
        find_export(lake, date(2017, 5, 12), "natural")
