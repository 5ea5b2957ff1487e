"""Ranks as the tasks of one barrier stage on Spark's executors, started by PySpark's TorchDistributor.

Each task starts torchrun, and that one rank. What goes to the executors is the request, pickled, and this package as a
folder: a version that is registered takes the source of `mail_core` along, which a zip of --py-files could not give.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Callable
from zipfile import ZipFile
from zipimport import zipimporter

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

import mail_core
from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, FAILURE, configure_logging
from mail_core.spark.packages import ship_folder
from mail_core.spark.session import spark_session
from mail_core.training.launcher import RANK_ENVIRONMENT, RankError, end_with_launcher, restarting
from mail_core.training.ranks import Ranks
from mail_core.training.run import TrainRequest, fetched_here, train_and_register

_BEFORE_A_FOLLOWER_SECONDS = 5
_RANK_FAILED = "barrier ResultStage"
"""Stands in what Spark says where a task of the ranks' stage has failed, or its executor has gone."""
_BAD_INPUT = "a rank's bad input: "
"""Begins what a task says whose rank has raised InputError."""
_CAUSES_LEFT_OUT = "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled"

logger = logging.getLogger(__name__)


def launch_on_spark(request: TrainRequest, ranks: int, max_restarts: int) -> str:
    """Train as `ranks` tasks of the cluster, print what rank 0 prints, and return its closing sentence.

    The ranks' logs go to this process's stderr. Spark never tries such a stage again: when a rank dies, Spark ends the
    others, and all are started anew from here, on the last checkpoint, at most `max_restarts` times. A rank's threads
    are spark.task.cpus.

    Raises:
        InputError: a rank found its input bad; the cluster cannot run tasks at the same time.
        RankError: a rank failed once too often; the others have been ended.
    """
    running = SparkSession.getActiveSession() is not None
    spark = spark_session("train")
    try:
        _check_cluster(spark)
        spark.conf.set(_CAUSES_LEFT_OUT, "false")
        _prepare_executors(spark)

        def attempt(number: int) -> tuple[str, str]:
            return _attempt(spark, replace(request, resume=request.resume or number > 0), ranks)

        results, closing = restarting(attempt, max_restarts)
    finally:
        if not running:
            spark.stop()
    sys.stdout.write(results)
    sys.stdout.flush()
    return closing


def _check_cluster(spark: SparkSession) -> None:
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise InputError("spark.dynamicAllocation.enabled: true (expected false: all ranks start at the same time, "
                         "which Spark allows on a fixed number of executors only)")


def _prepare_executors(spark: SparkSession) -> None:
    """Give the executors' Python this package, and what a rank's process must find in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        _copy_package(Path(folder))
        shipped = ship_folder(spark, folder)
    environment = spark.sparkContext.environment
    for name, value in RANK_ENVIRONMENT.items():
        environment.setdefault(name, value)
    # Relative: executors unpack it where they work, and the processes that they start begin there, too.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [shipped.archive, environment.get("PYTHONPATH")]))


def _copy_package(folder: Path) -> None:
    """Put `mail_core` into `folder`, also where the driver itself runs from a zip of --py-files."""
    if isinstance(mail_core.__loader__, zipimporter):
        with ZipFile(mail_core.__loader__.archive) as archive:
            archive.extractall(folder, [name for name in archive.namelist()
                                        if name.startswith(f"{mail_core.__name__}/")])
        return
    shutil.copytree(Path(mail_core.__file__).parent, folder / mail_core.__name__,
                    ignore=shutil.ignore_patterns("__pycache__"))


def _attempt(spark: SparkSession, request: TrainRequest, ranks: int) -> tuple[str, str]:
    # Spark's tasks have GPUs only where it is told how many.
    use_gpu = float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0) > 0
    try:
        result = TorchDistributor(num_processes=ranks, local_mode=False, use_gpu=use_gpu).run(_rank, request)
    except (PySparkException, Py4JError) as error:
        text = str(error)
        bad_input = re.search(f"{_BAD_INPUT}(.*)", text)
        if bad_input is not None:
            raise InputError(bad_input[1]) from error
        if _RANK_FAILED in text:
            raise RankError(f"one of {ranks} ranks has failed or was killed; its message stands above") from error
        raise
    assert isinstance(result, tuple)
    return result


class _BadInput:
    """What a rank returns that has raised InputError. PySpark drops the reason of a rank that fails, so it is raised
    again in the rank's task, as that reads this: the reason of a failed task comes back to the driver."""

    def __init__(self, message: str):
        self.message = message

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _refuse, (self.message,)


def _refuse(message: str) -> None:
    raise InputError(f"{_BAD_INPUT}{message}")


def _rank(request: TrainRequest) -> tuple[str, str] | _BadInput:
    """What a rank prints and its closing sentence; it runs in a process that torchrun has started on an executor."""
    end_with_launcher()
    configure_logging()
    try:
        with redirect_stdout(io.StringIO()) as results:  # both outputs go the way of the logs otherwise
            closing = train_and_register(fetched_here(request), Ranks.from_environment())
    except InputError as error:
        atexit.register(os._exit, BAD_INPUT)  # once this is written: torchrun would wait for the others after success
        return _BadInput(str(error))
    except Exception:
        logger.exception("a rank failed")
        # It may have failed because another has: Spark keeps the first reason that it hears.
        time.sleep(_BEFORE_A_FOLLOWER_SECONDS)
        sys.exit(FAILURE)
    return results.getvalue(), closing
