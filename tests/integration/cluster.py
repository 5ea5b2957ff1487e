"""A Spark standalone cluster on loopback: one master, two workers, from the pip package. It stops what it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

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
        """The tests' interpreter with its packages, but without .pth files and so without the editable mail_core."""
        script = self.folder / "worker-python"
        if not script.exists():
            packages = sysconfig.get_paths()["purelib"]
            script.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec {sys.executable} -S "$@"\n')
            script.chmod(0o755)
        return script

    @property
    def environment(self) -> dict[str, str]:
        """For every process of the cluster and for spark-submit."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYSPARK_SUBMIT_ARGS", "PYTHONPATH")}
        return kept | {"SPARK_HOME": str(SPARK_HOME), "SPARK_LOCAL_IP": "127.0.0.1",
                       "SPARK_LOCAL_DIRS": str(self.folder / "local"), "PYSPARK_PYTHON": str(self.worker_python),
                       "PYSPARK_DRIVER_PYTHON": sys.executable}

    def submit(self, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`spark-submit jobs/<job>.py` with the package as a zip."""
        package = self.folder / "mail_core.zip"
        with zipfile.ZipFile(package, "w") as archive:
            for path in sorted((ROOT / "mail_core").rglob("*.py")):
                archive.write(path, path.relative_to(ROOT))
        command = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", self.url, "--py-files", str(package),
                   "--driver-memory", MEMORY, "--executor-memory", "768m",
                   "--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.driver.bindAddress=127.0.0.1",
                   "--conf", "spark.sql.shuffle.partitions=4", "--conf", "spark.databricks.delta.snapshotPartitions=2",
                   str(ROOT / "jobs" / f"{job}.py"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, text=True, capture_output=True, timeout=600,
                              check=False)

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
        """End the processes that `start` began, workers first; each leads the group of its executors."""
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


@contextmanager
def standalone_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that lives for the block, with its files in `folder`."""
    cluster = Cluster(folder=folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
