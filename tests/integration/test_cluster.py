"""The Spark jobs on a standalone cluster, where the workers have of mail_core only what is shipped to them."""

from __future__ import annotations

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
from cluster import Cluster, standalone_cluster
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

ONE_EXECUTOR = {"spark.cores.max": "1"}
"""For jobs whose work is on the driver or in a few rows."""
OTHER_TABLES = {"check_features": "checks", "promote": "promotions"}
CLEAN_UP = ("--date", str(LAST_DAY + timedelta(days=59)), "--delete")
"""Of three days of raw rows one is past the schema's 60 days of retention, and all scores are past their 30."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def stages(spark, alimama, tmp_path_factory) -> dict[str, Path]:
    """The lake as each job finds it, and as `done` after all of them but clean_up, run in this process."""
    found = stage_folders(spark, alimama, tmp_path_factory.mktemp("here"))
    done = found["done"]
    configure_tracking(None, str(done))
    for alias, seed in (("champion", 0), ("challenger", 1)):
        plain = small_package(done.parent / f"{alias}-plain", alimama, seed=seed)
        told = with_lineage(plain, done.parent / alias, Lake(spark, str(done), alimama).version("features"))
        register_package(told, "m", alias)
    for job in (*OTHERS, "clean_up"):
        found[job] = shutil.copytree(done.parent, done.parent.with_name(f"before_{job}")) / "lake"
    for job, arguments in OTHERS.items():
        assert call_job(job, *table(done), *arguments) == DONE
    return found


def table(lake: Path) -> tuple[str, ...]:
    return "--schema", "alimama", "--lake", str(lake)


def done_by(cluster: Cluster, job: str, *arguments: str, **settings) -> str:
    """What the job has printed; spark-submit joins a Python driver's two outputs."""
    done = cluster.submit(job, *arguments, **settings)
    assert done.returncode == DONE, done.stdout[-5_000:] + done.stderr[-5_000:]
    assert f"{job} done in" in done.stdout
    return done.stdout


def test_the_workers_python_has_torch_but_no_mail_core_of_its_own(cluster):
    def run(code):
        return subprocess.run([cluster.worker_python, "-c", code], cwd=cluster.folder, env=cluster.environment,
                              capture_output=True, text=True, check=False)

    assert run("import torch, pyarrow").returncode == 0
    assert "No module named 'mail_core'" in run("import mail_core").stderr


def test_ingestion_by_spark_submit_leaves_the_local_tables(cluster, spark, alimama, tmp_path):
    source, _ = write_raw_files(tmp_path / "raw", alimama, good=60, bad=20)
    done_by(cluster, "ingest_logs", *table(tmp_path / "there"), "--source", str(source))
    assert call_job("ingest_logs", *table(tmp_path / "here"), "--source", str(source)) == DONE
    there, here = (checksums(Lake(spark, str(tmp_path / name), alimama), INGESTED) for name in ("there", "here"))
    assert there == here and all(rows for rows, _ in here.values())


@pytest.mark.parametrize("job", ARGUMENTS)
def test_a_job_by_spark_submit_leaves_what_it_does_locally(cluster, spark, alimama, stages, job):
    done_by(cluster, job, *table(stages[job]), *ARGUMENTS[job])
    assert content(spark, alimama, stages[job], job) == content(spark, alimama, stages["done"], job)


@pytest.mark.parametrize("job", OTHERS)
def test_checks_and_promotion_by_spark_submit_are_the_local_ones(cluster, spark, alimama, stages, job):
    done_by(cluster, job, *table(stages[job]), *OTHERS[job], conf=ONE_EXECUTOR)
    there, here = (Lake(spark, str(stages[name]), alimama).read(OTHER_TABLES[job]) for name in (job, "done"))
    assert checksum(there) == checksum(here)
    if job == "promote":
        configure_tracking(None, str(stages[job]))
        assert aliases("m") == {"champion": "3", "challenger": "3", "previous": "2"}


