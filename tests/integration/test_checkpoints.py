"""Runs that are killed on the way: they go on from their last checkpoint and end as an undisturbed run does."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_export import END, schema_text, small_schema, write_export
from stepping import BATCH, OPTIMIZERS, batch_of, fresh_step, take

from mail_core.errors import InputError
from mail_core.tracking.runs import configure_tracking
from mail_core.training.checkpoints import DOCUMENT, KEPT, STATE, Checkpoints, Position, run_key
from mail_core.training.data import IdDropout
from mail_core.training.launcher import launch
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks
from mail_core.training.state import TrainState

WORKER = Path(__file__).with_name("checkpoint_worker.py")
JOB = Path(__file__).resolve().parents[2] / "jobs" / "train.py"
FILES = {"train": (600, 500, 400), "validation": (300, 200), "test": (110, 120)}
NAME = "alimama-mail-base_dnn"


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    write_export(root / "lake", FILES)
    return root / "lake"


def worked(lake: Path, out: Path, deaths: str) -> Path:
    """Two ranks train; rank 1 kills itself at the named checkpoints of its attempts, and all are started again."""
    out.mkdir()
    [uri] = (lake / "exports").iterdir()
    done = subprocess.run([sys.executable, str(WORKER), str(out), str(uri), "row_sparse", deaths], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_a_rank_killed_in_mid_epoch_leaves_no_trace_in_weights_curves_and_predictions(lake, tmp_path):
    undisturbed = worked(lake, tmp_path / "undisturbed", "")
    # In the second checkpoint interval of the choice of epochs, then in the third of the final training.
    killed = worked(lake, tmp_path / "killed", "2,7")
    assert (killed / "starts-0").read_text().splitlines() == ["False", "True", "True"]
    for rank in (0, 1):
        state, expected = (load_file(run / f"model-{rank}.safetensors") for run in (killed, undisturbed))
        assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in state)
        assert (killed / f"found-{rank}.json").read_text() == (undisturbed / f"found-{rank}.json").read_text()
    found = json.loads((killed / "found-0.json").read_text())
    assert len(found["predictions"]) == sum(FILES["test"]) and len(found["curves"]) > 5
    assert len(list((killed / "checkpoints").iterdir())) == KEPT


def command(lake: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(JOB), "--schema", str(lake.parent / "small.yaml"), "--lake", str(lake), "--preset",
            "tiny", "--batch-size", "32", "--end-date", END.isoformat(), "--epochs", "2", "--ranks", "2",
            "--checkpoint-seconds", "0", *arguments]


def metrics_of(lake: Path, version: int) -> dict[str, float]:
    configure_tracking(None, str(lake))
    client = mlflow.MlflowClient()
    run = client.get_run(client.get_model_version(NAME, str(version)).run_id)
    assert len(client.get_metric_history(run.info.run_id, "L_rt")) > 5, "a resumed run draws its whole curve"
    return run.data.metrics


def checkpoint_after(lake: Path, job: subprocess.Popen, number: int) -> int:
    """Wait for a later checkpoint than `number` and return its own."""
    while job.poll() is None:
        numbers = [int(p.name) for p in (lake.parent / "checkpoints" / NAME).glob("*/*") if p.name.isdecimal()]
        if max(numbers, default=0) > number:
            return max(numbers)
        time.sleep(0.005)
    raise AssertionError("the job has ended before it could be killed")


def test_a_job_restarts_a_killed_rank_itself_and_after_its_own_death_goes_on_with_resume(lake, tmp_path):
    fresh = subprocess.run(command(lake, "--resume"), capture_output=True, text=True, timeout=300)
    assert fresh.returncode == 0 and "training starts afresh" in fresh.stderr, fresh.stderr
    assert not (lake.parent / "checkpoints").exists(), "nothing is left after a registration"

    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(lake), stdout=log, stderr=log)
        first = checkpoint_after(lake, job, 0)
        os.kill(ranks_of(job)[0], signal.SIGKILL)
        checkpoint_after(lake, job, first + 1)  # one more may have been on its way
        orphans = ranks_of(job)
        job.kill()
        job.wait()
    shutil.copytree(lake.parent / "checkpoints", tmp_path / "checkpoints")
    while any(map(runs_the_job, orphans)):
        time.sleep(0.1)
    text = (tmp_path / "log").read_text()
    assert text.count("all ranks are started again") == 1 and text.count("training goes on from") == 1
    assert "registered" not in text

    resumed = subprocess.run(command(lake, "--resume"), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0 and "training goes on from" in resumed.stderr, resumed.stderr
    assert metrics_of(lake, 2) == metrics_of(lake, 1)
    assert not (lake.parent / "checkpoints").exists()
    assert statuses(lake) == ["FINISHED", "FINISHED"], "the killed run was gone on with, twice"
    run = client_of(lake).get_run(client_of(lake).get_model_version(NAME, "2").run_id)
    for name in run.data.metrics:
        steps = [point.step for point in client_of(lake).get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)), f"{name} has a step twice"

    # As a kill after the registration, right before the checkpoints are removed, would have left it.
    client_of(lake).delete_registered_model_alias(NAME, "challenger")
    shutil.copytree(tmp_path / "checkpoints", lake.parent / "checkpoints")
    twice = subprocess.run(command(lake, "--resume"), capture_output=True, text=True, timeout=300)
    assert twice.returncode == 0 and "training goes on from" in twice.stderr, twice.stderr
    assert f"registered models:/{NAME}/2\n" in twice.stdout
    assert len(client_of(lake).search_model_versions(f"name = '{NAME}'")) == 2
    assert str(client_of(lake).get_model_version_by_alias(NAME, "challenger").version) == "2"
    assert metrics_of(lake, 2) == metrics_of(lake, 1) and statuses(lake) == ["FINISHED", "FINISHED"]


def client_of(lake: Path) -> mlflow.MlflowClient:
    configure_tracking(None, str(lake))
    return mlflow.MlflowClient()


def statuses(lake: Path) -> list[str]:
    client = client_of(lake)
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "alimama"]
    return [run.info.status for run in client.search_runs([experiment])]


def ranks_of(job: subprocess.Popen) -> list[int]:
    """The launcher's children that run the job's script."""
    children = [pid for path in Path(f"/proc/{job.pid}/task").glob("*/children") for pid in path.read_text().split()]
    found = [int(pid) for pid in children if runs_the_job(int(pid))]
    assert found, "no rank is running"
    return found


def runs_the_job(pid: int) -> bool:
    """False for a process that has ended, also where nobody has asked for its exit code yet."""
    try:
        return str(JOB).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_bad_input_is_not_tried_again_and_any_other_end_is_so_often(tmp_path):
    script, starts = tmp_path / "fails.py", tmp_path / "starts"
    before = dict(os.environ)
    for code, restarts, error, expected in ((2, 1, InputError, ["1"]), (3, 1, RuntimeError, ["1", "2"])):
        script.write_text("import os, sys, time\n"
                          "if os.environ['RANK'] == '0':\n"
                          "    time.sleep(300)\n"
                          f"open({str(starts)!r}, 'a').write(f'{{len(sys.argv)}}\\n')\n"
                          f"sys.exit({code})\n")
        with pytest.raises(error, match=f"rank 1 of 2 ended with exit code {code}"):
            launch(script, [], 2, max_restarts=restarts, restart_argument="--resume")
        assert starts.read_text().split() == expected
        starts.unlink()
    assert "MAIL_LAUNCHER_PID" not in os.environ, "ranks of another launcher would end at once"
    os.environ.clear()
    os.environ.update(before)


RANK_THAT_CANNOT_LOOK = """
import ctypes, os, sys, time
from pathlib import Path
from mail_core.training.launcher import end_with_launcher, is_rank, launch

