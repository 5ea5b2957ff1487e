"""Jobs as processes of their own, to be killed with all that they started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def start(job: str, *arguments: str, log: Path) -> subprocess.Popen:
    """Start `jobs/<job>.py`; its output is added to `log`."""
    with log.open("ab") as sink:
        return subprocess.Popen([sys.executable, str(JOBS / f"{job}.py"), *arguments], stdout=sink, stderr=sink,
                                start_new_session=True)


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL for a job, its JVM, its ranks and its workers at once; False where it had ended by itself."""
    running = process.poll() is None
    if running:
        # By descent: Spark's Python workers and torch's ranks leave the job's process group.
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=30)
    process.wait()
    return running
