"""Each job that commits one table or one manifest, killed with files written and nothing committed, and run again.

Ingestion, which commits several tables, is killed in test_faults; training in test_checkpoints.
"""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checksums import checksum
from killing import kill, start
from raw_tables import LAST_DAY, call_job, random_rows, write
from small_package import small_package

from mail_core.job import DONE
from mail_core.lake.tables import Lake
from mail_core.loading.manifest import read_manifest
from mail_core.tracking.registry import register_package
from mail_core.tracking.runs import configure_tracking

MODE, LAST, NEXT = "masked:0.4:7", str(LAST_DAY), str(LAST_DAY + timedelta(days=1))
ARGUMENTS = {"build_features": ("--date", LAST, "--days", "3"),
             "export_training": ("--end-date", LAST, "--days", "3", "--new-users", MODE),
             "evaluate": ("--date", LAST, "--model", "models:/m/1"),
             "score": ("--date", NEXT, "--model", "models:/m/1")}
WRITTEN = {"build_features": "features/day=*/*.parquet", "export_training": "exports/*/data-*/test/*.parquet",
           "evaluate": "evaluations/day=*/*.parquet", "score": "ctr_scores/day=*/*.parquet"}
"""Files that a job has written before it commits."""
TABLES = {"build_features": "features", "evaluate": "evaluations", "score": "ctr_scores"}


def arguments(lake: Path, job: str) -> tuple[str, ...]:
    return "--schema", "alimama", "--lake", str(lake), *ARGUMENTS[job]


@pytest.fixture(scope="module")
def stages(spark, alimama, tmp_path_factory) -> dict[str, Path]:
    return stage_folders(spark, alimama, tmp_path_factory.mktemp("undisturbed"))


def stage_folders(spark, alimama, root: Path) -> dict[str, Path]:
    """The lake as each job finds it; under `done` the undisturbed one after all of them."""
    lake, found = Lake(spark, str(root / "lake"), alimama), {}
    for role, rows in random_rows(seed=5).items():
        write(lake, alimama, role, rows)
    configure_tracking(None, lake.uri, "alimama")
    register_package(small_package(root / "package", alimama, new_users=MODE), "m", "challenger")
    for job in ARGUMENTS:
        found[job] = shutil.copytree(root, root.with_name(f"before_{job}")) / "lake"
        assert call_job(job, *arguments(Path(lake.uri), job)) == DONE
    return found | {"done": Path(lake.uri)}


def committed(lake: Path, job: str) -> list[Path]:
    """A table's version 0 holds no rows."""
    if job in TABLES:
        return list(lake.glob(f"{TABLES[job]}/_delta_log/{1:020}.json"))
    return list(lake.glob("exports/*/manifest.json"))


def content(spark, schema, lake: Path, job: str) -> object:
    if job in TABLES:
        return checksum(Lake(spark, str(lake), schema).read(TABLES[job]))
    [root] = lake.glob("exports/*")
    manifest = read_manifest(str(root))
    assert [folder.name for folder in root.glob("data-*")] == [manifest.data], "a killed run's files are removed"
    rows = {split: [pq.read_table(root / entry.path).to_pydict() for entry in entries]
            for split, entries in manifest.splits.items()}
    return manifest.encoder_fingerprint, manifest.statistics, rows


def killed_before_its_commit(job: str, before: Path, root: Path) -> Path | None:
    """The lake on which the job was killed with files written and nothing committed; None where the commit was faster.
    """
    lake, log = shutil.copytree(before.parent, root) / "lake", root.with_suffix(".log")
    process = start(job, *arguments(lake, job), log=log)
    try:
        while not list(lake.glob(WRITTEN[job])) and process.poll() is None:
            time.sleep(0.002)
    finally:
        killed = kill(process)
    assert killed and list(lake.glob(WRITTEN[job])), log.read_text()
    return None if committed(lake, job) else lake


@pytest.mark.parametrize("job", ARGUMENTS)
def test_a_job_killed_before_its_commit_and_run_again_leaves_what_an_undisturbed_run_does(spark, alimama, stages,
                                                                                        tmp_path, job):
    tries = (killed_before_its_commit(job, stages[job], tmp_path / f"try{number}") for number in range(3))
    lake = next((lake for lake in tries if lake is not None), None)
    assert lake is not None, "the commit was faster three times"
    configure_tracking(None, str(lake))
    assert call_job(job, *arguments(lake, job)) == DONE
    assert committed(lake, job)
    assert content(spark, alimama, lake, job) == content(spark, alimama, stages["done"], job)
