"""The export on real Spark and Delta: no leak, one row group a file, the same rows again."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_core.encoding.encode import encode
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.hashing import stable_hash
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.loading.batches import WEIGHT, epoch_batches
from mail_core.loading.manifest import Manifest, day_number, find_export, read_manifest
from mail_core.schema.arrow import features_schema
from mail_core.schema.definition import DAY, MASKED, UNSEEN, USER_KEY, Schema

END, DAYS = date(2017, 5, 13), 4
MODE = NewUserMode(fraction=0.4, seed=7)
SECRET = 999_999    # a category in whose behaviour masked users, and only they, ever appear


def feature_rows(schema: Schema, per_day: int = 60, test_shift: int = 0) -> pa.Table:
    """Rows of DAYS days of `features`, drawn from a fixed seed; `test_shift` changes the last day only."""
    rng, rows = np.random.default_rng(1), []
    masked = dict(zip(range(1, 41), MODE.is_masked(pa.array(range(1, 41)))))
    for back in reversed(range(DAYS)):
        day = END - timedelta(days=back)
        shift = test_shift if not back else 0
        for number in range(per_day):
            # Some users are first seen in the test.
            user = int(rng.integers(1, 41)) if back or number % 6 else 1000 + number + shift
            length = int(rng.integers(0, 6)) if user % 5 else 0
            cates = [int(c) for c in rng.integers(1, 6, length) + shift]
            if masked.get(user) and length:
                cates[0] = SECRET
            row = {"day": day, "user": user, "item": int(rng.integers(1, 20)) + shift, "label": int(rng.integers(0, 2)),
                   "time": datetime(day.year, day.month, day.day, tzinfo=timezone.utc) + timedelta(minutes=number),
                   "userid": user, "cms_segid": user % 7, "occupation": None, "pid": "430548_1007", "hour": number % 24,
                   "adgroup_id": 5, "cate_id": int(rng.integers(1, 6)), "brand": None,
                   "price": float(rng.integers(1, 50)),
                   "behavior_btag": ["pv"] * length, "behavior_cate": cates, "behavior_brand": [None] * length}
            rows.append(row)
    names = features_schema(schema).names
    return pa.Table.from_pylist([{n: row.get(n) for n in names} for row in rows], schema=features_schema(schema))


def exported(spark, schema: Schema, folder: Path, rows: pa.Table, mode: NewUserMode = MODE) -> tuple[str, Manifest]:
    from mail_core.lake.tables import Lake
    from mail_core.spark.export import ExportWindow, export_training

    lake, source = Lake(spark, str(folder), schema), folder.parent / f"{folder.name}.parquet"
    pq.write_table(rows, source)
    lake.replace_days("features", spark.read.parquet(str(source)), sorted(set(rows["day"].to_pylist())))
    return export_training(schema, lake, ExportWindow(end_date=END, days=DAYS), mode)


def read_split(uri: str, manifest: Manifest, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(f"{uri}/{entry.path}") for entry in manifest.splits[split]])


@pytest.fixture(scope="module")
def rows(alimama) -> pa.Table:
    return feature_rows(alimama)


@pytest.fixture(scope="module")
def export(spark, alimama, rows, tmp_path_factory) -> tuple[str, Manifest]:
    return exported(spark, alimama, tmp_path_factory.mktemp("export") / "lake", rows)


def test_every_file_has_one_row_group_and_the_manifests_rows_and_columns(export):
    uri, manifest = export
    for split in ("train", "validation", "test"):
        entries = manifest.splits[split]
        assert len(entries) >= 4 and [e.path for e in entries] == [
            f"{manifest.data}/{split}/part-{i:05}.parquet" for i in range(len(entries))]
        for entry in entries:
            file = pq.ParquetFile(f"{uri}/{entry.path}")
            assert (file.num_row_groups, file.metadata.num_rows) == (1, entry.rows)
            types = [(c.name, f"list<element: {c.dtype}>" if c.width else c.dtype.replace("float32", "float"))
                     for c in manifest.columns]
            assert [(f.name, str(f.type)) for f in file.schema_arrow] == types
    assert [manifest.rows(s) for s in manifest.splits] == [120, 60, 60]
    assert [manifest.rows("train", "validation", since=END - timedelta(days=back)) for back in range(4)] == [
        0, 60, 120, 180]
    assert sorted(p.name for p in Path(uri).iterdir()) == [manifest.data, "manifest.json"]
    assert {p.name for p in (Path(uri) / manifest.data).iterdir()} == {"train", "validation", "test", "encoders"}


def test_rows_are_what_encode_makes_of_the_features_with_masked_users_emptied(export, alimama, rows):
    uri, manifest = export
    encoders = Encoders.load(manifest.encoders_uri(uri), alimama)
    manifest.check(alimama, encoders)
    masked = MODE.is_masked(rows["user"].combine_chunks())
    for column in alimama.behavior_vocabularies:
        kept = [[] if m else v for m, v in zip(masked, rows[column].to_pylist())]
        rows = rows.set_column(rows.schema.get_field_index(column), rows.schema.field(column),
                               [pa.array(kept, rows.schema.field(column).type)])
    days = np.array(rows["day"].to_pylist())
    for split, chosen in (("train", days < END - timedelta(days=1)), ("validation", days == END - timedelta(days=1)),
                          ("test", days == END)):
        part, found = rows.filter(pa.array(chosen)), read_split(uri, manifest, split)
        expected = {name: array.tolist() for name, array in encode(part, encoders).items()}
        expected |= {"label": part["label"].to_pylist(), MASKED: masked[chosen].astype(int).tolist(),
                     USER_KEY: stable_hash(part["user"].combine_chunks()).view("int64").tolist(),
                     UNSEEN: [int(u >= 1000) for u in part["user"].to_pylist()],
                     DAY: [day_number(day) for day in part["day"].to_pylist()]}
        assert set(found.column_names) == set(expected)
        order = sorted(expected)
        assert sorted(map(repr, zip(*(found[n].to_pylist() for n in order)))) == \
            sorted(map(repr, zip(*(expected[n] for n in order))))


def test_behaviour_of_masked_users_appears_nowhere(spark, export, alimama, rows, tmp_path):
    assert any(SECRET in cates for cates in rows["behavior_cate"].to_pylist())
    uri, manifest = export
    vocabularies = Encoders.load(manifest.encoders_uri(uri), alimama).vocabularies
    assert SECRET not in vocabularies["cate_id"].to_pylist()
    for split in manifest.splits:
        table = read_split(uri, manifest, split)
        empty = np.array([not any(cates) for cates in table["behavior_cate"].to_pylist()])
        assert empty[np.array(table[MASKED].to_pylist()) == 1].all() and not empty.all()
    # With nobody masked it is there: the test could fail.
    natural_uri, natural = exported(spark, alimama, tmp_path / "lake", rows, NewUserMode())
    assert SECRET in Encoders.load(natural.encoders_uri(natural_uri), alimama).vocabularies["cate_id"].to_pylist()
    assert not any(any(read_split(natural_uri, natural, s)[MASKED].to_pylist()) for s in natural.splits)


def test_changing_the_test_day_changes_no_encoder_and_no_training_row(spark, export, alimama, tmp_path):
    uri, manifest = export
    changed_uri, changed = exported(spark, alimama, tmp_path / "lake", feature_rows(alimama, test_shift=50))
    assert changed.encoder_fingerprint == manifest.encoder_fingerprint
    for split in ("train", "validation"):
        assert read_split(changed_uri, changed, split).equals(read_split(uri, manifest, split))
    assert not read_split(changed_uri, changed, "test").equals(read_split(uri, manifest, "test"))


def test_exporting_again_gives_the_same_files_and_replaces_the_old_ones(spark, alimama, rows, export, tmp_path):
    from mail_core.lake.tables import Lake
    from mail_core.spark.export import ExportWindow, export_training

    first_uri, first = exported(spark, alimama, tmp_path / "lake", rows)
    before = {split: read_split(first_uri, first, split) for split in first.splits}
    (Path(first_uri) / "data-brokenoff").mkdir()
    partitions = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "3")
    try:
        uri, again = export_training(alimama, Lake(spark, str(tmp_path / "lake"), alimama),
                                     ExportWindow(end_date=END, days=DAYS), MODE)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", partitions)
    assert uri == first_uri and sorted(p.name for p in Path(uri).iterdir()) == [again.data, "manifest.json"]
    for split, table in before.items():
        assert read_split(uri, again, split).equals(table)
        assert [e.rows for e in again.splits[split]] == [e.rows for e in first.splits[split]]

    def plain(manifest: Manifest, root: str) -> str:
        return (Path(root) / "manifest.json").read_text().replace(manifest.data, "DATA")
    written = plain(again, uri)
    elsewhere = plain(export[1], export[0])
    assert written == elsewhere and json.loads(written)["statistics"] == first.statistics


def test_rows_lie_in_the_order_of_a_hash_not_of_time(spark, alimama, export):
    from mail_core.lake.tables import Lake
    from mail_core.spark.export import row_order

    uri, manifest = export
    hashed = Lake(spark, str(Path(uri).parents[1]), alimama).read("features").where(f"day = DATE'{END}'").select(
        "user", row_order(alimama).alias("order")).collect()
    users = [row["user"] for row in sorted(hashed, key=lambda row: (row["order"] % 8, row["order"]))]
    keys = stable_hash(pa.array(users)).view("int64")
    np.testing.assert_array_equal(read_split(uri, manifest, "test")[USER_KEY].to_numpy(), keys)
    hours = read_split(uri, manifest, "train")["hour"].to_numpy()
    assert abs(np.corrcoef(np.arange(len(hours)), hours)[0, 1]) < 0.4
    steps = [abs(np.diff(pq.read_table(f"{uri}/{e.path}")["hour"].to_numpy())) for e in manifest.splits["train"]]
    assert np.concatenate(steps).mean() > 3


def test_statistics_count_the_rows_at_hand(export, rows):
    statistics = export[1].statistics
    users, masked = rows["user"].to_pylist(), MODE.is_masked(rows["user"].combine_chunks())
    lengths = np.where(masked, 0, [len(b) for b in rows["behavior_btag"].to_pylist()])
    assert statistics["users"] == len(set(users)) and statistics["items"] == len(set(rows["item"].to_pylist()))
    assert statistics["new_users"] == len({u for u, n in zip(users, lengths) if n == 0})
    assert statistics["average_behavior_length"] == pytest.approx(lengths.sum() / (lengths > 0).sum())
    assert [statistics[n] for n in ("user_attributes", "context_features", "item_features")] == [9, 4, 6]
    test = np.array(rows["day"].to_pylist()) == END
    split = statistics["splits"]["test"]
    assert split["ctr"] == pytest.approx(np.mean(np.array(rows["label"].to_pylist())[test]))
    assert split["share"]["new_masked"] == pytest.approx(((lengths == 0) & masked)[test].mean())
    assert split["share"]["old"] + split["share"]["new_masked"] + split["share"]["new_natural"] == pytest.approx(1)
    assert split["share"]["unseen"] == pytest.approx(10 / 60)
    assert statistics["splits"]["train"]["share"]["unseen"] == 0


def test_training_reads_the_export_with_petastorm(export, rows):
    uri, manifest = export
    real = sum(float(b[WEIGHT].sum()) for rank in range(3) for b in epoch_batches(
        uri, manifest, ("train", "validation"), seed=1, epoch=0, world_size=3, rank=rank, batch_size=16, shuffle=True))
    assert real == 180 == manifest.rows("train", "validation")


def test_an_export_that_the_schema_no_longer_fits_is_refused(export, movielens):
    uri, manifest = export
    with pytest.raises(InputError, match="another schema"):
        Encoders.load(manifest.encoders_uri(uri), movielens)


def test_missing_days_are_named(spark, alimama, rows, tmp_path):
    from mail_core.lake.tables import Lake
    from mail_core.spark.export import ExportWindow, export_training

    with pytest.raises(InputError, match="no rows for 2017-05-11"):
        exported(spark, alimama, tmp_path / "lake", rows.filter(pa.array(
            [d != date(2017, 5, 11) for d in rows["day"].to_pylist()])))
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    with pytest.raises(InputError, match="expected 3 or more"):
        export_training(alimama, lake, ExportWindow(end_date=END, days=2), MODE)
    assert not (tmp_path / "lake/exports").exists()


def test_the_job_prints_table_1_and_its_exit_codes_tell(spark, alimama, export):
    uri, _ = export
    lake = str(Path(uri).parents[1])
    command = [sys.executable, "jobs/export_training.py", "--schema", "alimama", "--lake", lake, "--days", str(DAYS)]
    command += ["--end-date", "2017-05-13", "--new-users"]
    done = subprocess.run([*command, "natural"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "# All users" in done.stdout and "# Item features" in done.stdout and "wrote 120 train" in done.stderr
    assert read_manifest(find_export(lake, END, "natural")).new_users == "natural"
    assert subprocess.run([*command, "masked:2:1"], capture_output=True).returncode == 2
