"""A night of MAIL: the day's logs become tables, a model version, perhaps the champion, and tomorrow's scores.

### Which day
A run is about one local day D of the data set's time zone (`MAIL_TIMEZONE`), the start of its data interval, and begins
when D is over. `ingest` to `promote` and `report` are about D. D is the test day of the version that is trained, on
D-7 to D-1 by default (`days`, D included), so neither this version nor yesterday's champion has seen it: they are
compared on it. Scores are made for D+1, the morning on which the run happens, from behaviour up to the end of D, for
the users and items of D.

### New users
`natural` (the default): new is who has no behaviour yet. `masked:FRACTION:SEED` is the paper's protocol: a share of the
users is trained and measured as if it had none. It gives promotion many more new users to judge by, and takes their
behaviour from training. Scoring never masks anybody.

### History
`export` needs all its `days` in `features`. Fill them once by the DAG `mail_rebuild_range` before the first night,
and also the days that this DAG has missed. A night without them fails at `export`, in a line that names the days.

### When a task fails
`score` needs `ingest` and a champion, nothing else: whatever fails between, yesterday's champion scores, the run ends
as failed at `finished`, and `on_failure` of the Variable `mail` is called with the task that failed. A challenger that
is kept back is no failure. A job that ends with exit code 2 (bad arguments or input) is not retried. What to do then:
`docs/operating.md`; settings: `docs/airflow.md`.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, ObjectStoragePath, Param, TriggerRule, chain, task
from mail_jobs import DAY, DEFAULTS, NEXT_DAY, PARAMS, SOURCE, TABLES, TIMEZONE, TRACKED, PythonJob, SparkJob

CHAMPION = Asset("mail_champion")
"""Updated when a night has decided which version is champion, a new one or the old one."""
SCORES = Asset("mail_ctr_scores")
MODEL = "{{ params.model_name or params.schema.split('/')[-1].removesuffix('.yaml') ~ '-mail-' ~ params.tower }}"

with DAG(
    "mail_daily_retraining",
    description="Logs of a day -> tables -> model version -> promotion -> scores of the next day -> report",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone=TIMEZONE),
    start_date=pendulum.datetime(2017, 5, 1, tz=TIMEZONE),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["mail"],
    params={
        **PARAMS,
        "source": Param(None, type=["null", "string"], description=(
            "Folder with a folder YYYY-MM-DD of raw files a day; null: `source` of the Variable `mail`.")),
        "marker": Param("_SUCCESS", type="string", minLength=1,
                        description="File in the day's folder that says that its logs are complete."),
        "days": Param(8, type="integer", minimum=3, description="Days of the export, with the test day."),
        "new_users": Param("natural", type="string", pattern=r"^(natural|masked:[0-9.]+:[0-9]+)$",
                           description="natural or masked:FRACTION:SEED"),
        "preset": Param("paper", enum=["paper", "tiny"], description="Sizes of the model."),
        "ranks": Param(2, type="integer", minimum=1, description="Training processes on the Airflow worker."),
        "tower": Param("base_dnn", type="string", minLength=1, description="Ranking tower."),
        "epochs": Param(None, type=["null", "integer"], minimum=1,
                        description="null: chosen on the last training day."),
        "train_options": Param("", type="string", description="More options of jobs/train.py."),
        "model_name": Param(None, type=["null", "string"],
                            description="Name in the registry; null: SCHEMA-mail-TOWER."),
        "auc_margin": Param(None, type=["null", "number"], minimum=0, description=(
            "AUC that a challenger may lose and still be promoted; null: the default of jobs/promote.py.")),
        "promote_options": Param("", type="string", description="More options of jobs/promote.py."),
        "candidates": Param(None, type=["null", "string"], description=(
            "Table of the pairs to score; null: users and items that met on the day.")),
    },
) as dag:

    @task.sensor(mode="reschedule", poke_interval=300, timeout=timedelta(hours=12).total_seconds())
    def wait_for_logs(source: str, day: str, marker: str) -> bool:
        """Whether the day's logs are complete. Holds no worker while it waits."""
        return (ObjectStoragePath(source) / day / marker).exists()

    waited = wait_for_logs(SOURCE, DAY, "{{ params.marker }}")
    ingest = SparkJob(task_id="ingest", job="ingest_logs", options={**TABLES, "--source": SOURCE, "--date": DAY})
    features = SparkJob(task_id="features", job="build_features", options={**TABLES, "--date": DAY})
    checks = SparkJob(task_id="checks", job="check_features", options={**TABLES, "--date": DAY})
    export = SparkJob(task_id="export", job="export_training", options={
        **TABLES, "--end-date": DAY, "--days": "{{ params.days }}", "--new-users": "{{ params.new_users }}"})
    # A retry goes on from the last checkpoint; without one it starts afresh.
    train = PythonJob(
        task_id="train", job="train", execution_timeout=timedelta(hours=8),
        further="--resume {{ params.train_options }}",
        options={**TRACKED, "--end-date": DAY, "--new-users": "{{ params.new_users }}", "--model-name": MODEL,
                 "--preset": "{{ params.preset }}", "--ranks": "{{ params.ranks }}", "--tower": "{{ params.tower }}",
                 "--epochs": "{{ params.epochs or '' }}"})
    evaluate = SparkJob(task_id="evaluate", job="evaluate",
                        options={**TRACKED, "--date": DAY, "--model": f"models:/{MODEL}@challenger"})
    promote = SparkJob(
        task_id="promote", job="promote", outlets=[CHAMPION], further="{{ params.promote_options }}",
        options={**TRACKED, "--date": DAY, "--model": MODEL,
                 "--auc-margin": "{{ '' if params.auc_margin is none else params.auc_margin }}"})
    # Once the decision has fallen or has failed to; without the day's logs there is nothing to score.
    score = SparkJob(
        task_id="score", job="score", outlets=[SCORES], trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
        options={**TRACKED, "--date": NEXT_DAY, "--model": f"models:/{MODEL}@champion",
                 "--candidates": "{{ params.candidates or '' }}"})
    report = SparkJob(
        task_id="report", job="report", trigger_rule=TriggerRule.ALL_DONE,
        options={**TRACKED, "--date": DAY, "--model": MODEL, "--out": f"{{{{ var.json.mail.reports }}}}/{DAY}.html"})
    # The run's state is that of its last tasks: this one fails with any before it.
    finished = EmptyOperator(task_id="finished")

    chain(waited, ingest, features, checks, export, train, evaluate, promote, score, report, finished)
    ingest >> score
    [promote, score] >> finished
