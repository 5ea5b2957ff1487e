"""What all DAGs have in common, and real runs of the two beside the daily one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from typing import Any

import pytest
from nights import AIRFLOW_PYTHON, FIRST, ROOT, SECOND
from pyspark.sql import functions as F

pytestmark = pytest.mark.timeout(3600)  # the nights may be made for the first test that runs


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
