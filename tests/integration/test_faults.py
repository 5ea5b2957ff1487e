"""Rows gone bad by the thousand, a killed driver, two runs at once, full disks, broken files: nothing half-written.

Each kind of bad line, wrong headers, absent tables, versions, servers and exports have their tests beside what finds
them (test_ingest, test_lake, test_tracking, test_manifest, test_loading, test_train, test_score).
"""

from __future__ import annotations

import argparse
import gzip
import resource
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Callable, Iterator

import pytest
from bad_rows import bad_rows, raw_lines
from checksums import checksum, checksums
from killing import kill, start
from pyspark.sql import functions as F
from small_export import small_schema, write_export

from mail_core.errors import InputError
from mail_core.job import FAILURE, run_job
from mail_core.lake.concurrency import Replacement, replacements_after
from mail_core.lake.tables import RAW_TABLES, ROLES, Lake
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import read_manifest
from mail_core.spark.ingest import ingest_logs
from mail_core.training.data import open_export

DAY = date(2017, 5, 6)
INGESTED = (*RAW_TABLES.values(), "quarantine")


def write(folder: Path, schema, good: int, bad: int = 0, seed: int = 0) -> tuple[Path, dict[str, list]]:
    """The four raw files, two of them gzip; also the bad lines with their reasons by role."""
    folder.mkdir(parents=True)
    made = {role: bad_rows(schema, role, bad, seed) for role in ROLES}
    for number, role in enumerate(ROLES):
        data, file = raw_lines(schema, role, good, made[role], seed), folder / getattr(schema, role).file
        if number % 2:
            file.write_bytes(data)
        else:
            Path(f"{file}.gz").write_bytes(gzip.compress(data))
    return folder, made


def test_ten_thousand_bad_rows_are_all_accounted_for(spark, alimama, tmp_path):
    source, bad = write(tmp_path / "raw", alimama, good=500, bad=2_500)
    report = ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), None)
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    found: dict[str, Counter] = {role: Counter() for role in ROLES}
    for row in lake.read("quarantine").collect():
        found[row["source"]][row["line"], row["reason"]] += 1
    for file in report.files:
        expected = Counter((line.decode(errors="replace"), reason) for line, reason in bad[file.role])
        assert found[file.role] == expected, file.role
        assert (file.rows_in, file.rows_out, file.duplicates) == (3_000, 500, 0)
        assert lake.read(RAW_TABLES[file.role]).count() == 500
    assert sum(sum(f.quarantined.values()) for f in report.files) == 10_000


@pytest.fixture(scope="module")
def clean(alimama, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("clean") / "raw", alimama, good=300, bad=40)[0]


@pytest.fixture(scope="module")
def undisturbed(spark, alimama, clean, tmp_path_factory) -> Lake:
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    ingest_logs(spark, alimama, str(clean), str(lake), None)
    return Lake(spark, str(lake), alimama)


def commit(lake: Path, table: str) -> Path:
    """The first commit with rows; version 0 makes the table."""
    return lake / table / "_delta_log" / f"{1:020}.json"


def test_a_job_killed_between_two_tables_and_run_again_leaves_an_undisturbed_runs_tables(spark, alimama, clean,
                                                                                        undisturbed, tmp_path):
    lake, log = tmp_path / "lake", tmp_path / "log"
    job = start("ingest_logs", "--schema", "alimama", "--source", str(clean), "--lake", str(lake), log=log)
    while not commit(lake, "items").exists() and job.poll() is None:
        time.sleep(0.005)
    assert kill(job), log.read_text()
    assert commit(lake, "quarantine").exists() and commit(lake, "items").exists()
    assert not commit(lake, "raw_impressions").exists()  # they come last
    ingest_logs(spark, alimama, str(clean), str(lake), None)
    assert checksums(Lake(spark, str(lake), alimama), INGESTED) == checksums(undisturbed, INGESTED)


def at_once(*runs: Callable[[], object]) -> list[object]:
    """What each run returned or raised; they start together, each in a thread of its own."""
    outcomes: list[object] = [None] * len(runs)
    together = threading.Barrier(len(runs))

    def work(number: int) -> None:
        together.wait()
        try:
            outcomes[number] = runs[number]()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_ingestions_of_one_day_one_wins_whole_and_the_other_names_the_conflict(spark, alimama, tmp_path):
    sources = [write(tmp_path / f"raw{n}", alimama, good=100 * n, bad=40, seed=n)[0] for n in (1, 2)]
    outcomes = at_once(*(lambda s=s: ingest_logs(spark, alimama, str(s), str(tmp_path / "both"), None)
                         for s in sources))
    [lost] = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    error, won = outcomes[lost], sources[1 - lost]
    assert isinstance(error, InputError), error
    assert "table quarantine: conflict: another run replaced 2017-05-0" in str(error) and "\n" not in str(error)
    ingest_logs(spark, alimama, str(won), str(tmp_path / "alone"), None)
    both, alone = (checksums(Lake(spark, str(tmp_path / name), alimama), INGESTED) for name in ("both", "alone"))
    assert both == alone


def impressions(lake: Lake, count: int, day: date = DAY):
    """`count` rows of one day."""
    first = datetime(day.year, day.month, day.day, 1, tzinfo=timezone.utc)
    rows = [(day, user, first, 5, "430548_1007", 1, 0) for user in range(count)]
    return lake.spark.createDataFrame(rows, lake.definitions["raw_impressions"].spark_schema)


