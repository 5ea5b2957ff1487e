"""`jobs/clean_up.py` on real Delta, files and MLflow, whose times are set back: what is old goes, what a champion was
trained on stays and can be read."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from raw_tables import call_job
from small_package import feature_rows, small_package

from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.loading.manifest import manifest_fingerprint
from mail_core.package.store import load_package, save_package
from mail_core.tracking.registry import register_package
from mail_core.tracking.runs import configure_tracking, tracked_run

LAST = date(2017, 5, 13)
WEEK = [LAST - timedelta(days=back) for back in range(3, -1, -1)]
NAME, OLD_DAYS = "alimama-mail-base_dnn", 200
EXPORT = f"{LAST}-4d-natural"


@dataclass(frozen=True)
class Made:
    lake: Lake
    root: Path
    read: pa.Table
    """`features` as the champion was trained on them."""
    version: int
    """Of the table then."""


def with_lineage(package: Path, folder: Path, features_version: int) -> Path:
    """A copy of a package that says what it was trained on."""
    loaded = load_package(package)
    lineage = {
        "new_users": "natural", "schema": {"fingerprint": loaded.schema.fingerprint}, "training": dict.fromkeys(
            ("preset", "epochs", "seed", "ranks", "device", "batch_size", "learning_rate", "embedding_optimizer"), 1),
        "export": {"manifest_fingerprint": manifest_fingerprint("{}"), "encoder_fingerprint": "", "days": 4,
                   "delta_versions": {"features": features_version}, "first_day": str(WEEK[0]), "end_date": str(LAST)}}
    return save_package(folder, model=loaded.model, encoders=loaded.encoders, lineage=lineage, metrics={})


def set_back(root: Path, days: float) -> None:
    """Make all files below `root`, Delta's own records and MLflow's store so many days older."""
    milliseconds = round(days * 86_400_000)
    for record in root.glob("lake/*/_delta_log/*.json"):
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        for entry in lines:
            for action, key in (("remove", "deletionTimestamp"), ("commitInfo", "timestamp"),
                                ("commitInfo", "inCommitTimestamp"), ("add", "modificationTime")):
                if key in entry.get(action, {}):
                    entry[action][key] -= milliseconds
        record.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        record.with_name(f".{record.name}.crc").unlink(missing_ok=True)
    for path in root.rglob("*"):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as store:
        for table, column in (("runs", "end_time"), ("model_versions", "creation_time")):
            store.execute(f"UPDATE {table} SET {column} = {column} - {milliseconds}")


@pytest.fixture(scope="module")
def made(spark, alimama, tmp_path_factory) -> Made:
    """Two versions of 200 days ago, the second one champion; since then `features` was replaced, and again today."""
    root = tmp_path_factory.mktemp("clean_up")
    before, after = root / "before", root / "after"
    lake = Lake(spark, str(before / "lake"), alimama)
    rows = pa.concat_tables([feature_rows(alimama, day, 30, seed=day.day) for day in WEEK])
    lake.replace_days("features", spark.createDataFrame(rows), WEEK)
    read = lake.version("features")
    lake.replace_days("features", spark.createDataFrame(rows.slice(0, 100)), WEEK)
    for name in (EXPORT, f"{LAST - timedelta(days=1)}-4d-natural"):
        folder = before / "lake" / "exports" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    stopped = before / "checkpoints" / NAME / "0123"
    stopped.mkdir(parents=True)
    (stopped / "mlflow_run").write_text("gone")
    configure_tracking(None, lake.uri, "alimama")
    package = with_lineage(small_package(root / "plain", alimama), root / "told", read)
    for _ in "12":
        with tracked_run(NAME):
            register_package(package, NAME)
    MlflowClient().set_registered_model_alias(NAME, "champion", "2")
    set_back(before, OLD_DAYS)
    shutil.copytree(before, after, copy_function=shutil.copy2)  # what Delta remembers of the first place is not old
    with sqlite3.connect(after / "mlflow" / "mlflow.db") as store:
        for table, column in (("model_versions", "source"), ("model_versions", "storage_location"),
                              ("runs", "artifact_uri"), ("experiments", "artifact_location"),
                              ("logged_models", "artifact_location")):
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(before), str(after)))
    moved = Lake(spark, str(after / "lake"), alimama)
    moved.replace_days("features", spark.createDataFrame(rows.slice(0, 90)), WEEK[:3])
    return Made(moved, after, rows, read)


def clean_up(made: Made, *arguments: str) -> int:
    return call_job("clean_up", "--schema", "alimama", "--lake", made.lake.uri, "--date", str(LAST), *arguments)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if "_delta_log" not in path.parts}


def versions() -> list[str]:
    return sorted(str(v.version) for v in MlflowClient().search_model_versions(f"name = '{NAME}'"))


def test_without_delete_all_stays_and_with_it_all_that_the_champion_needs(made, capsys):
    configure_tracking(None, made.lake.uri)
    before, champion = everything(made.root), MlflowClient().get_model_version(NAME, "2").run_id
    assert clean_up(made) == DONE
    said = capsys.readouterr().out
    assert everything(made.root) == before and versions() == ["1", "2"]
    assert "would be removed" in said and f"{LAST}-4d" not in said

    assert clean_up(made, "--delete") == DONE
    assert capsys.readouterr().out == said.replace("would be removed", "removed")
    assert [path.name for path in (made.root / "lake" / "exports").iterdir()] == [EXPORT]
    assert not list((made.root / "checkpoints").glob("*/*"))
    assert versions() == ["2"]
    [run] = MlflowClient().search_runs([MlflowClient().get_experiment_by_name("alimama").experiment_id])
    assert run.info.run_id == champion
    then = made.lake.read_days("features", WEEK, made.version).toArrow()
    assert then.num_rows == made.read.num_rows, "the champion can be trained again"

    assert clean_up(made, "--delete") == DONE
    assert capsys.readouterr().out.strip() == "", "nothing is left to do"


def test_when_no_version_needs_them_the_files_go(made, caplog):
    configure_tracking(None, made.lake.uri)
    MlflowClient().delete_registered_model_alias(NAME, "champion")
    files = sorted((made.root / "lake" / "features").rglob("*.parquet"))
    assert clean_up(made, "--delete") == DONE
    left = sorted((made.root / "lake" / "features").rglob("*.parquet"))
    assert set(left) < set(files) and made.lake.read("features").count() == 90 + 10
    assert versions() == [] and not list((made.root / "lake" / "exports").iterdir())


def test_a_live_version_that_does_not_say_what_it_was_trained_on_stops_everything(made, alimama, tmp_path, caplog):
    configure_tracking(None, made.lake.uri, "alimama")
    before = everything(made.root / "lake")
    with tracked_run("silent"):
        register_package(small_package(tmp_path / "silent", alimama), "silent", alias="mine")
    assert clean_up(made, "--delete") == BAD_INPUT
    assert "an alias names it, so nothing is removed" in caplog.text
    assert everything(made.root / "lake") == before
