"""Training on real exports: what it learns, that it ends and repeats on two ranks, and the job up to the registry."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from small_export import END, SPLIT_FILES, schema_text, small_schema, write_export

from mail_core.errors import InputError
from mail_core.evaluation.metrics import auc
from mail_core.loading.manifest import TEST
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.package.store import load_package
from mail_core.schema.reader import load_schema
from mail_core.tracking.runs import configure_tracking
from mail_core.training.data import open_export
from mail_core.training.launcher import launch
from mail_core.training.loop import build_model, fit
from mail_core.training.predict import diagnostics, predict
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks
from mail_core.training.run import TrainRequest, check_request, code_commit

WORKER, JOB = Path(__file__).with_name("ddp_worker.py"), Path(__file__).resolve().parents[2] / "jobs" / "train.py"
AWKWARD = {
    "fewer rows than ranks": {"train": (1,), "validation": (1,), "test": (1,)},
    "fewer files than ranks": {"train": (70,), "validation": (20,), "test": (30,)},
    "a single file of one row among many": {"train": (64, 64, 1, 64), "validation": (1, 1), "test": (1, 9)},
    "one rank ends early": {"train": (150, 3), "validation": (40, 1), "test": (20, 2)},
    "a last batch of one row": {"train": (33, 17), "validation": (16, 17), "test": (16, 17)},
    "more files than steps": {"train": (2, 3, 1, 4, 2, 1, 5), "validation": (1, 1, 1), "test": (2, 1, 1, 3)},
}
"""Rows of each file; the batch of a rank is 16."""


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    uri = write_export(tmp_path_factory.mktemp("lake"), {**SPLIT_FILES, "train": (600, 500, 400), "test": (600, 500)})
    return open_export(uri, small_schema())


def config(**changes) -> TrainingConfig:
    fast = TrainingConfig(model=replace(model_config("tiny", "base_dnn", "base"), tower_config=BaseDnnConfig(
        hidden=(32, 16), dropout=0.2)), batch_size=64, learning_rate=3e-3)
    return replace(fast, **changes)


def fitted(export, settings: TrainingConfig):
    """(predictions of the test split, epochs, points of each curve)."""
    curves: dict[str, list[tuple[int, float]]] = {}

    def record(values, step):
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))

    found = fit(export, settings, Ranks.alone(), record)
    return predict(found.model, export, TEST, Ranks.alone(), variants=True), found.epochs, curves


def test_training_learns_a_planted_toy_and_draws_the_four_curves(export):
    predictions, epochs, curves = fitted(export, config(epochs=6))
    assert epochs == 6
    assert auc(predictions.labels, predictions.probabilities) > 0.65  # chance stays below .55 on so many rows
    for name in ("L_rt", "L_a", "L_v", "L_d"):
        steps, values = zip(*curves[name])
        assert list(steps) == sorted(set(steps)) and np.isfinite(values).all()
    assert curves["L_rt"][-1][1] < 0.85 * curves["L_rt"][0][1]
    assert not [name for name in curves if name.startswith("choice/")]


def test_epochs_are_chosen_by_validation_and_the_final_model_starts_afresh(export):
    chosen, epochs, curves = fitted(export, config(max_epochs=5, patience=1))
    scores = [value for _, value in curves["choice/validation_auc"]]
    assert epochs == int(np.argmax(scores)) + 1
    assert len(scores) == min(5, epochs + 1)
    direct, _, _ = fitted(export, config(epochs=epochs))
    np.testing.assert_array_equal(chosen.probabilities, direct.probabilities)


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(export):
    first, again, other = (fitted(export, config(epochs=1, seed=seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert not np.allclose(first.probabilities, other.probabilities)


def test_virtual_behavior_permuted_and_zeroed_changes_new_rows_only(export):
    predictions, _, _ = fitted(export, config(epochs=4))
    old = predictions.is_new == 0
    for changed in predictions.variants.values():
        np.testing.assert_array_equal(changed[old], predictions.probabilities[old])
        assert (changed[~old] != predictions.probabilities[~old]).mean() > 0.5
    assert set(diagnostics(predictions)) == {f"new_auc_virtual_{n}" for n in ("true", "permuted", "zeroed")}
    alone, _, curves = fitted(export, config(epochs=1, model=replace(config().model, zero_shot=None)))
    assert alone.variants == {} and set(curves) == {"L_rt"}


def test_predictions_come_in_the_order_of_the_files(export):
    predictions, _, _ = fitted(export, config(epochs=1))
    written = np.concatenate([pq_column(export, entry.path, "user_key") for entry in export.manifest.splits[TEST]])
    np.testing.assert_array_equal(predictions.user_keys, written)


def pq_column(export, path: str, column: str) -> np.ndarray:
    return pq.read_table(Path(export.uri) / path, columns=[column]).column(0).to_numpy()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("epochs")
    for name, files in AWKWARD.items():
        write_export(folder / name.replace(" ", "-"), files)
    done = subprocess.run([sys.executable, str(WORKER), "epochs", str(folder)], capture_output=True, text=True,
                          timeout=400)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", AWKWARD)
def test_two_ranks_end_an_awkward_export_with_the_same_model(two_ranks, name):
    folder, (first, second) = two_ranks
    name = name.replace(" ", "-")
    states = [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.isfinite(t).all() and torch.equal(t, states[1][n]) for n, t in states[0].items())
    assert first[name]["epochs"] == second[name]["epochs"] >= 1
    assert first[name]["repeats"] and second[name]["repeats"]
    assert first[name]["points"] > 0 and second[name]["points"] == 0, "rank 0 alone records"


@pytest.mark.parametrize("name", AWKWARD)
def test_two_ranks_score_every_row_in_order_as_one_process_does(two_ranks, name):
    folder, (first, second) = two_ranks
    name = name.replace(" ", "-")
    [uri] = (folder / name / "exports").iterdir()
    export = open_export(str(uri), small_schema())
    model = build_model(export, config(model=model_config("tiny", "base_dnn", "base")), Ranks.alone())
    model.load_state_dict(load_file(folder / f"{name}-0.safetensors"))
    expected = predict(model, export, TEST, Ranks.alone())
    keys, probabilities = first[name]["predictions"]
    assert keys == expected.user_keys.tolist() and second[name]["predictions"] is None
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("job")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    write_export(root / "lake")
    return root / "lake"


def job(lake: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(JOB), "--schema", str(lake.parent / "small.yaml"), "--lake", str(lake),
               "--preset", "tiny", "--batch-size", "64", "--end-date", END.isoformat(), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)


@pytest.fixture(scope="module")
def registered(lake) -> subprocess.CompletedProcess:
    return job(lake, "--ranks", "2")


def version_of(lake: Path, name: str):
    configure_tracking(None, str(lake))  # tracking and registry: another module may have set either elsewhere
    client = mlflow.MlflowClient()
    return client, client.get_model_version_by_alias(name, "challenger")


def test_the_job_prints_the_cohorts_and_registers_a_challenger_with_its_run(lake, registered):
    assert registered.returncode == 0, registered.stderr
    lines = registered.stdout.strip().splitlines()
    assert lines[-1] == "registered models:/alimama-mail-base_dnn/1"
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in ("old", "new_masked", "all")]
    assert registered.stdout.count("new_masked") == 1, "one rank prints"
    assert registered.stderr.count("train done in") == 2, "the job and rank 0 close with their sentence"
    client, version = version_of(lake, "alimama-mail-base_dnn")
    run = client.get_run(version.run_id)
    rows = sum(SPLIT_FILES["test"])
    assert version.version == 1 or version.version == "1"
    assert version.description.startswith("Trained on 2017-05-06 to 2017-05-12, measured on 2017-05-13; new users: ")
    assert f"| all | {rows} | " in version.description
    assert run.info.status == "FINISHED" and run.data.metrics["test/all/rows"] == rows
    assert {"test/old/auc", "test/new/logloss", "test/new_auc_virtual_zeroed", "choice/validation_auc", "L_d"} <= set(
        run.data.metrics)
    assert run.data.params["preset"] == "tiny" and int(run.data.params["epochs"]) >= 1
    assert run.data.tags["delta_version.features"] == "3"
    assert len(client.get_metric_history(version.run_id, "L_rt")) >= 1
    assert "manifest.json" in [file.path for file in client.list_artifacts(version.run_id)]


def test_the_version_is_a_package_with_its_lineage_and_holds_no_pickle(lake, registered):
    client, version = version_of(lake, "alimama-mail-base_dnn")
    source = client.get_model_version_download_uri(version.name, version.version)
    folder = Path(mlflow.artifacts.download_artifacts(source))
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    [weights] = folder.rglob("weights.safetensors")
    package = load_package(weights.parent)
    assert package.lineage["new_users"] == "masked:0.4:7"
    assert package.lineage["training"]["ranks"] == 2 and package.lineage["training"]["preset"] == "tiny"
    assert package.lineage["export"]["delta_versions"] == {"features": 3}
    assert package.lineage["schema"]["fingerprint"] == small_schema().fingerprint
    assert package.metrics["cohorts"][-1]["rows"] == sum(SPLIT_FILES["test"])


def test_the_job_runs_unchanged_under_torchrun_and_without_the_zero_shot_tower(lake):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = job(lake, "--cold-start", "off", "--tower", "din", "--epochs", "1", "--embedding-optimizer", "dense",
               launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("registered models:/alimama-din/1")


def test_a_day_without_export_ends_with_exit_code_2_and_says_what_there_is(lake):
    done = job(lake, "--ranks", "2", "--end-date", "2017-05-12")
    assert done.returncode == 2, done.stderr
    assert "2017-05-13-8d-masked-0.4-7" in done.stderr and "Traceback" not in done.stderr


def request_on(lake: Path) -> TrainRequest:
    return TrainRequest(schema=small_schema(), lake_uri=str(lake), end_date=END, new_users=None, preset="tiny",
                        config=config())


@pytest.mark.parametrize("changes, ranks, named", [
    ({"new_users": "natural"}, 1, "2017-05-13-8d-masked-0.4-7"), ({"new_users": "half"}, 1, "masked:FRACTION:SEED"),
    ({}, 3, "64 is not a multiple of the 3 ranks"), ({}, 0, "ranks: 0"), ({"lake_uri": "/nowhere"}, 1, "no export")])
def test_a_request_that_cannot_run_is_refused_before_any_rank_starts(lake, changes, ranks, named):
    request = request_on(lake)
    assert check_request(request, 2).manifest.new_users == "masked:0.4:7"
    with pytest.raises(InputError, match=named):
        check_request(replace(request, **changes), ranks)


def test_an_export_of_another_schema_or_with_an_empty_split_is_refused(lake, tmp_path):
    request = request_on(lake)
    with pytest.raises(InputError, match="another schema"):
        check_request(replace(request, schema=load_schema("alimama")), 1)
    write_export(tmp_path, {"train": (5,), "validation": (), "test": (4,)})
    empty = replace(request, lake_uri=str(tmp_path))
    with pytest.raises(InputError, match="'validation' has no row"):
        check_request(empty, 1)
    check_request(replace(empty, config=config(epochs=1)), 1)


def test_a_file_that_is_gone_ends_all_ranks_with_exit_code_2(lake, tmp_path):
    shutil.copytree(lake, tmp_path / "lake")
    shutil.copy(lake.parent / "small.yaml", tmp_path)
    next((tmp_path / "lake").rglob("train/part-00002.parquet")).unlink()
    done = job(tmp_path / "lake", "--ranks", "2", "--epochs", "1")
    assert done.returncode == 2 and "part-00002.parquet" in done.stderr


def test_a_rank_that_fails_or_is_killed_ends_the_launch_and_the_other_rank(tmp_path):
    script = tmp_path / "fails.py"
    before = dict(os.environ)
    for action in ("sys.exit(3)", f"os.kill(os.getpid(), {int(signal.SIGKILL)})"):
        script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {action}\ntime.sleep(300)\n")
        with pytest.raises(RuntimeError, match="rank 1 of 2 ended with exit code"):
            launch(script, [], 2)
    os.environ.clear()
    os.environ.update(before)


def test_the_commit_is_that_of_this_checkout_and_unknown_elsewhere(tmp_path):
    assert code_commit(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert len(code_commit(tmp_path)) == 40
    (tmp_path / "mail_core").mkdir()
    assert code_commit(tmp_path / "mail_core") == "unknown"