def test_a_commit_between_reading_and_committing_is_a_named_conflict(spark, alimama, tmp_path):
    lake, go, started = Lake(spark, str(tmp_path / "lake"), alimama), tmp_path / "go", tmp_path / "started"
    lake.replace_days("raw_impressions", impressions(lake, 1), [DAY])
    version, theirs = lake.version("raw_impressions"), impressions(lake, 3)

    @F.udf("long")
    def held_up(user):
        Path(started).touch()
        deadline = time.monotonic() + 120
        while not Path(go).exists():
            assert time.monotonic() < deadline, "the other writer did not commit"
            time.sleep(0.01)
        return user

    def foreign() -> None:  # a writer that knows nothing of Lake
        while not started.exists():
            time.sleep(0.01)
        theirs.write.format("delta").mode("overwrite").option("replaceWhere", f"day = DATE'{DAY}'").save(
            lake.path("raw_impressions"))
        go.touch()

    slow = impressions(lake, 2).coalesce(1).withColumn("user", held_up("user"))  # one core is left to the other writer
    error, _ = at_once(lambda: lake.replace_days("raw_impressions", slow, [DAY]), foreign)
    assert isinstance(error, InputError), error
    assert "raw_impressions" in str(error) and "another run committed first (Delta: DELTA_CONCURRENT" in str(error)
    assert lake.read("raw_impressions").count() == 3 and lake.version("raw_impressions") == version + 1


def test_runs_of_different_days_do_not_hinder_each_other(spark, alimama, tmp_path):
    lake, other = Lake(spark, str(tmp_path / "lake"), alimama), date(2017, 5, 7)
    since = lake.versions("raw_impressions")["raw_impressions"]
    outcomes = at_once(*(lambda day=day, n=n: lake.replace_days("raw_impressions", impressions(lake, n, day), [day],
                                                                since=since) for n, day in ((1, DAY), (2, other))))
    assert outcomes == [1, 2] and lake.days("raw_impressions") == [DAY, other]
    found = replacements_after(str(tmp_path / "lake" / "raw_impressions"), since)
    assert sorted(r.days for r in found.values()) == [(DAY,), (other,)]
    one = Replacement(days=(DAY, other), where="model = 'a'")
    assert one.overlaps(Replacement(days=(other,), where=None))
    assert not one.overlaps(Replacement(days=(other,), where="model = 'b'"))


@contextmanager
def file_size_limit(pid: int, size: int) -> Iterator[None]:
    """Every file that the process writes ends at `size` bytes, as on a disk that is full."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_ends_in_one_line_and_leaves_the_version_before(spark, alimama, tmp_path, caplog):
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    lake.replace_days("raw_impressions", impressions(lake, 3), [DAY])
    before, version = checksum(lake.read("raw_impressions")), lake.version("raw_impressions")
    ids = F.xxhash64("id")  # nothing that Parquet could make small
    many = spark.range(200_000).select(
        F.lit(DAY).alias("day"), ids.alias("user"), F.timestamp_seconds(F.lit(1_494_000_000)).alias("time_stamp"),
        ids.alias("adgroup_id"), F.lit("430548_1007").alias("pid"), F.lit(1).alias("nonclk"), F.lit(0).alias("clk"))
    jvm = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    with file_size_limit(jvm, 100_000):
        code = run_job("write", argparse.ArgumentParser(),
                       lambda args: str(lake.replace_days("raw_impressions", many, [DAY])), [])
    last = caplog.records[-1].getMessage()
    assert code == FAILURE and last.startswith("write failed: ") and "File too large" in last and "\n" not in last
    assert lake.version("raw_impressions") == version and checksum(lake.read("raw_impressions")) == before
    assert lake.replace_days("raw_impressions", many, [DAY]) == 200_000


def test_an_unreadable_raw_file_is_named_and_nothing_is_written(spark, alimama, tmp_path):
    lake = tmp_path / "lake"
    source, _ = write(tmp_path / "raw", alimama, good=3_000)
    zipped = source / f"{alimama.impressions.file}.gz"
    whole = zipped.read_bytes()
    middle = len(whole) // 2
    zipped.write_bytes(whole[:middle] + bytes(byte ^ 0xff for byte in whole[middle:middle + 64]) + whole[middle + 64:])
    with pytest.raises(InputError, match=f"{zipped.name}: cannot be read: zlib"):
        ingest_logs(spark, alimama, str(source), str(lake), None)
    zipped.unlink()
    zipped.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"expected either {alimama.impressions.file} or .* found none of them"):
        ingest_logs(spark, alimama, str(source), str(lake), None)
    assert not lake.exists()


def test_a_cut_off_parquet_file_of_the_export_is_named(tmp_path):
    uri = write_export(tmp_path, files={"train": (30, 20), "validation": (10,), "test": (10,)})
    manifest = read_manifest(uri)
    file = Path(uri) / manifest.splits["train"][1].path
    file.write_bytes(file.read_bytes()[:-200])
    assert open_export(uri, small_schema(), "train").manifest == manifest
    with pytest.raises(InputError, match=f"{file}: no whole Parquet file"):
        list(epoch_batches(uri, manifest, ("train",), seed=0, epoch=0, world_size=1, rank=0, batch_size=8,
                           shuffle=True))
