"""Once a week: exports, checkpoints, MLflow runs, rows and Delta table versions past retention go.

What a version under an alias (`champion`, `challenger`, `previous`, or one of your own) was trained on stays, however
old: its export, its run, and the days and table versions that it read. The task's log has a line for everything that
was looked at: removed or kept, and why. How long rows are kept stands in the schema (`retention_days`); for all else a
param left null takes the default of `jobs/clean_up.py`.

Trigger it once with `delete` switched off, and read the log, before you switch the schedule on.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, CronDataIntervalTimetable, Param
from mail_jobs import DEFAULTS, PARAMS, TIMEZONE, TRACKED, SparkJob

KEPT = {
    "export_days": "Exports of training data.",
    "checkpoint_days": "Checkpoints of trainings that were stopped.",
    "run_days": "MLflow runs, and registered versions without an alias.",
    "version_days": "Files of earlier versions of the Delta tables.",
}

with DAG(
    "mail_clean_up",
    description="Remove what is past retention, and never what a live model version was trained on",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 12 * * 0", timezone=TIMEZONE),
    start_date=pendulum.datetime(2017, 5, 1, tz=TIMEZONE),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["mail"],
    params={
        **PARAMS,
        "delete": Param(True, type="boolean", description="Off: only say what would go."),
        **{name: Param(None, type=["null", "integer"], minimum=1, description=f"Days that are kept: {text}")
           for name, text in KEPT.items()},
    },
) as dag:
    SparkJob(
        task_id="clean_up", job="clean_up", further="{{ '--delete' if params.delete else '' }}",
        options={**TRACKED, "--date": "{{ data_interval_end.in_timezone(dag.timezone) | ds }}",
                 **{f"--{name.replace('_', '-')}": f"{{{{ params.{name} or '' }}}}" for name in KEPT}})
