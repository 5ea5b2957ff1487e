"""Run by Airflow's own Python: what the DAG folder of its configuration holds, as JSON on the last line."""

from __future__ import annotations

import json
import sys

from airflow.configuration import conf
from airflow.dag_processing.dagbag import BundleDagBag

folder = conf.get("core", "dags_folder")
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
dags = {name: {
    "timezone": str(dag.timezone), "max_active_runs": dag.max_active_runs, "catchup": dag.catchup,
    "doc": bool(dag.doc_md),
    "tasks": {task.task_id: {
        "downstream": sorted(task.downstream_task_ids), "retries": task.retries,
        "trigger_rule": str(task.trigger_rule.value), "backoff": task.retry_exponential_backoff,
        "outlets": [asset.name for asset in task.outlets],
        "timeout": None if task.execution_timeout is None else task.execution_timeout.total_seconds(),
        "watched": bool(task.on_failure_callback)} for task in dag.tasks},
} for name, dag in bag.dags.items()}
print(json.dumps({"errors": bag.import_errors, "dags": dags,
                  "imported": sorted({"torch", "pyspark", "mail_core"} & set(sys.modules))}))
