"""Nights of `mail_daily_retraining` with the real jobs, what all DAGs have in common, and runs of the two beside it.

In one file, so that the two nights, which all tests share, are made by one process.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from datetime import timedelta
from typing import Any

import pytest
from mlflow import MlflowClient
from nights import AIRFLOW_PYTHON, FIRST, NAME, PARAMS, ROOT, SECOND, THIRD
from pyspark.sql import functions as F

from mail_core.lake.tables import Lake
from mail_core.package.store import load_package
from mail_core.tracking.promotions import aliases
from mail_core.tracking.registry import resolve_model

TASKS = ("wait_for_logs", "ingest", "features", "checks", "export", "train", "evaluate", "promote", "score", "report",
         "finished")

pytestmark = pytest.mark.timeout(3600)  # a dozen jobs a night, each with a JVM of its own


def values(lake: Lake, table: str, *columns: str) -> list[tuple]:
    """The distinct values of some columns, in order."""
    return sorted(tuple(row) for row in lake.read(table).select(*columns).distinct().collect())


def test_both_nights_end_well_and_leave_every_table_of_their_day(airflow, lake):
    for number in (0, 1):
        state, tasks = airflow.states("mail_daily_retraining", number)
        assert state == "success" and tasks == dict.fromkeys(TASKS, "success")
    assert airflow.failures == []
    week = [FIRST - timedelta(days=back) for back in range(7, 0, -1)]
    assert lake.days("raw_impressions") == lake.days("features") == [*week, FIRST, SECOND]
    assert lake.read("quarantine").isEmpty(), "each night took the local day that its folder holds"
    assert lake.days("checks") == lake.days("evaluations") == lake.days("promotions") == [FIRST, SECOND]
    pairs = lake.read("raw_impressions").where(F.col("day") == F.lit(SECOND)).select("user", "adgroup_id").distinct()
    scores = lake.read("ctr_scores").where(F.col("day") == F.lit(THIRD))
    assert scores.count() == pairs.count() > 0
    assert [path.name for path in sorted(airflow.reports.iterdir())] == [f"{FIRST}.html", f"{SECOND}.html"]


def test_each_night_has_a_version_that_is_judged_on_its_day_and_scores_the_next(airflow, lake):
    assert [load_package(resolve_model(f"models:/{NAME}/{version}").package_folder).test_day
            for version in "12"] == [FIRST, SECOND]
    assert values(lake, "promotions", "day", "model_version", "champion", "decision", "auc_margin") == [
        (FIRST, "1", None, "promoted", 0.2), (SECOND, "2", "1", "promoted", 0.2)]
    assert values(lake, "evaluations", "day", "model_name", "model_version") == [
        (FIRST, NAME, "1"), (SECOND, NAME, "2")]
    assert values(lake, "ctr_scores", "day", "model_name", "model_version")[:2] == [
        (SECOND, NAME, "1"), (THIRD, NAME, "2")]
    assert len(MlflowClient().search_model_versions(f"name = '{NAME}'")) == 2
    assert aliases(NAME) == {"challenger": "2", "champion": "2", "previous": "1"}


def test_assets_tell_what_was_updated(airflow):
    told = airflow.query("SELECT a.name, e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id ORDER BY e.id")
    assert [name for name, _ in told[:4]] == ["mail_champion", "mail_ctr_scores"] * 2
    assert f'"date": "{FIRST}"' in told[0][1] and f'"date": "{THIRD}"' in told[3][1] and NAME in told[3][1]


def test_a_training_that_fails_leaves_the_champion_scoring_and_the_run_says_so(airflow, lake):
    before = aliases(NAME)
    # The export is told to be there and is not, so that training finds nothing to read.
    done = airflow.night(THIRD, PARAMS, "--mark-success-pattern", "features|checks|export|report")
    assert done.returncode != 0
    state, tasks = airflow.states("mail_daily_retraining", 2)
    assert state == "failed"
    assert {name: tasks[name] for name in ("ingest", "train", "evaluate", "promote", "score", "finished")} == {
        "ingest": "success", "train": "failed", "evaluate": "upstream_failed", "promote": "upstream_failed",
        "score": "success", "finished": "upstream_failed"}
    [told] = airflow.failures  # once: bad input is not tried again
    assert told.startswith("train ") and "exit code 2" in told and f"no export ending on {THIRD}" in told
    assert aliases(NAME) == before
    assert values(lake, "ctr_scores", "day", "model_version")[-1] == (THIRD + timedelta(days=1), "2")
    assert lake.days("promotions") == [FIRST, SECOND]


@pytest.fixture(scope="module")
def folder(airflow) -> dict[str, Any]:
    """What `look.py` says of the DAG folder."""
    done = subprocess.run([str(AIRFLOW_PYTHON), str(ROOT / "tests" / "airflow" / "look.py")], env=airflow.environment,
                          capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_dags_import_airflow_alone_and_every_task_is_watched_retried_and_limited(folder, alimama):
    assert folder["errors"] == {} and folder["imported"] == []
    assert sorted(folder["dags"]) == ["mail_clean_up", "mail_daily_retraining", "mail_rebuild_range"]
    for dag in folder["dags"].values():
        assert dag["timezone"] == alimama.timezone and dag["max_active_runs"] == 1 and not dag["catchup"]
        for task in dag["tasks"].values():
            assert task["watched"] and task["backoff"] == 2 and task["seconds"] > 0
            assert task["retries"] == 2 or not task["job"]


def test_jobs_know_the_arguments_that_they_are_given(folder):
    jobs = [(task["job"], task["arguments"]) for dag in folder["dags"].values() for task in dag["tasks"].values()
            if task["job"]]
    assert len(jobs) == 9 + 4 + 1
    for name, arguments in jobs:
        spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
        job = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(job)
        known = job.parser()._option_string_actions
        assert [word for word in arguments if word.startswith("--") and word not in known] == []


def test_a_range_is_rebuilt_a_task_a_day_and_the_days_are_as_before(airflow, lake):
    def rows() -> list:
        return lake.read("features").where(F.col("day").isin(FIRST, SECOND)).orderBy("user", "time", "item").collect()

    before, versions = rows(), lake.version("features")
    done = airflow.run("mail_rebuild_range", f"{SECOND}T12:00:00+08:00",
                       {"start": str(FIRST), "end": str(SECOND), "steps": ["features"]})
    assert done.returncode == 0, done.stdout[-20_000:]
    built = airflow.query("SELECT map_index, state FROM task_instance WHERE dag_id = 'mail_rebuild_range' "
                          "AND task_id = 'features' ORDER BY map_index")
    assert built == [(0, "success"), (1, "success")]
    state, tasks = airflow.states("mail_rebuild_range", 0)
    assert state == "success" and {tasks[step] for step in ("ingest", "evaluate", "score")} == {"skipped"}
    assert rows() == before and lake.version("features") >= versions + 2


def test_clean_up_says_what_it_keeps_and_removes_nothing_of_these_days(airflow):
    exports = sorted(path.name for path in (airflow.lake / "exports").iterdir())
    done = airflow.run("mail_clean_up", f"{SECOND}T13:00:00+08:00", {"export_days": 1})
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "alias challenger, champion" in done.stdout and "models:/" in done.stdout
    assert sorted(path.name for path in (airflow.lake / "exports").iterdir()) == exports
