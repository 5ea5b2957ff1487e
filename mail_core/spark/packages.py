"""A folder of the driver's (a model version) on every worker, loaded there once a process.

The folder goes out as an archive through Spark itself, so that it works alike on one machine and on a cluster whose
workers share no file system with the driver.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from mail_core.package.scoring import Package
from mail_core.package.store import load_package

_CACHED_PACKAGES = 4


@dataclass(frozen=True)
class FolderHandle:
    """A shipped folder; picklable, for use in a function that runs on the workers."""

    archive: str

    def path(self) -> Path:
        """Where the folder lies on this worker."""
        return Path(SparkFiles.get(self.archive))


@dataclass(frozen=True)
class PackageHandle:
    """A shipped model version; picklable, for use in a function that runs on the workers."""

    folder: FolderHandle
    threads: int
    """Cores that Spark gives a task (spark.task.cpus); torch takes no more."""

    def load(self) -> Package:
        """The package, read once a worker process. Raises InputError as `load_package` does."""
        return _load(self)


def ship_folder(spark: SparkSession, folder: Path | str) -> FolderHandle:
    """Send a folder to every worker, for the life of the session."""
    staging = Path(tempfile.mkdtemp(prefix="mail-ship-"))
    atexit.register(shutil.rmtree, staging, ignore_errors=True)  # workers fetch it whenever they start
    name = f"{Path(folder).name}-{uuid.uuid4().hex}"
    archive = shutil.make_archive(str(staging / name), "zip", root_dir=folder)
    spark.sparkContext.addArchive(f"{archive}#{name}")
    return FolderHandle(name)


def ship_package(spark: SparkSession, folder: Path | str) -> PackageHandle:
    """Send a model version to every worker."""
    return PackageHandle(ship_folder(spark, folder), int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or 1))


@lru_cache(maxsize=_CACHED_PACKAGES)
def _load(handle: PackageHandle) -> Package:
    torch.set_num_threads(handle.threads)
    return load_package(handle.folder.path(), "cuda" if torch.cuda.is_available() else "cpu")
