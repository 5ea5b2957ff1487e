"""Nights of `mail_daily_retraining` with the real jobs: two that go well, and one whose training fails."""

from __future__ import annotations

from datetime import timedelta

import pytest
from mlflow import MlflowClient
from nights import FIRST, NAME, PARAMS, SECOND, THIRD
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