if not is_rank():
    launch(Path(__file__), sys.argv[1:], 2)
moment, folder = sys.argv[1], Path(sys.argv[2])
launcher = os.getppid()
if moment == "native":
    end_with_launcher()
(folder / os.environ["RANK"]).write_text(str(os.getpid()))
if moment == "native":
    ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock
while os.getppid() == launcher:
    time.sleep(0.01)
end_with_launcher()
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ("native", "start"))
def test_ranks_end_with_their_launcher_wherever_they_are(tmp_path, moment):
    script = tmp_path / "rank.py"
    script.write_text(RANK_THAT_CANNOT_LOOK)
    job = subprocess.Popen([sys.executable, str(script), moment, str(tmp_path)])
    found: list[psutil.Process] = []
    while len(found) < 2:
        assert job.poll() is None, "the launcher has ended before it could be killed"
        found = [psutil.Process(int(path.read_text())) for path in tmp_path.glob("[01]") if path.read_text()]
        time.sleep(0.05)
    job.kill()
    job.wait()
    try:
        _, alive = psutil.wait_procs(found, timeout=60)
        assert not alive
    finally:
        for rank in found:
            if rank.is_running():
                rank.kill()


def fresh_state(optimizer: str = "row_sparse") -> TrainState:
    return TrainState(fresh_step(optimizer, Ranks.alone()), IdDropout(small_schema(), 3, torch.device("cpu")),
                      Ranks.alone())


