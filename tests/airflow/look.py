"""Run by Airflow's own Python: what the DAG folder of its configuration holds, as JSON on the last line."""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.dagbag import BundleDagBag


def described(task: Any) -> dict[str, Any]:
    """What a test asks of a task, of a mapped one, too."""
    given = getattr(task, "partial_kwargs", None) or vars(task)
    return {
        "downstream": sorted(task.downstream_task_ids), "retries": task.retries,
        "backoff": task.retry_exponential_backoff, "watched": bool(task.on_failure_callback),
        "seconds": task.execution_timeout and task.execution_timeout.total_seconds(),
        "job": given.get("job") or given.get("application", "").rsplit("/", 1)[-1].removesuffix(".py"),
        "arguments": [*(given.get("options") or ()), *str(given.get("further", "")).split()]}


folder = conf.get("core", "dags_folder")
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
dags = {name: {"timezone": str(dag.timezone), "max_active_runs": dag.max_active_runs, "catchup": dag.catchup,
               "tasks": {task.task_id: described(task) for task in dag.tasks}} for name, dag in bag.dags.items()}
print(json.dumps({"errors": bag.import_errors, "dags": dags,
                  "imported": sorted({"torch", "pyspark", "mail_core"} & set(sys.modules))}))
