"""Airflow in its own environment, on a home that a test owns, and deliveries of logs a day at a time."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from mail_core.schema.definition import Schema
from mail_core.simulation.planted import WorldConfig

FIRST, SECOND, THIRD = DAYS = [date(2017, 5, day) for day in (11, 12, 13)]
NAME = "alimama-mail-base_dnn"
# Some hundred clicks a day, and items that differ: a version of one epoch is better than a constant, for certain.
WORLD = WorldConfig(users=400, items=50, days=10, impressions_per_user=40, behaviors_per_user=30, ctr=0.3,
                    quality_scale=1.5)
PARAMS = {
    "preset": "tiny", "ranks": 2, "epochs": 1, "train_options": "--batch-size 128 --learning-rate 0.005",
    # A lake so small cannot show the margins of a real one.
    "auc_margin": 0.2, "promote_options": "--logloss-margin 0.5 --least-clicks 20 --resamples 40"}
ROOT = Path(__file__).resolve().parents[2]
AIRFLOW_PYTHON = ROOT / "runs" / "airflow" / "venv" / "bin" / "python"
"""Made by .ci/setup-airflow (`make test-airflow`)."""
WATCH = """
import os
def failed(context):
    with open(os.environ["MAIL_TEST_WATCH"], "a") as log:
        log.write(f"{context['ti'].task_id} {' '.join(str(context['exception']).split())}\\n")
"""
SPARK = """
spark.driver.memory 1g
spark.sql.shuffle.partitions 2
spark.default.parallelism 1
"""
"""A night is a dozen JVMs that live for seconds: nothing in them is worth a second Python worker."""


@dataclass(frozen=True, kw_only=True)
class Airflow:
    """One Airflow on SQLite with the project's DAGs. Runs are made by `airflow dags test`: one process, no server."""

    folder: Path
    """Of its home, of the lake and of all that the jobs write."""

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def failures(self) -> list[str]:
        """What the callback has heard: task and exception."""
        watched = self.folder / "watched"
        return watched.read_text().splitlines() if watched.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        """Spark and Python of the project come by the PATH; spark-submit takes nothing from the tests' own session."""
        kept = {name: value for name, value in os.environ.items() if name != "PYSPARK_SUBMIT_ARGS"}
        settings = {"home": str(ROOT), "python": sys.executable, "lake": str(self.lake), "source": str(self.source),
                    "reports": str(self.reports), "properties_file": str(self.folder / "spark.conf"),
                    "on_failure": "watch.failed"}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYSPARK_PYTHON": sys.executable,
            "PYTHONPATH": f"{ROOT}:{self.folder}", "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "airflow_dags"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW_VAR_MAIL": json.dumps(settings),
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[1]"}),
            "MAIL_TEST_WATCH": str(self.folder / "watched"), "MLFLOW_DISABLE_TELEMETRY": "true"}

    def start(self) -> None:
        """Make the home and its database."""
        (self.folder / "watch.py").write_text(WATCH)
        (self.folder / "spark.conf").write_text(SPARK)
        done = self.command("db", "migrate")
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`airflow ARGUMENTS`."""
        return subprocess.run([str(AIRFLOW_PYTHON), "-m", "airflow", *arguments], env=self.environment, cwd=self.folder,
                              capture_output=True, text=True, timeout=2400, check=False)

    def run(self, dag: str, at: str, params: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
        """One run of a DAG as of the local time `at`."""
        return self.command("dags", "test", dag, at, "--conf", json.dumps(params), *arguments)

    def night(self, day: date, params: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
        """The daily run of `day`, an hour after its end in Shanghai, where UTC is still on that day."""
        return self.run("mail_daily_retraining", f"{day + timedelta(days=1)}T01:00:00+08:00", params, *arguments)

    def query(self, sql: str, *values: str) -> list[tuple]:
        """Rows of Airflow's own database."""
        with sqlite3.connect(self.folder / "airflow" / "airflow.db") as database:
            return database.execute(sql, values).fetchall()

    def states(self, dag: str, number: int) -> tuple[str, dict[str, str]]:
        """State of a DAG's run of this number, from 0, and of its tasks."""
        run_id, state = self.query("SELECT run_id, state FROM dag_run WHERE dag_id = ? ORDER BY logical_date, id",
                                   dag)[number]
        return state, dict(self.query("SELECT task_id, state FROM task_instance WHERE dag_id = ? AND run_id = ?",
                                      dag, run_id))


def deliver(logs: Path, schema: Schema, source: Path, days: list[date]) -> None:
    """The simulated `logs` as they would arrive: a complete folder for each of `days`, and `history` with what was
    before them."""
    for name in ("history", *map(str, days)):
        (source / name).mkdir(parents=True)
        for snapshot in (schema.users, schema.items):
            shutil.copytree(logs / snapshot.file, source / name / snapshot.file)
    for log in (schema.impressions, schema.behaviors):
        rows = pd.concat([pd.read_csv(part, dtype=str, keep_default_na=False)
                          for part in sorted((logs / log.file).glob("*.csv"))])
        moments = pd.to_datetime(rows[log.time].astype("int64"), unit="s", utc=True)
        day = moments.dt.tz_convert(schema.timezone).dt.date
        rows[day < days[0]].to_csv(source / "history" / log.file, index=False)
        for delivered in days:
            rows[day == delivered].to_csv(source / str(delivered) / log.file, index=False)
    for delivered in days:
        (source / str(delivered) / "_SUCCESS").touch()
