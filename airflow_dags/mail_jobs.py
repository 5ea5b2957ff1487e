"""What the DAGs share: where the project stands, how one of its jobs is run, whose day it is, who hears of a failure.

Imports Airflow alone. What a DAG file must know when it is parsed comes from the environment (MAIL_TIMEZONE,
MAIL_SPARK_CONN_ID); all else is read when a task runs, from the Airflow Variable `mail` (docs/airflow.md) and the run's
params.
"""

from __future__ import annotations

import os
import re
import shlex
from datetime import timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Context, Param, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.module_loading import import_string

TIMEZONE = os.environ.get("MAIL_TIMEZONE", "Asia/Shanghai")
"""The data set's: `timezone` of its schema. Days begin and end in it."""
SPARK_CONNECTION = os.environ.get("MAIL_SPARK_CONN_ID", "spark_default")
BAD_INPUT = 2
"""Exit code of a job whose arguments or input are bad: it would say no again."""

# Airflow keeps moments in UTC, in which midnight east of Greenwich still belongs to the day before.
DAY = "{{ data_interval_start.in_timezone(dag.timezone) | ds }}"
NEXT_DAY = "{{ macros.ds_add(data_interval_start.in_timezone(dag.timezone) | ds, 1) }}"
HOME = "{{ var.json.mail.home }}"
PYTHON = "{{ var.json.mail.get('python') or var.json.mail.home ~ '/.venv/bin/python' }}"
SOURCE = "{{ params.source or var.json.mail.source }}"
TABLES = {"--schema": "{{ params.schema }}", "--lake": "{{ params.lake or var.json.mail.lake }}"}
"""What every job takes."""
TRACKED = {**TABLES, "--tracking-uri": "{{ var.json.mail.get('tracking_uri') or '' }}"}
"""What every job takes that reads or writes MLflow's store."""

PARAMS = {
    "schema": Param("alimama", type="string", minLength=1, description="Name of a schema, or path of a YAML file."),
    "lake": Param(None, type=["null", "string"],
                  description="URI of the Delta tables; null: `lake` of the Variable `mail`."),
}


def words(options: dict[str, Any], further: str) -> list[str]:
    """A job's arguments: every option with a value that is not empty, then what `further` holds, split as by a shell.
    """
    given = [(name, str(value)) for name, value in options.items() if value not in (None, "")]
    return [word for pair in given for word in pair] + shlex.split(further)


class SparkJob(SparkSubmitOperator):
    """`jobs/<job>.py` by spark-submit, with master and deploy mode of the connection; exit code 2 is not retried.

    Args:
        job: name of the file.
        options: option -> value (templated); an empty value leaves its option out.
        further: more arguments in one text (templated).
    """

    template_fields = (*SparkSubmitOperator.template_fields, "options", "further")

    def __init__(self, *, job: str, options: Any, further: str = "", **kwargs: Any):
        super().__init__(application=f"{HOME}/jobs/{job}.py", name=f"mail-{job}", conn_id=SPARK_CONNECTION,
                         py_files="{{ var.json.mail.get('py_files') or '' }}",
                         properties_file="{{ var.json.mail.get('properties_file') or '' }}", **kwargs)
        self.options, self.further = options, further

    def execute(self, context: Context) -> None:
        """Run the job; what it wrote stands in the events of the task's assets."""
        self.application_args = words(self.options, self.further)
        try:
            super().execute(context)
        except AirflowException as error:
            if re.search(rf"Error code is: {BAD_INPUT}\.", str(error)):
                raise AirflowFailException(_bad_input(self.application, str(error))) from error
            raise
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {name.lstrip("-"): str(value) for name, value in
                                                     self.options.items()}


class PythonJob(BaseOperator):
    """`jobs/<job>.py` by the project's own Python on the Airflow worker: a job that needs no Spark.

    Takes what `SparkJob` takes; ends the job with all of its processes when the task is killed.
    """

    template_fields = ("python", "application", "options", "further")

    def __init__(self, *, job: str, options: Any, further: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.python, self.application = PYTHON, f"{HOME}/jobs/{job}.py"
        self.options, self.further = options, further
        self._hook = SubprocessHook()

    def execute(self, context: Context) -> None:
        """Run the job; its lines are the task's log."""
        command = [self.python, self.application, *words(self.options, self.further)]
        done = self._hook.run_command(command)
        if done.exit_code == BAD_INPUT:
            raise AirflowFailException(_bad_input(self.application, done.output))
        if done.exit_code:
            raise AirflowException(f"{self.application} ended with exit code {done.exit_code}: {done.output}")

    def on_kill(self) -> None:
        """Ask the job's process group to end."""
        self._hook.send_sigterm()


def tell_failure(context: Context) -> None:
    """Call what the Variable `mail` names under `on_failure`, a dotted path, with the failed task's context: a function
    or one of Airflow's notifiers."""
    target = Variable.get("mail", deserialize_json=True).get("on_failure")
    if target:
        import_string(target)(context)


DEFAULTS = {
    "owner": "mail", "retries": 2, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=1), "execution_timeout": timedelta(hours=3), "on_failure_callback": tell_failure,
}
"""Of every task."""


def _bad_input(application: str, said: str) -> str:
    """What the failed task says, with the line in which the job gave its reason."""
    reason = re.search(r"ERROR mail_core\.job: (.*?)(?=\n\S*\d\d[-/]\d\d|\Z)", said, flags=re.DOTALL)
    return (f"{application} ended with exit code {BAD_INPUT}: its arguments or its input are bad, so it is not run "
            f"again: {reason[1].strip() if reason else 'the last lines of the log say what is wrong'}")
