"""Start a job's own script once a rank on this machine, through torch's elastic launcher."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Sequence, TypeVar

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, FAILURE

LOOPBACK = "127.0.0.1"
SHUTDOWN_SECONDS = 30
"""How long the other ranks have to end after SIGTERM when one has died, before they are killed. The agent's own figure,
which its configuration changes for a stopped launcher only."""
_WATCH_SECONDS = 0.2
_LAUNCHER = "MAIL_LAUNCHER_PID"
"""Environment variable that tells a rank which process to live and die with."""
_PR_SET_PDEATHSIG = 1
"""Linux, prctl(2): the signal that a process gets when the one that started it has died."""
RANK_ENVIRONMENT = {
    # No page faults for every large temporary: the allocator keeps freed memory (design.md, Recipes).
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2 ** 33),
    # cuBLAS repeats its results only with a workspace of fixed size.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What must be set before any rank's process starts."""
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


class RankError(RuntimeError):
    """A rank has failed or was killed; all may go on from the last checkpoint."""


def is_rank() -> bool:
    """True in a process that torchrun, or `launch`, has started."""
    return "RANK" in os.environ


def end_with_launcher() -> None:
    """Let this rank end as soon as its launcher has died, however that died: nobody would know of it any more, and
    the job's next start must not meet it."""
    launcher = int(os.environ.get(_LAUNCHER, os.getppid()))
    if sys.platform == "linux":
        # The watch below needs Python, which native code can keep from it for good: gloo's process group, once another
        # rank has died, is destroyed with Python's lock held and joins a thread that waits for that lock.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_SECONDS)
        os._exit(FAILURE)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def launch(script: Path, arguments: Sequence[str], ranks: int, max_restarts: int = 0,
           restart_argument: str | None = None, threads: int | None = None) -> None:
    """Run `python script arguments` as `ranks` processes that know each other, and wait for all of them.

    Their logs and results go to this process's stderr and stdout. When a rank dies, the others have ended
    SHUTDOWN_SECONDS later; then all are started again, at most `max_restarts` times and with `restart_argument` added,
    unless bad input was the reason, which would be as bad again. `threads` are a rank's; None: its share of the cores.

    Raises:
        InputError: a rank ended with BAD_INPUT; its own message stands in the log.
        RankError: a rank failed once too often; the others have been ended.
    """
    for name, value in _rank_environment(ranks, threads).items():
        os.environ.setdefault(name, value)

    def attempt(number: int) -> None:
        again = () if number == 0 or restart_argument is None else (restart_argument,)
        _launch(script, [*arguments, *again], ranks)

    with _named_as_launcher():
        restarting(attempt, max_restarts)


def restarting(attempt: Callable[[int], _Result], max_restarts: int) -> _Result:
    """What `attempt`, told how many came before it, returns; after a RankError it is begun again, at most so often.

    Raises: what `attempt` raises otherwise, or at last.
    """
    for number in range(max_restarts):
        try:
            return attempt(number)
        except RankError as error:
            logger.warning("%s; all ranks are started again, %d more times at most", error, max_restarts - number - 1)
    return attempt(max_restarts)


def _launch(script: Path, arguments: Sequence[str], ranks: int) -> None:
    # One launch an attempt, since the elastic agent's own restarts ask for no reason.
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, role="rank",
                          rdzv_backend="c10d", rdzv_endpoint=f"{LOOPBACK}:0", local_addr=LOOPBACK, max_restarts=0,
                          shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        elastic_launch(config, sys.executable)(str(script), *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = f"rank {rank} of {ranks} ended with exit code {failure.exitcode}; its message stands above"
        if any(each.exitcode == BAD_INPUT for each in error.failures.values()):
            raise InputError(message) from error
        raise RankError(message) from error


@contextmanager
def _named_as_launcher() -> Iterator[None]:
    """For the ranks alone: what else this process starts, torchrun perhaps, has ranks of its own."""
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_LAUNCHER]


def _rank_environment(ranks: int, threads: int | None) -> dict[str, str]:
    """What must be set before a rank's process starts; whatever the caller has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        # A fixed number of threads: more than a rank's share of the cores slows all down, and the order of sums within
        # an operation, so the last bits of a result, follows from it.
        "OMP_NUM_THREADS": str(threads or max(1, cores // ranks)),
        # The ranks are all on this machine and need no other interface.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        **RANK_ENVIRONMENT}
