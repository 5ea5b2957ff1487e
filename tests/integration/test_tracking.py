"""MLflow's store, runs and registry on a real SQLite store: what a version holds, how it is found, what is refused."""

from __future__ import annotations

import os
import pickletools
import subprocess
import sys
import zipfile

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from small_package import raw_rows, small_package

from mail_core.errors import InputError
from mail_core.package.store import load_package
from mail_core.tracking.registry import register_package, requirements, resolve_model
from mail_core.tracking.runs import configure_tracking, end_run_killed, redacted, tracked_run

PICKLE_FILES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz")


@pytest.fixture(scope="module")
def registered(tmp_path_factory, alimama):
    """A package registered twice, in a store beside a lake: (lake, package folder)."""
    root = tmp_path_factory.mktemp("tracking")
    folder = small_package(root / "package", alimama)
    configure_tracking(None, str(root / "lake"), "alimama")
    with tracked_run("first", {"tower": "base_dnn"}) as run:
        run.params({"dim": 4, "zero_shot": True})
        run.metrics({"auc": 0.5, "gauc": None, "ece": float("nan")}, step=3)
        run.text("a table", "cohorts.txt")
        run.artifact(folder / "lineage.json", "package")
        register_package(folder, "mail", "challenger")
    register_package(folder, "mail")
    return root / "lake", folder


@pytest.fixture(autouse=True)
def store(registered):
    configure_tracking(None, str(registered[0]))


def test_store_and_artifacts_lie_beside_the_lake_wherever_the_job_runs(registered, monkeypatch, tmp_path):
    lake, _ = registered
    monkeypatch.chdir(tmp_path)
    assert configure_tracking(None, str(lake), "other") == f"sqlite:///{lake.parent}/mlflow/mlflow.db"
    with tracked_run("elsewhere") as run:
        run.text("hello", "a.txt")
    place = MlflowClient().get_run(run.run_id).info.artifact_uri
    assert place.startswith((lake.parent / "mlflow" / "artifacts" / "other").as_uri())
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_what_is_defined(registered):
    run = mlflow.search_runs(experiment_names=["alimama"], output_format="list",
                             filter_string="tags.tower = 'base_dnn'")[0]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"dim": "4", "zero_shot": "True"} and run.data.metrics == {"auc": 0.5}
    files = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert {"cohorts.txt", "package"} <= files


def test_a_run_that_raises_is_marked_failed(registered):
    configure_tracking(None, str(registered[0]), "alimama")
    with pytest.raises(ZeroDivisionError), tracked_run("broken") as run:
        1 / 0
    assert MlflowClient().get_run(run.run_id).info.status == "FAILED"


def test_a_run_that_was_killed_goes_on_with_its_figures_once_and_registers_one_version(registered):
    lake, package = registered
    configure_tracking(None, str(lake), "alimama")
    client = MlflowClient()
    killed = client.create_run(client.get_experiment_by_name("alimama").experiment_id).info.run_id
    client.log_metric(killed, "L_rt", 0.5, step=1)
    for attempt in (1, 2):
        with tracked_run("goes on", run_id=killed) as run:
            for step in (1, 2):
                run.metrics({"L_rt": 0.5}, step=step)
            run.metrics({"test/auc": 0.7})
            assert register_package(package, "killed", "challenger", {"like": "models:/a/1"}) == "1", attempt
    assert run.run_id == killed and client.get_run(killed).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(killed, "L_rt")] == [1, 2]
    assert len(client.get_metric_history(killed, "test/auc")) == 1
    [version] = client.search_model_versions("name = 'killed'")
    assert version.tags["like"] == "models:/a/1"


def test_a_run_that_nobody_goes_on_with_is_marked_killed_and_one_that_is_gone_begins_anew(registered):
    configure_tracking(None, str(registered[0]), "alimama")
    client = MlflowClient()
    left = client.create_run(client.get_experiment_by_name("alimama").experiment_id).info.run_id
    end_run_killed(left)
    assert client.get_run(left).info.status == "KILLED"
    with tracked_run("another", run_id="0" * 32) as run:
        run.metrics({"auc": 0.5})
    end_run_killed(run.run_id)
    end_run_killed("0" * 32)
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_version_is_found_by_number_and_by_alias_and_scores_as_its_package(registered, alimama):
    by_alias, by_number = resolve_model("models:/mail@challenger"), resolve_model("models:/mail/2")
    assert (by_alias.name, by_alias.version, by_number.version) == ("mail", "1", "2")
    rows = raw_rows(alimama, 20, seed=1)
    expected = load_package(registered[1]).predict(rows)
    for model in (by_alias, by_number):
        np.testing.assert_array_equal(load_package(model.package_folder).predict(rows), expected)


