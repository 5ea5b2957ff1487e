"""A Spark standalone cluster on loopback: one master, two workers, from the pip package. It stops what it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import psutil
import pyspark

SPARK_HOME = Path(pyspark.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
WORKERS, WORKER_CORES, MEMORY = 2, 1, "1g"
_START_SECONDS, _STOP_SECONDS = 120, 20


@dataclass(kw_only=True)
class Cluster:
    """A running cluster whose Python workers cannot import mail_core unless a job ships it."""

    folder: Path
    """For logs, work folders, the worker's Python and the shipped package."""
    url: str = ""
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def worker_python(self) -> Path:
        """An interpreter with the packages of the tests' own, but without its .pth files and so without the editable
        mail_core; what it starts is the same."""
        made = self.folder / "worker-python"
        if not made.exists():
            venv.create(made, symlinks=True)
            [packages] = made.glob("lib/python*/site-packages")
            (packages / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        return made / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """For every process of the cluster and for spark-submit."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYSPARK_SUBMIT_ARGS", "PYTHONPATH")}
        return kept | {"SPARK_HOME": str(SPARK_HOME), "SPARK_LOCAL_IP": "127.0.0.1",
                       "SPARK_LOCAL_DIRS": str(self.folder / "local"), "PYSPARK_PYTHON": str(self.worker_python),
                       "PYSPARK_DRIVER_PYTHON": sys.executable}

    def command(self, script: Path, *arguments: str, with_package: bool = True) -> list[str]:
        """`spark-submit SCRIPT`, with mail_core as a zip for the workers."""
        package = self.folder / "mail_core.zip"
        if not package.exists():
            with zipfile.ZipFile(package, "w") as archive:
                for path in sorted((ROOT / "mail_core").rglob("*.py")):
                    archive.write(path, path.relative_to(ROOT))
        # As many partitions as the session of the tests makes.
        settings = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
                    "spark.sql.shuffle.partitions": "4", "spark.default.parallelism": "2",
                    "spark.databricks.delta.snapshotPartitions": "2", "spark.executorEnv.GLOO_SOCKET_IFNAME": "lo"}
        return [str(SPARK_HOME / "bin" / "spark-submit"), "--master", self.url,
                *(("--py-files", str(package)) if with_package else ()),
                "--driver-memory", MEMORY, "--executor-memory", "768m",
                *(part for key, value in settings.items() for part in ("--conf", f"{key}={value}")),
                str(script), *arguments]

    def start_job(self, log: Path, *command: str) -> subprocess.Popen:
        """A `command`, its output to `log`; what still runs when the cluster stops is ended."""
        environment = {**self.environment, "PYTHONPATH": str(ROOT)}  # the driver's own, which no worker sees
        with log.open("w") as sink:
            self.processes.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=ROOT,
                                                   start_new_session=True))
        return self.processes[-1]

    def ranks(self) -> list[psutil.Process]:
        """The processes on the workers that torchrun has started."""
        alive = [psutil.Process(process.pid) for process in self.processes if process.poll() is None]
        return [child for process in alive for child in process.children(recursive=True) if _is_rank(child)]

    def start(self) -> None:
        """Master, then workers, each awaited."""
        master = self._launch("master", "org.apache.spark.deploy.master.Master", "--port", "0")
        self.url = self._await(master, r"Starting Spark master at (spark://\S+)")
        for number in range(WORKERS):
            worker = self._launch(f"worker-{number}", "org.apache.spark.deploy.worker.Worker", "--cores",
                                  str(WORKER_CORES), "--memory", MEMORY, "--work-dir", str(self.folder / "work"),
                                  self.url)
            self._await(worker, r"(Successfully registered with master)")

    def stop(self) -> None:
        """End jobs, workers and master, in this order; each leads the group of what it has started."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _launch(self, name: str, main: str, *arguments: str) -> Path:
        log = self.folder / f"{name}.log"
        with log.open("w") as target:
            self.processes.append(subprocess.Popen(
                [str(SPARK_HOME / "bin" / "spark-class"), main, "--host", "127.0.0.1", "--webui-port", "0", *arguments],
                cwd=self.folder, env=self.environment, stdout=target, stderr=subprocess.STDOUT, start_new_session=True))
        return log

    def _await(self, log: Path, pattern: str) -> str:
        for _ in range(_START_SECONDS * 10):
            found = re.search(pattern, log.read_text())
            if found:
                return found.group(1)
            assert self.processes[-1].poll() is None, log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"no {pattern!r} after {_START_SECONDS} s:\n{log.read_text()}")


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "TORCHELASTIC_RUN_ID" in process.environ()
    except psutil.NoSuchProcess:
        return False


@contextmanager
def standalone_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that lives for the block, with its files in `folder`."""
    cluster = Cluster(folder=folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