def stepped(state: TrainState, *seeds: int) -> TrainState:
    for seed in seeds:
        encoded, *others = take(batch_of(seed), slice(0, BATCH))
        state.step(state.drop_ids(encoded), *others)
        torch.rand(3)
    return state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_state_steps_on_as_the_saved_one(optimizer, tmp_path):
    state = stepped(fresh_state(optimizer), 1, 2)
    Checkpoints(tmp_path, "key", Ranks.alone()).save(Position(phase="final", epoch=1, steps=2), state)
    expected = stepped(state, 3).gather()
    restored = fresh_state(optimizer)
    assert Checkpoints(tmp_path, "key", Ranks.alone(), resume=True).restore("choice", restored) == (0, 0)
    assert Checkpoints(tmp_path, "key", Ranks.alone(), resume=True).restore("final", restored) == (1, 2)
    found = stepped(restored, 3).gather()
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def resumed(folder: Path, optimizer: str = "row_sparse") -> None:
    Checkpoints(folder, "key", Ranks.alone(), resume=True).restore("final", fresh_state(optimizer))


@pytest.fixture
def saved(tmp_path) -> Path:
    """The last checkpoint of a folder with several."""
    checkpoints, state = Checkpoints(tmp_path / "run", "key", Ranks.alone()), fresh_state()
    for epoch in range(4):
        checkpoints.save(Position(phase="final", epoch=epoch, steps=1), state)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["00000003", "00000004"]
    return tmp_path / "run" / "00000004"


def test_a_damaged_or_pickled_checkpoint_is_refused_by_name(saved):
    weights, document = saved / STATE, saved / DOCUMENT
    whole, text = weights.read_bytes(), document.read_text()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    pickled = pickle.dumps({"weights": list(range(1000))})
    for content in (whole[:-100], flipped, b"", pickled):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=f"{saved.name}/{STATE}"):
            resumed(saved.parent)
    weights.write_bytes(whole)
    for odd in ("{", "[]", text.replace('"phase"', '"stage"'), text.replace('"format": 1', '"format": 2'),
                text.replace('"key": "key"', '"key": "other"')):
        document.write_text(odd)
        with pytest.raises(InputError, match=f"{saved.name}/{DOCUMENT}"):
            resumed(saved.parent)
    document.write_text(text)
    resumed(saved.parent)
    (saved / "state.pt").write_bytes(pickled)
    with pytest.raises(InputError, match=f"{saved.name}/state.pt: not a file of a checkpoint"):
        resumed(saved.parent)
    (saved / "state.pt").unlink()
    weights.unlink()
    with pytest.raises(InputError, match=f"{saved.name}/{STATE}: missing"):
        resumed(saved.parent)


def test_a_checkpoint_of_other_tensors_is_refused_and_an_unfinished_one_is_not_seen(saved):
    unfinished = saved.parent / ".unfinished"
    unfinished.mkdir()
    (unfinished / STATE).write_bytes(b"half")
    resumed(saved.parent)
    tensors = load_file(saved / STATE)
    tensors["model.tables.weight"] = tensors["model.tables.weight"][:-1].clone()
    shutil.rmtree(saved)
    other = saved.parent / "00000003"
    save_file(tensors, other / STATE)
    document = json.loads((other / DOCUMENT).read_text())
    document["sha256"] = hashlib.sha256((other / STATE).read_bytes()).hexdigest()
    (other / DOCUMENT).write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"{other.name}/{STATE}: tensor model.tables.weight is float32"):
        resumed(saved.parent)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(saved, caplog):
    blocked = saved.parent / "a file"
    blocked.write_text("")
    Checkpoints(blocked / "run", "key", Ranks.alone(), resume=True).save(Position(phase="final", epoch=0, steps=1),
                                                                       fresh_state())
    assert "no checkpoint written, training goes on" in caplog.text


def test_without_resume_old_checkpoints_are_removed_and_other_runs_ones_stay(saved):
    other = saved.parent.parent / "other" / "00000001"
    other.mkdir(parents=True)
    Checkpoints(saved.parent, "key", Ranks.alone())
    assert not saved.parent.exists() and other.exists()


def test_whatever_changes_the_result_changes_the_key():
    config = TrainingConfig(model=model_config("tiny", "base_dnn", "base"))
    two = replace(Ranks.alone(), world_size=2)
    keys = [run_key(config, "manifest", Ranks.alone()), run_key(config, "other", Ranks.alone()),
            run_key(config, "manifest", two), run_key(replace(config, seed=2), "manifest", Ranks.alone()),
            run_key(replace(config, model=model_config("tiny", "base_dnn", "off")), "manifest", Ranks.alone())]
    assert len(set(keys)) == len(keys)
    assert run_key(replace(config), "manifest", replace(two, rank=1)) == keys[2], "the same on every rank"
