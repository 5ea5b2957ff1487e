"""Conversions from the simulator through every job to scores and an A/B test, on a tiny world."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F
from raw_tables import JOBS, LAST_DAY, call_job
from small_package import small_package

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TRAIN, find_export, read_manifest
from mail_core.package.store import load_package
from mail_core.schema.definition import Schema
from mail_core.schema.reader import load_schema
from mail_core.simulation.world import World
from mail_core.tracking.registry import register_package, resolve_model
from mail_core.tracking.runs import configure_tracking
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.run import TrainRequest

DAYS, MODE, NAME = 4, "masked:0.4:1", "alimama_conversions-mail-esmm-base_dnn"
WORLD = ("--users", "500", "--items", "60", "--days", str(DAYS), "--behavior-days", "6", "--impressions-per-user", "12",
         "--behaviors-per-user", "10", "--seed", "5")
BAD = {"7,1494604800,3,430548_1007,1,0,1": "contradictory_conversion", "7,1494604800,3,430548_1007,0,1,2":
       "unknown_value:conv", "7,1494604800,3,430548_1007,0,1,": "null_value:conv"}


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema("alimama_conversions")


def job(name: str, *arguments: str) -> None:
    assert call_job(name, *arguments) == DONE


@pytest.fixture(scope="module")
def root(spark, schema, tmp_path_factory) -> Path:
    """Logs, a lake with everything up to the scores of a version with ESMM, and a version `plain` without."""
    root = tmp_path_factory.mktemp("conversions")
    job("simulate_logs", "--schema", schema.name, "--out", str(root / "logs"), *WORLD)
    [part] = (root / "logs" / "raw_sample.csv").iterdir()
    part.write_text(part.read_text() + "".join(f"{line}\n" for line in BAD))
    table = ("--schema", schema.name, "--lake", str(root / "lake"))
    job("ingest_logs", *table, "--source", str(root / "logs"))
    job("build_features", *table, "--date", str(LAST_DAY), "--days", str(DAYS))
    job("export_training", *table, "--end-date", str(LAST_DAY), "--days", str(DAYS), "--new-users", MODE)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, str(JOBS / "train.py"), *table, "--end-date", str(LAST_DAY), "--preset",
                           "tiny", "--head", "esmm", "--epochs", "1", "--batch-size", "256"],
                          capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"registered models:/{NAME}/1")
    configure_tracking(None, str(root / "lake"), "test")
    register_package(small_package(root / "plain", schema, new_users=MODE), "plain")
    return root


@pytest.fixture
def lake(root, spark, schema) -> Lake:
    configure_tracking(None, str(root / "lake"))  # another module may have set it elsewhere
    return Lake(spark, str(root / "lake"), schema)


def impressions(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(part) for part in sorted((folder / "raw_sample.csv").iterdir())])


def test_conversions_follow_clicks_only_and_change_no_other_draw(root, tmp_path):
    job("simulate_logs", "--out", str(tmp_path / "plain"), *WORLD)
    written = impressions(root / "logs").iloc[:-len(BAD)]
    pd.testing.assert_frame_equal(written.drop(columns="conv"), impressions(tmp_path / "plain"), check_dtype=False)
    for path in (p for p in (tmp_path / "plain").rglob("*") if p.is_file() and p.parent.name != "raw_sample.csv"):
        assert (root / "logs" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes()
    clicked, converted = written["clk"] == 1, written["conv"] == 1
    assert 0 < converted.sum() and not (converted & ~clicked).any()
    truth = World.load(str(root / "logs" / "world")).conversion_probability(
        written["user"].to_numpy()[clicked], written["adgroup_id"].to_numpy()[clicked])
    assert converted.sum() == pytest.approx(truth.sum(), abs=4 * np.sqrt((truth * (1 - truth)).sum()))


def test_contradictory_rows_are_quarantined_and_the_others_reach_the_export(root, lake, schema):
    found = lake.read("quarantine").where(F.col("source") == "impressions").collect()
    assert {row["line"]: row["reason"] for row in found} == BAD
    written = impressions(root / "logs").iloc[:-len(BAD)]
    total = lake.read("features").agg(F.sum("conversion"), F.sum("label")).first()
    assert tuple(total) == (written["conv"].sum(), written["clk"].sum())
    uri = find_export(lake.uri, LAST_DAY)
    manifest = read_manifest(uri)
    assert sum(split["conversions"] for split in manifest.statistics["splits"].values()) == written["conv"].sum()
    batches = list(epoch_batches(uri, manifest, (TRAIN,), seed=0, epoch=0, world_size=1, rank=0, batch_size=512,
                                 shuffle=False))
    conversions, clicks = (np.concatenate([batch[name] for batch in batches]) for name in ("conversion", "label"))
    assert (conversions <= clicks).all()
    assert manifest.conversion_rate(TRAIN) == pytest.approx(conversions.sum() / clicks.sum())
    unlike = lake.read("features").limit(1).withColumn("label", F.lit(0)).withColumn("conversion", F.lit(1))
    with pytest.raises(InputError, match="conversion"):
        lake.replace_days("features", unlike.withColumn("day", F.lit(LAST_DAY)), [LAST_DAY])


def test_the_run_has_the_aucs_of_both_products_and_the_version_both_towers(lake):
    client = mlflow.MlflowClient()
    metrics = client.get_run(client.get_model_version(NAME, "1").run_id).data.metrics
    assert {"test/all/auc", "test/all/ctcvr_auc", "test/all/cvr_auc", "test/old/ctcvr_auc"} <= set(metrics)
    package = load_package(resolve_model(f"models:/{NAME}/1").package_folder)
    assert package.config.head == "esmm" and "all/ctcvr_auc" in package.metrics["diagnostics"]
    bias = package.model.ranking.conversion.output.bias
    assert -4 < float(bias) < -1, "it began at the conversions a click"


def test_an_evaluation_has_the_aucs_of_both_products_where_the_version_has_them(lake, schema, capsys):
    arguments = ("--schema", schema.name, "--lake", lake.uri, "--date", str(LAST_DAY), "--resamples", "10")
    job("evaluate", *arguments, "--model", f"models:/{NAME}/1")
    assert "AUC of conversions (CTCVR over all rows; CVR over clicked ones)\nold  " in capsys.readouterr().out
    figures = {(row["cohort"], row["metric"]): row["value"] for row in lake.read("evaluations").collect()}
    trained = load_package(resolve_model(f"models:/{NAME}/1").package_folder).metrics["diagnostics"]
    for cohort in ("old", "new", "all"):
        for name in ("ctcvr_auc", "cvr_auc"):
            assert figures[cohort, name] == pytest.approx(trained[f"{cohort}/{name}"], abs=1e-4), "as on the same day"
    job("evaluate", *arguments, "--model", "models:/plain/1")
    assert "conversions" not in capsys.readouterr().out


def test_scores_have_cvr_and_ctcvr_where_the_version_has_them(lake, schema):
    day = LAST_DAY + timedelta(days=1)
    arguments = ("--schema", schema.name, "--lake", lake.uri, "--date", str(day))
    job("score", *arguments, "--model", f"models:/{NAME}/1")
    scored = lake.read("ctr_scores").toPandas()
    assert len(scored) > 50 and scored["cvr"].between(0, 1).all() and scored["cvr"].nunique() > 50
    np.testing.assert_allclose(scored["ctcvr"], scored["ctr"] * scored["cvr"], rtol=1e-12)
    job("score", *arguments, "--model", "models:/plain/1")
    plain = lake.read("ctr_scores").toPandas()
    assert len(plain) == len(scored) and plain["ctr"].notna().all() and plain[["cvr", "ctcvr"]].isna().all(axis=None)


def test_an_ab_test_prints_and_writes_the_lift_by_cohort(root, lake, schema, tmp_path, capsys):
    arguments = ("--schema", schema.name, "--lake", lake.uri, "--date", str(LAST_DAY), "--seed", "2",
                 "--world", str(root / "logs" / "world"), "--candidates", "30", "--shown", "5", "--resamples", "100",
                 "--model", f"models:/{NAME}/1")
    capsys.readouterr()
    job("simulate_ab_test", *arguments, "--against", "models:/plain/1", "--out", str(tmp_path / "lift.csv"))
    printed = capsys.readouterr().out
    for part in (f"{NAME} version 1 against plain version 1", "seed 2", "as a hash says"):
        assert part in printed
    with open(tmp_path / "lift.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["cohort"], line["metric"]) for line in lines] == [
        (cohort, metric) for cohort in ("old", "new", "all") for metric in ("ctr", "ctcvr")]
    users = lake.read("features").where(F.col("day") == F.lit(LAST_DAY)).select("user").distinct().count()
    old, new, everybody = lines[::2]
    assert sum(int(line[side]) for line in (old, new) for side in ("model_users", "against_users")) == users
    assert int(everybody["model_users"]) + int(everybody["against_users"]) == users and int(old["model_users"]) > 0
    assert 0 < float(everybody["model"]) < 1 and float(everybody["low"]) < float(everybody["high"])
    job("simulate_ab_test", *arguments, "--against", f"models:/{NAME}/1", "--paired", "--rank-by", "ctcvr")
    paired = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
    assert paired[0][2] == paired[0][3] == str(users) and paired[0][6:] == ["+0.00", "[+0.00,", "+0.00]"]
    assert call_job("simulate_ab_test", *arguments, "--against", "models:/plain/1", "--rank-by", "ctcvr") == BAD_INPUT


def test_esmm_is_refused_by_name_where_the_schema_has_no_conversion(alimama):
    with pytest.raises(InputError, match="head esmm: the schema 'alimama' names no conversion label"):
        TrainRequest(schema=alimama, lake_uri="/nowhere", end_date=LAST_DAY, new_users=None, preset="tiny",
                     config=TrainingConfig(model=model_config("tiny", "din", "base", head="esmm")))
