"""Every job killed at random moments and run again: the tables are those of an undisturbed run. `make test-faults`.

Not collected by default. FAULT_KILLS (20) kills a job at moments spread over its undisturbed time, by a fixed seed; the
kills follow one another on one lake, and after every fifth the job runs to its end and is compared. FAULT_JOBS names
some of the jobs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import mlflow
import numpy as np
import pytest
from checksums import checksum, checksums
from killing import kill, start
from raw_tables import LAST_DAY
from small_package import small_package
from test_faults import INGESTED
from test_faults import write as write_raw_files
from test_kill_and_rerun import ARGUMENTS, LAST, MODE, content, stage_folders

from mail_core.lake.tables import Lake
from mail_core.package.store import METRICS, WEIGHTS
from mail_core.tracking.promotions import aliases
from mail_core.tracking.registry import register_package, resolve_model
from mail_core.tracking.runs import configure_tracking

KILLS, FINISH_EVERY, SEED, TIMEOUT = int(os.environ.get("FAULT_KILLS", "20")), 5, 20_261_124, 300
# Margins as wide as they can be: the challenger is promoted, and all its aliases move.
TABLES = {"check_features": "checks", "promote": "promotions"}
OTHERS = {"check_features": ("--date", LAST),
          "promote": ("--date", LAST, "--model", "m", "--auc-margin", "0.99", "--logloss-margin", "0.99",
                      "--least-clicks", "1")}
JOBS = ("ingest_logs", *ARGUMENTS, *OTHERS, "train")
CHOSEN = os.environ.get("FAULT_JOBS", ",".join(JOBS)).split(",")
TRAIN = ("--end-date", str(LAST_DAY), "--new-users", MODE, "--preset", "tiny", "--ranks", "2", "--epochs", "2",
         "--checkpoint-seconds", "0")
MODEL = "alimama-mail-base_dnn"


@dataclass
class Line:
    """A line of the printed table."""

    job: str
    undisturbed: float
    killed: int = 0
    ended_before: int = 0
    finished: int = 0
    seconds: float = 0.0
    moments: list[float] = field(default_factory=list)


LINES: list[Line] = []


@pytest.fixture(scope="module", autouse=True)
def printed_table() -> Iterator[None]:
    yield
    print(f"\n{'job':16} {'undisturbed s':>13} {'killed':>7} {'had ended':>9} {'reruns equal':>12} {'s in all':>9}")
    for line in LINES:
        print(f"{line.job:16} {line.undisturbed:13.1f} {line.killed:7} {line.ended_before:9} {line.finished:12} "
              f"{line.seconds:9.0f}")


@pytest.fixture(scope="module")
def stages(spark, alimama, tmp_path_factory) -> dict[str, Path]:
    found = stage_folders(spark, alimama, tmp_path_factory.mktemp("undisturbed"))
    root = found["done"].parent
    configure_tracking(None, str(found["done"]))
    for alias, seed in (("champion", 0), ("challenger", 1)):
        package = small_package(root / alias, alimama, seed=seed, new_users=MODE, test_day=LAST_DAY)
        register_package(package, "m", alias)
    return found | {job: found["done"] for job in OTHERS}


def arguments_of(job: str, root: Path, source: Path) -> tuple[str, ...]:
    table = ("--schema", "alimama", "--lake", str(root / "lake"))
    if job == "ingest_logs":
        return *table, "--source", str(source)
    return *table, *(TRAIN if job == "train" else (ARGUMENTS | OTHERS)[job])


def found(spark, schema, job: str, root: Path) -> object:
    """What the job has left, whatever its files are called."""
    if job == "ingest_logs":
        return checksums(Lake(spark, str(root / "lake"), schema), INGESTED)
    if job in ARGUMENTS:
        return content(spark, schema, root / "lake", job)
    configure_tracking(None, str(root / "lake"))
    if job in OTHERS:
        return checksum(Lake(spark, str(root / "lake"), schema).read(TABLES[job])), aliases("m")
    # One a training: one that ended before its kill is not gone on with, but trained once more.
    return {tuple(hashlib.sha256((resolve_model(f"models:/{MODEL}/{version.version}").package_folder / name)
                                 .read_bytes()).hexdigest() for name in (WEIGHTS, METRICS))
            for version in mlflow.MlflowClient().search_model_versions(f"name = '{MODEL}'")}


def completed(job: str, arguments: tuple[str, ...], log: Path) -> None:
    process = start(job, *arguments, log=log)
    try:
        assert process.wait(TIMEOUT) == 0, log.read_text()[-3000:]
    finally:
        kill(process)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", CHOSEN)
def test_a_job_killed_at_random_moments_leaves_what_an_undisturbed_run_does(spark, alimama, stages, tmp_path, job):
    source, log, began = tmp_path / "raw", tmp_path / "log", time.monotonic()
    write_raw_files(source, alimama, good=300, bad=40)
    roots = [tmp_path / name for name in ("calm", "wild")]
    for root in roots:
        if job == "train":  # with a store of its own
            shutil.copytree(stages["evaluate"], root / "lake")
        elif job != "ingest_logs":
            shutil.copytree(stages[job].parent, root)
    calm, wild = roots
    start_time = time.monotonic()
    completed(job, arguments_of(job, calm, source), log)
    line = Line(job, time.monotonic() - start_time)
    LINES.append(line)
    expected = found(spark, alimama, job, calm)
    arguments = (*arguments_of(job, wild, source), *(("--resume",) if job == "train" else ()))
    for number, share in enumerate(np.random.default_rng(SEED).uniform(0.05, 1.0, KILLS), 1):
        process = start(job, *arguments, log=log)
        try:
            time.sleep(share * line.undisturbed)
        finally:
            killed = kill(process)
        line.killed += killed
        line.ended_before += not killed
        if number % FINISH_EVERY == 0 or number == KILLS:
            completed(job, arguments, log)
            assert found(spark, alimama, job, wild) == expected, f"after kill {number}"
            line.finished += 1
    line.seconds = time.monotonic() - began
