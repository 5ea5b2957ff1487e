"""Peak memory of a command and all its children, from /proc (Linux)."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

PROC, JVM = Path("/proc"), "java"
INTERVAL = 0.2
"""Seconds between two looks: a shorter peak may be missed."""
_KIBIBYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The largest sums of PSS (shared pages in equal parts) over a process and its descendants, MiB."""

    seconds: float
    total: float
    jvm: float
    python: float
    """Whatever is no JVM."""


def peak_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Peak:
    """Run a command to its end; its results go nowhere, its log to ours.

    Raises:
        subprocess.CalledProcessError: it ended with another code than 0.
    """
    total = jvm = python = 0.0
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            sizes = [_size(pid) for pid in descendants(process.pid)]
            java = sum(size for size, name in sizes if name == JVM)
            other = sum(size for size, name in sizes if name != JVM)
            total, jvm, python = max(total, java + other), max(jvm, java), max(python, other)
            time.sleep(INTERVAL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Peak(seconds=time.perf_counter() - start, total=total, jvm=jvm, python=python)


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for path in PROC.iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(path.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _size(pid: int) -> tuple[float, str]:
    """PSS in MiB and the program's name; nothing for a process that has ended."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        name = (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return 0.0, ""
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / _KIBIBYTES, name
