"""The Spark jobs on a standalone cluster, where the workers have of mail_core only what is shipped to them."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from cluster import standalone_cluster
from pyspark.sql import functions as F
from raw_tables import LAST_DAY, random_rows, write
from small_package import small_package

from mail_core.lake.tables import Lake
from mail_core.spark.features import FeatureDays, replace_features
from mail_core.spark.scoring import ScoreRequest, replace_scores
from mail_core.tracking.registry import register_package
from mail_core.tracking.runs import configure_tracking

DAY = LAST_DAY + timedelta(days=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def lake(spark, alimama, tmp_path_factory):
    result = Lake(spark, str(tmp_path_factory.mktemp("root") / "lake"), alimama)
    for role, rows in random_rows(seed=9).items():
        write(result, alimama, role, rows)
    return result


def test_the_workers_python_has_torch_but_no_mail_core_of_its_own(cluster):
    def run(code):
        return subprocess.run([cluster.worker_python, "-c", code], cwd=cluster.folder, env=cluster.environment,
                              capture_output=True, text=True, check=False)

    assert run("import torch, pyarrow").returncode == 0
    assert "No module named 'mail_core'" in run("import mail_core").stderr


def test_build_features_by_spark_submit_equals_the_local_result(cluster, lake, alimama):
    replace_features(alimama, lake, FeatureDays(last=LAST_DAY, days=3))
    here, version = sorted(map(repr, lake.read("features").collect())), lake.version("features")
    done = cluster.submit("build_features", "--schema", "alimama", "--lake", lake.uri, "--date", str(LAST_DAY),
                          "--days", "3")
    assert done.returncode == 0, done.stderr
    assert lake.version("features") > version
    assert sorted(map(repr, lake.read("features").collect())) == here
    assert "build_features done in" in done.stdout  # spark-submit joins a Python driver's two outputs


def test_score_by_spark_submit_equals_the_local_result(cluster, lake, alimama, tmp_path):
    def scores():
        rows = lake.read("ctr_scores").where(F.col("day") == F.lit(DAY)).orderBy("user", "item").collect()
        return {(r.user, r.item, r.is_new_user, r.model_version): r.ctr for r in rows}

    folder = small_package(tmp_path / "version", alimama)
    configure_tracking(None, lake.uri, experiment="cluster")
    version = register_package(folder, "cluster-model", "champion")
    replace_scores(alimama, lake, ScoreRequest(day=DAY, model_name="cluster-model", model_version=version,
                                               package_folder=folder))
    here, written = scores(), lake.version("ctr_scores")
    done = cluster.submit("score", "--schema", "alimama", "--lake", lake.uri, "--date", str(DAY), "--model",
                          "models:/cluster-model@champion")
    assert done.returncode == 0, done.stderr
    assert lake.version("ctr_scores") > written
    assert len(here) > 50 and scores() == pytest.approx(here, rel=0, abs=1e-6)
