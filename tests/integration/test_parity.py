"""A version gives the same rows the same CTR wherever it is loaded: torch, MLflow elsewhere, Spark, by candidate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_package import raw_rows, small_package

from mail_core.package.store import load_package
from mail_core.spark.packages import ship_package
from mail_core.tracking.registry import register_package, resolve_model
from mail_core.tracking.runs import configure_tracking

ROWS, TOLERANCE = 150, 1e-6
ELSEWHERE = """
import importlib.util, sys
import mlflow, numpy, pandas
assert importlib.util.find_spec("mail_core") is None, "the checkout is on the path"
for engine in ("pyspark", "delta", "petastorm", "torchmetrics"):
    assert importlib.util.find_spec(engine) is None, engine + " is installed"
model = mlflow.pyfunc.load_model("models:/parity@challenger")
numpy.save(sys.argv[2], model.predict(pandas.read_parquet(sys.argv[1])))
print(sys.modules["mail_core"].__file__)
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory, alimama):
    """A registered version, its rows as Parquet, and the CTR that plain torch gives them."""
    root = tmp_path_factory.mktemp("parity")
    folder = small_package(root / "package", alimama)
    store = configure_tracking(None, str(root / "lake"), "parity")
    register_package(folder, "parity", "challenger")
    rows = raw_rows(alimama, ROWS, seed=9)
    pq.write_table(rows.append_column("position", pa.array(range(ROWS))), root / "rows.parquet")
    expected = load_package(folder).predict(rows)
    assert np.ptp(expected) > 0.05
    return root, store, rows, expected


@pytest.fixture(autouse=True)
def tracking(version):
    configure_tracking(version[1], str(version[0] / "lake"))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_registered_version_scores_as_the_package_did(version):
    _, _, rows, expected = version
    close(load_package(resolve_model("models:/parity/1").package_folder).predict(rows), expected)
    close(mlflow.pyfunc.load_model("models:/parity/1").predict(rows.to_pandas()), expected)


def test_candidates_score_as_whole_rows(version):
    _, _, rows, expected = version
    package = load_package(resolve_model("models:/parity/1").package_folder)
    index = np.random.default_rng(0).permutation(ROWS)
    users = rows.take(np.argsort(index)).select(package.user_schema.names)
    close(package.score_candidates(users, index, rows.select(package.candidate_schema.names)).ctr, expected)


def test_mlflows_spark_udf_scores_as_the_package(version, spark):
    root, _, rows, expected = version
    frame = spark.read.parquet(str(root / "rows.parquet")).repartition(3)
    score = mlflow.pyfunc.spark_udf(spark, "models:/parity/1", env_manager="local", result_type="double")
    for columns in ([], rows.schema.names):
        found = frame.select("position", score(*columns).alias("ctr")).orderBy("position").collect()
        close([row["ctr"] for row in found], expected)


def test_a_shipped_package_scores_as_the_package(version, spark):
    root, _, _, expected = version
    handle = ship_package(spark, resolve_model("models:/parity/1").package_folder)

    def score(batches):
        for batch in batches:
            ctr = handle.load().predict(batch)
            yield pa.RecordBatch.from_pydict({"position": batch.column("position"), "ctr": ctr})

    frame = spark.read.parquet(str(root / "rows.parquet")).repartition(3)
    found = frame.mapInArrow(score, "position long, ctr double").orderBy("position").collect()
    close([row["ctr"] for row in found], expected)


@pytest.fixture
def fresh_python(tmp_path):
    """Python of a new environment, removed afterwards: pytest keeps temporary folders, and this one takes gigabytes."""
    venv.create(tmp_path / "env", with_pip=True)
    yield str(tmp_path / "env" / "bin" / "python")
    shutil.rmtree(tmp_path / "env")


def test_a_fresh_environment_of_the_versions_own_requirements_scores_as_the_package(version, fresh_python, tmp_path):
    root, store, _, expected = version
    requirements = resolve_model("models:/parity/1").package_folder.parents[1] / "requirements.txt"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # Twelve thousand modules: three thousand are imported below, and compiled then.
    subprocess.run([fresh_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
                    "-r", str(requirements)], cwd=tmp_path, env=environment, check=True, stdout=sys.stderr)
    ran = subprocess.run([fresh_python, "-c", ELSEWHERE, str(root / "rows.parquet"), str(tmp_path / "ctr.npy")],
                         cwd=tmp_path, env=environment | {"MLFLOW_TRACKING_URI": store}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert str(root / "mlflow" / "artifacts") in ran.stdout
    close(np.load(tmp_path / "ctr.npy"), expected)
