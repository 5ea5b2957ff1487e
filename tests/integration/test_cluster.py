"""The Spark jobs on a standalone cluster, where the workers have of mail_core only what is shipped to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import mlflow
import psutil
import pytest
from checksums import checksum, checksums
from cluster import standalone_cluster
from killing import kill
from random_kills import OTHERS
from raw_tables import JOBS, LAST_DAY, call_job
from small_export import END, schema_text, write_export
from small_package import small_package
from test_checkpoints import FILES, NAME, checkpoint_after
from test_clean_up import with_lineage
from test_faults import INGESTED
from test_faults import write as write_raw_files
from test_kill_and_rerun import ARGUMENTS, LAST, content, stage_folders

from mail_core.job import DONE
from mail_core.lake.tables import Lake
from mail_core.package.store import WEIGHTS, load_package
from mail_core.tracking.promotions import aliases
from mail_core.tracking.registry import register_package, resolve_model
from mail_core.tracking.runs import configure_tracking

TRAIN, IN_TURN = JOBS / "train.py", Path(__file__).with_name("jobs_in_turn.py")
CLEAN_UP = ("--date", str(LAST_DAY + timedelta(days=59)), "--delete")
"""Two of three days of raw rows are past the schema's 60 days of retention."""
CLEANED = ("raw_impressions", "raw_behaviors", "features", "ctr_scores")
OTHER_TABLES = {"check_features": "checks", "promote": "promotions"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def stages(spark, alimama, tmp_path_factory) -> dict[str, Path]:
    """The lake as each job finds it, and as `done` after all of them but clean_up, run in this process; also where
    ingest_logs and report write on the cluster."""
    root = tmp_path_factory.mktemp("here")
    found = stage_folders(spark, alimama, root / "root")
    done = found["done"]
    configure_tracking(None, str(done))
    for alias, seed in (("champion", 0), ("challenger", 1)):
        plain = small_package(done.parent / f"{alias}-plain", alimama, seed=seed)
        told = with_lineage(plain, done.parent / alias, Lake(spark, str(done), alimama).version("features"))
        register_package(told, "m", alias)
    for job in (*OTHERS, "clean_up", "clean_up_here"):
        found[job] = shutil.copytree(done.parent, done.parent.with_name(f"before_{job}")) / "lake"
    for job, arguments in OTHERS.items():
        assert call_job(job, *table(done), *arguments) == DONE
    return found | {"ingest_logs": root / "ingested", "report": root / "page.html"}


@pytest.fixture(scope="module")
def outcomes(cluster, stages, raw_files, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and results of each job on the cluster, all in one application: starting one for each takes minutes."""
    folder = tmp_path_factory.mktemp("there")
    orders = [("ingest_logs", *table(stages["ingest_logs"]), "--source", str(raw_files)),
              *((job, *table(stages[job]), *arguments) for job, arguments in (*ARGUMENTS.items(), *OTHERS.items())),
              ("report", *report_of(stages["done"], stages["report"])),
              ("clean_up", *table(stages["clean_up"]), *CLEAN_UP)]
    (folder / "orders.json").write_text(json.dumps(orders))
    log, results = folder / "log", folder / "results.json"
    job = cluster.start_job(log, *cluster.command(IN_TURN, str(folder / "orders.json"), str(results)))
    assert job.wait(600) == 0, log.read_text()
    found = json.loads(results.read_text())
    assert len(found) == len(orders) and all(code == DONE for code, _ in found.values()), log.read_text()
    return found


@pytest.fixture(scope="module")
def raw_files(alimama, tmp_path_factory) -> Path:
    return write_raw_files(tmp_path_factory.mktemp("raw") / "files", alimama, good=60, bad=20)[0]


def table(lake: Path) -> tuple[str, ...]:
    return "--schema", "alimama", "--lake", str(lake)


def aliases_in(lake: Path) -> dict[str, str]:
    configure_tracking(None, str(lake))
    return aliases("m")


def report_of(lake: Path, page: Path) -> tuple[str, ...]:
    return *table(lake), "--date", LAST, "--model", "m", "--out", str(page)


def test_the_workers_python_has_torch_but_no_mail_core_of_its_own(cluster):
    def run(code):
        return subprocess.run([cluster.worker_python, "-c", code], cwd=cluster.folder, env=cluster.environment,
                              capture_output=True, text=True, check=False)

    assert run("import torch, pyarrow").returncode == 0
    assert "No module named 'mail_core'" in run("import mail_core").stderr


def test_ingestion_on_the_cluster_leaves_the_local_tables(outcomes, stages, spark, alimama, raw_files, tmp_path):
    assert call_job("ingest_logs", *table(tmp_path / "here"), "--source", str(raw_files)) == DONE
    lakes = (Lake(spark, str(lake), alimama) for lake in (stages["ingest_logs"], tmp_path / "here"))
    there, here = (checksums(lake, INGESTED) for lake in lakes)
    assert there == here and all(rows for rows, _ in here.values())


@pytest.mark.parametrize("job", ARGUMENTS)
def test_a_job_on_the_cluster_leaves_what_it_does_locally(outcomes, stages, spark, alimama, job):
    assert content(spark, alimama, stages[job], job) == content(spark, alimama, stages["done"], job)


@pytest.mark.parametrize("job", OTHERS)
def test_checks_and_promotion_on_the_cluster_are_the_local_ones(outcomes, stages, spark, alimama, job):
    there, here = (Lake(spark, str(stages[name]), alimama).read(OTHER_TABLES[job]) for name in (job, "done"))
    assert checksum(there) == checksum(here)
    if job == "promote":
        assert aliases_in(stages[job]) == aliases_in(stages["done"])


def test_the_report_on_the_cluster_is_the_local_page(outcomes, stages, tmp_path):
    assert call_job("report", *report_of(stages["done"], tmp_path / "page.html")) == DONE
    assert stages["report"].read_text() == (tmp_path / "page.html").read_text()


def test_clean_up_on_the_cluster_removes_what_it_does_locally(outcomes, stages, spark, alimama, capsys):
    capsys.readouterr()
    assert call_job("clean_up", *table(stages["clean_up_here"]), *CLEAN_UP) == DONE
    assert outcomes["clean_up"][1] == capsys.readouterr().out
    assert "removed: rows raw_impressions: 2017-05-11, 2017-05-12" in outcomes["clean_up"][1]
    lakes = (Lake(spark, str(stages[name]), alimama) for name in ("clean_up", "clean_up_here"))
    there, here = (checksums(lake, CLEANED) for lake in lakes)
    assert there == here


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A lake with an export and its version 1, which two ranks of this machine have trained."""
    root = tmp_path_factory.mktemp("trained")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    write_export(root / "lake", FILES)
    done = subprocess.run([sys.executable, str(TRAIN), *training(root / "lake")], capture_output=True,
                          text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == DONE, done.stderr
    return root / "lake"


def training(lake: Path) -> tuple[str, ...]:
    return ("--schema", str(lake.parent / "small.yaml"), "--lake", str(lake), "--preset", "tiny", "--batch-size", "32",
            "--end-date", str(END), "--epochs", "2", "--ranks", "2", "--checkpoint-seconds", "0")


def version(lake: Path, number: int) -> tuple[dict, bytes, dict]:
    """Lineage, weights and curves."""
    configure_tracking(None, str(lake))
    found, client = resolve_model(f"models:/{NAME}/{number}"), mlflow.MlflowClient()
    curves = {name: [(point.step, point.value) for point in client.get_metric_history(found.run_id, name)]
              for name in client.get_run(found.run_id).data.metrics}
    return load_package(found.package_folder).lineage, (found.package_folder / WEIGHTS).read_bytes(), curves


def test_ranks_on_the_cluster_end_with_their_job_outlive_one_of_them_and_give_the_local_version(cluster, trained,
                                                                                              tmp_path):
    arguments, first, second = (*training(trained), "--launcher", "spark"), tmp_path / "first", tmp_path / "second"
    job = cluster.start_job(first, *cluster.command(TRAIN, *arguments))  # the driver runs from the zip, too
    checkpoint_after(trained, job, 0)
    ranks = cluster.ranks()
    assert len(ranks) == 2 and kill(job), first.read_text()
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive, "ranks whose job was killed"
    last = max(int(path.name) for path in trained.parent.glob(f"checkpoints/{NAME}/*/*") if path.name.isdecimal())

    job = cluster.start_job(second, *cluster.command(TRAIN, *arguments, "--resume", with_package=False))
    checkpoint_after(trained, job, last)
    cluster.ranks()[0].kill()
    code, said = job.wait(600), second.read_text()
    assert code == DONE, said
    assert said.count("all ranks are started again") == 1 and said.count("training goes on from") == 2, said
    assert f"registered models:/{NAME}/2\n" in said and said.count("new_masked") == 1, said
    assert version(trained, 2) == version(trained, 1)
