"""Rebuild a range of days: raw tables, features, evaluations, scores; each day is replaced, each a task of its own.

Triggered by hand, with `start`, `end` and `steps`. Use it

- to fill a new lake before the first night of `mail_daily_retraining`: `ingest` and `features` of seven days;
- for days that it has missed, or whose logs were delivered again: `ingest` and `features`, and `features` of as many
  days after them as behaviour looks back, for their sequences hold the behaviour of the days before;
- to measure a version on days gone by (`evaluate`), or to score them again (`score`: each day by behaviour before it,
  for the users and items of the day before), both with `model`.

A version knows the days that it was trained on: an evaluation of one of those is no held-out one. Training is no part
of this: versions of days gone by would only be kept back. A failed day is run again by clearing its task; the others
stand.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG, Param, TriggerRule, chain, task
from airflow.sdk.exceptions import AirflowFailException
from mail_jobs import DEFAULTS, PARAMS, SOURCE, TABLES, TIMEZONE, TRACKED, SparkJob

STEPS = ("ingest", "features", "evaluate", "score")
MEASURED = {**TRACKED, "--model": "{{ params.model or '' }}"}


def days_of(step: str, params: dict[str, Any]) -> list[str]:
    """The argument of each day of the range, for a step that is wanted; none for another.

    Raises:
        AirflowFailException: the range ends before it begins, or a step that needs `model` has none.
    """
    first, last = date.fromisoformat(params["start"]), date.fromisoformat(params["end"])
    if last < first:
        raise AirflowFailException(f"end {last} is before start {first}")
    if step not in params["steps"]:
        return []
    if step in ("evaluate", "score") and not params["model"]:
        raise AirflowFailException(f"{step} needs model: models:/NAME@champion or models:/NAME/VERSION")
    return [f"--date {first + timedelta(days=number)}" for number in range((last - first).days + 1)]


with DAG(
    "mail_rebuild_range",
    description="Rebuild raw tables, features, evaluations or scores of a range of days",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2017, 5, 1, tz=TIMEZONE),
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["mail"],
    params={
        **PARAMS,
        "start": Param(type="string", format="date", description="First day."),
        "end": Param(type="string", format="date", description="Last day."),
        "steps": Param(["features"], type="array", items={"enum": list(STEPS)}, uniqueItems=True, minItems=1,
                       description=f"Some of {', '.join(STEPS)}, done in this order.", examples=list(STEPS)),
        "source": Param(None, type=["null", "string"], description="As of mail_daily_retraining, for ingest."),
        "model": Param(None, type=["null", "string"],
                       description="models:/NAME@ALIAS or models:/NAME/VERSION, for evaluate and score."),
    },
) as dag:

    @task(retries=0)
    def days(step: str, params: dict[str, Any]) -> list[str]:
        """An argument for each day on which a step is wanted."""
        return days_of(step, params)

    def of_each_day(step: str, job: str, options: dict[str, str]) -> SparkJob:
        """One job a day; the days of one step one after another, for each has its own Spark application."""
        wanted = days.override(task_id=f"days_to_{step}")(step)
        return SparkJob.partial(
            task_id=step, job=job, options=options, trigger_rule=TriggerRule.NONE_FAILED, max_active_tis_per_dagrun=1,
            map_index_template="{{ task.further.removeprefix('--date ') }}").expand(further=wanted)

    # Every day is ingested before the first features are built: sequences hold behaviour of the days before.
    chain(of_each_day("ingest", "ingest_logs", {**TABLES, "--source": SOURCE}),
          of_each_day("features", "build_features", TABLES),
          of_each_day("evaluate", "evaluate", MEASURED),
          of_each_day("score", "score", MEASURED))
