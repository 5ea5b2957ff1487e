"""Two nights of the daily DAG, with the real jobs, for all tests of Airflow."""

from __future__ import annotations

from datetime import timedelta

import pytest
from nights import DAYS, FIRST, PARAMS, SECOND, WORLD, Airflow, deliver

from mail_core.lake.tables import Lake
from mail_core.simulation.logs import simulate_logs
from mail_core.spark.features import FeatureDays, replace_features
from mail_core.spark.ingest import ingest_logs
from mail_core.tracking.runs import configure_tracking


@pytest.fixture(scope="session")
def airflow(spark, alimama, tmp_path_factory) -> Airflow:
    """Two nights have gone by, on a lake that had the week before them."""
    result = Airflow(folder=tmp_path_factory.mktemp("airflow"))
    simulate_logs(spark, alimama, WORLD, str(result.folder / "logs"))
    deliver(result.folder / "logs", alimama, result.source, DAYS)
    ingest_logs(spark, alimama, str(result.source / "history"), str(result.lake), None)
    replace_features(alimama, Lake(spark, str(result.lake), alimama),
                     FeatureDays(last=FIRST - timedelta(days=1), days=7))
    result.start()
    for day in (FIRST, SECOND):
        done = result.night(day, PARAMS)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    configure_tracking(None, str(result.lake))
    return result


@pytest.fixture
def lake(airflow, spark, alimama) -> Lake:
    return Lake(spark, str(airflow.lake), alimama)
