"""Start a job's own script once a rank on this machine, through torch's elastic launcher."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT

LOOPBACK = "127.0.0.1"
_SHUTDOWN_SECONDS = 30


def is_rank() -> bool:
    """True in a process that torchrun, or `launch`, has started."""
    return "RANK" in os.environ


def launch(script: Path, arguments: Sequence[str], ranks: int) -> None:
    """Run `python script arguments` as `ranks` processes that know each other, and wait for all of them.

    Their logs and results go to this process's stderr and stdout.

    Raises:
        InputError: the first rank to fail ended with BAD_INPUT; its own message stands in the log.
        RuntimeError: a rank failed; the others have been ended.
    """
    for name, value in _rank_environment(ranks).items():
        os.environ.setdefault(name, value)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, role="rank",
                          rdzv_backend="c10d", rdzv_endpoint=f"{LOOPBACK}:0", local_addr=LOOPBACK, max_restarts=0,
                          shutdown_timeout=_SHUTDOWN_SECONDS)
    try:
        elastic_launch(config, sys.executable)(str(script), *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = f"rank {rank} of {ranks} ended with exit code {failure.exitcode}; its message stands above"
        raise InputError(message) if failure.exitcode == BAD_INPUT else RuntimeError(message) from error


def _rank_environment(ranks: int) -> dict[str, str]:
    """What must be set before a rank's process starts; whatever the caller has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        # A fixed number of threads: more than a rank's share of the cores slows all down, and the order of sums within
        # an operation, so the last bits of a result, follows from it.
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        # No page faults for every large temporary: the allocator keeps freed memory (design.md, Recipes).
        "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2 ** 33),
        # The ranks are all on this machine and need no other interface.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        # cuBLAS repeats its results only with a workspace of fixed size.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