def test_the_report_by_spark_submit_is_the_local_page(cluster, stages, tmp_path):
    def arguments(name):
        return *table(stages["done"]), "--date", LAST, "--model", "m", "--out", str(tmp_path / name)

    done_by(cluster, "report", *arguments("there.html"), conf=ONE_EXECUTOR)
    assert call_job("report", *arguments("here.html")) == DONE
    assert (tmp_path / "there.html").read_text() == (tmp_path / "here.html").read_text()


def test_clean_up_by_spark_submit_removes_what_it_does_locally(cluster, spark, alimama, stages, tmp_path, capsys):
    here = shutil.copytree(stages["clean_up"].parent, tmp_path / "root") / "lake"
    said = done_by(cluster, "clean_up", *table(stages["clean_up"]), *CLEAN_UP, conf=ONE_EXECUTOR)
    capsys.readouterr()
    assert call_job("clean_up", *table(here), *CLEAN_UP) == DONE
    removed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("removed: ")]
    assert removed and removed == [line for line in said.splitlines() if line.startswith("removed: ")]
    there, local = (checksums(Lake(spark, str(lake), alimama)) for lake in (stages["clean_up"], here))
    assert there == local and local["ctr_scores"][0] == 0 < local["raw_impressions"][0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A lake with an export and its version 1, which two ranks of this machine have trained."""
    root = tmp_path_factory.mktemp("trained")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    write_export(root / "lake", FILES)
    done = subprocess.run([sys.executable, str(JOBS / "train.py"), *training(root / "lake")], capture_output=True,
                          text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == DONE, done.stderr
    return root / "lake"


def training(lake: Path) -> tuple[str, ...]:
    return ("--schema", str(lake.parent / "small.yaml"), "--lake", str(lake), "--preset", "tiny", "--batch-size", "32",
            "--end-date", str(END), "--epochs", "2", "--ranks", "2", "--checkpoint-seconds", "0")


def started(cluster: Cluster, lake: Path, log: Path, *arguments: str, with_package: bool) -> subprocess.Popen:
    command = cluster.command("train", *training(lake), "--launcher", "spark", *arguments, with_package=with_package,
                              conf={"spark.executorEnv.GLOO_SOCKET_IFNAME": "lo"})
    with log.open("w") as sink:
        return subprocess.Popen(command, stdout=sink, stderr=sink, env=cluster.environment, cwd=cluster.folder)


def version(lake: Path, number: int) -> tuple[dict, bytes, dict]:
    """Lineage, weights and curves."""
    configure_tracking(None, str(lake))
    found, client = resolve_model(f"models:/{NAME}/{number}"), mlflow.MlflowClient()
    curves = {name: [(point.step, point.value) for point in client.get_metric_history(found.run_id, name)]
              for name in client.get_run(found.run_id).data.metrics}
    return load_package(found.package_folder).lineage, (found.package_folder / WEIGHTS).read_bytes(), curves


def test_ranks_on_the_cluster_end_with_their_job_outlive_one_of_them_and_give_the_local_version(cluster, trained,
                                                                                              tmp_path):
    job = started(cluster, trained, tmp_path / "first.log", with_package=True)  # the driver runs from the zip, too
    checkpoint_after(trained, job, 0)
    ranks = cluster.ranks()
    assert len(ranks) == 2 and kill(job), (tmp_path / "first.log").read_text()
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive, "ranks whose job was killed"
    last = max(int(path.name) for path in trained.parent.glob(f"checkpoints/{NAME}/*/*") if path.name.isdecimal())

    job = started(cluster, trained, tmp_path / "second.log", "--resume", with_package=False)
    checkpoint_after(trained, job, last)
    cluster.ranks()[0].kill()
    code, said = job.wait(600), (tmp_path / "second.log").read_text()
    assert code == DONE, said
    assert said.count("all ranks are started again") == 1 and said.count("training goes on from") == 2, said
    assert f"registered models:/{NAME}/2\n" in said and said.count("new_masked") == 1, said
    assert version(trained, 2) == version(trained, 1)