def test_an_alias_that_moves_moves_later_lookups_only(registered):
    client = MlflowClient()
    client.set_registered_model_alias("mail", "moving", "1")
    before = resolve_model("models:/mail@moving")
    client.set_registered_model_alias("mail", "moving", "2")
    assert (before.version, resolve_model("models:/mail@moving").version) == ("1", "2")


@pytest.mark.parametrize("uri, message", [
    ("models:/absent@challenger", "absent"), ("models:/mail@champion", "champion"), ("models:/mail/99", "99"),
    ("mail/1", "expected models:/NAME"), ("models:/mail", "expected models:/NAME"),
    ("models:/mail/latest", "expected models:/NAME"), ("runs:/abc/model", "expected models:/NAME")])
def test_a_version_that_is_not_there_is_refused_by_name(uri, message):
    with pytest.raises(InputError, match=message):
        resolve_model(uri)


def test_a_version_of_another_project_is_refused(registered, tmp_path):
    configure_tracking(None, str(registered[0]), "alimama")
    code = tmp_path / "other.py"
    code.write_text("import mlflow\n\nclass Other(mlflow.pyfunc.PythonModel):\n    def predict(self, model_input):\n"
                    "        return model_input\n\nmlflow.models.set_model(Other())\n")
    mlflow.pyfunc.log_model(name="m", python_model=str(code), registered_model_name="other", pip_requirements=["numpy"])
    with pytest.raises(InputError, match="not registered by this project"):
        resolve_model("models:/other/1")


def test_resolving_and_loading_runs_no_code_of_the_version(registered, tmp_path):
    model = resolve_model("models:/mail/2")
    version = model.package_folder.parents[1]
    ran = tmp_path / "ran"
    for file in (version / "pyfunc_model.py", version / "code" / "mail_core" / "__init__.py"):
        file.write_text(f"open({str(ran)!r}, 'w')\n")
    load_package(resolve_model("models:/mail/2").package_folder)
    assert not ran.exists()


def test_the_version_holds_no_pickle_and_pins_what_scoring_imports(registered):
    version = resolve_model("models:/mail/1").package_folder.parents[1]
    files = [path for path in version.rglob("*") if path.is_file()]
    assert {"MLmodel", "requirements.txt", "weights.safetensors"} <= {path.name for path in files}
    for path in files:
        assert path.suffix not in PICKLE_FILES, path
        assert not zipfile.is_zipfile(path), path
        assert not is_pickle(path.read_bytes()), path
    assert sorted((version / "requirements.txt").read_text().split()) == sorted(requirements())
    names = {line.split("==")[0] for line in requirements()}
    assert names == {"mlflow", "numpy", "pandas", "pyarrow", "pyyaml", "safetensors", "torch"}


def is_pickle(data: bytes) -> bool:
    if not data.startswith(b"\x80"):
        return False
    try:
        return any(op.name == "STOP" for op, *_ in pickletools.genops(data))
    except (ValueError, IndexError):
        return False


def test_the_pickle_check_knows_a_pickle():
    import pickle
    assert is_pickle(pickle.dumps({"weights": [1.0]})) and not is_pickle(b"\x80 not one")


def test_the_shipped_code_scores_without_training_or_engines(registered, tmp_path):
    """In a process whose path has the version's code first, mail_core is that copy and pulls in no engine."""
    version = resolve_model("models:/mail/1").package_folder.parents[1]
    program = ("import sys, mail_core.package.store as s; s.load_package(sys.argv[1]); print(s.__file__);"
               "engines = ('pyspark', 'delta', 'petastorm', 'sklearn', 'torchmetrics', 'mlflow');"
               "print([m for m in engines if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", program, str(version / "artifacts" / "package")], cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(version / "code")}, capture_output=True, text=True,
                           check=True).stdout
    path, engines = found.splitlines()
    assert path.startswith(str(version)) and engines == "[]"


def test_a_store_that_cannot_be_used_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="--tracking-uri"):
        configure_tracking(None, "s3://bucket/lake", "alimama")
    with pytest.raises(InputError, match="train a model first"):
        configure_tracking(None, str(tmp_path / "lake"))
    (tmp_path / "text.db").write_text("not a database")
    with pytest.raises(InputError, match="not a SQLite database"):
        configure_tracking(f"sqlite:///{tmp_path}/text.db", str(tmp_path / "lake"), "alimama")
    with pytest.raises(InputError, match="no answer") as refused:
        configure_tracking("http://ann:secret@127.0.0.1:9/mlflow", str(tmp_path / "lake"), "alimama")
    assert "secret" not in str(refused.value) and "127.0.0.1:9" in str(refused.value)
    with pytest.raises(InputError, match="gopher"):
        configure_tracking("gopher://x", str(tmp_path / "lake"), "alimama")


def test_passwords_are_taken_out_of_addresses():
    assert redacted("https://ann:p%40ss@host:5000/x?y=1") == "https://host:5000/x?y=1"
    assert redacted("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
