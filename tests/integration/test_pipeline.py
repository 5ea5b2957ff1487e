"""Every arrow of the pipeline on simulated logs, and every job a second time: the same tables, the same metrics."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import mlflow
import pytest
from checksums import checksums, export_rows
from pyspark.sql import functions as F
from raw_tables import JOBS, call_job

from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.pipeline import PipelineConfig, pipeline_steps, run_steps
from mail_core.tracking.runs import configure_tracking

END = date(2017, 5, 13)


@pytest.fixture(scope="module")
def config(spark, tmp_path_factory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("pipeline")
    assert call_job("simulate_logs", "--out", str(folder / "logs"), "--users", "800", "--items", "200",
                    "--seed", "3") == DONE
    return PipelineConfig(schema="alimama", source=folder / "logs", lake=folder / "lake", end_date=END,
                          new_users="masked:0.4:1", epochs=1, world=folder / "logs" / "world")


@pytest.fixture(scope="module")
def printed(config) -> str:
    return run_steps(pipeline_steps(config))


def test_a_pass_ends_with_cohorts_of_both_models_and_the_first_scores(printed):
    for cohort in ("old", "new_masked", "new_natural", "all"):
        assert f"\n{cohort} " in printed
    assert "alimama-mail-base_dnn" in printed and "alimama-base_dnn" in printed
    assert "ctr_scores" in printed
    assert "first version" in printed, "the decision on it"


def test_a_pass_ends_with_the_path_of_the_days_page(printed, config):
    assert printed.splitlines()[-1] == str(config.report)
    page = config.report.read_text(encoding="utf-8")
    assert str(END) in page and "alimama-mail-base_dnn" in page
    for job in ("ingest_logs", "build_features", "train", "evaluate", "promote", "score"):
        assert f"<tr><td>{job}</td>" in page, "how long it took"


def test_scores_cover_each_candidate_pair_once(printed, config, spark, alimama):
    lake = Lake(spark, str(config.lake), alimama)
    shown = lake.read("raw_impressions").where(F.col("day") == F.lit(END))
    pairs = shown.select(F.col("user"), F.col("adgroup_id").alias("item")).distinct()
    scores = lake.read("ctr_scores").select("user", "item")
    assert scores.count() == pairs.count() == scores.distinct().count()
    assert pairs.exceptAll(scores).count() == 0


def test_each_job_run_again_gives_the_same_tables(printed, config, spark, alimama):
    lake = Lake(spark, str(config.lake), alimama)
    before, rows_before = checksums(lake), export_rows(config.lake)
    assert before["features"][0] > 0 and before["ctr_scores"][0] > 0
    for step in pipeline_steps(config):
        if step.job != "train":  # whose second run is below
            assert call_job(step.job, *step.arguments) == DONE  # in this session: by then a job takes seconds
    assert checksums(lake) == before
    assert export_rows(config.lake) == rows_before


def test_the_same_export_seed_and_ranks_give_the_same_metrics(printed, config):
    mail = next(step for step in pipeline_steps(config) if step.title == "train MAIL")
    run_steps([mail])
    configure_tracking(None, str(config.lake))  # tracking and registry: another module may have set either elsewhere
    client = mlflow.MlflowClient()
    name = "alimama-mail-base_dnn"
    metrics = [client.get_run(client.get_model_version(name, version).run_id).data.metrics for version in ("1", "2")]
    measured = [{k: v for k, v in found.items() if "auc" in k or "logloss" in k} for found in metrics]
    assert measured[0] and measured[0] == measured[1]


def test_bad_arguments_and_absent_tables_end_with_exit_code_2(config, tmp_path):
    for job, arguments in (("train", ("--end-date", "2017-05-13", "--preset", "tiny", "--ranks", "2")),
                           ("train", ("--end-date", "yesterday")),
                           ("build_features", ("--date", "2017-05-13"))):
        done = subprocess.run([sys.executable, str(JOBS / f"{job}.py"), "--schema", "alimama", "--lake",
                               str(tmp_path / "empty"), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == BAD_INPUT, done.stderr
        assert "Traceback" not in done.stderr
