"""What the benchmarks share: interleaved timing, Markdown tables, sections of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from pathlib import Path
from typing import Callable, Mapping, Sequence

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
WARM_UP = 6
"""Steps of each variant that are not timed: the first touch of every page is among them."""
_TITLE = "# Benchmarks\n\nRatios hold between variants of one table: they took turns in one run on one machine.\n"


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each variant's calls (each returns its own): every round calls every variant once.

    `pause`: seconds before each call, in which the threads of another variant's process stop waiting for work.
    """
    for call in variants.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            time.sleep(pause)
            seconds[name].append(call())
    return seconds


def spread(seconds: Sequence[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine(threads: int) -> str:
    """CPU, threads and load, in words."""
    found = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", found.read_text()) if found.exists() else []
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {threads} threads, load {load}"


def write_section(title: str, body: str) -> None:
    """Put `body` under the heading `title` of docs/benchmarks.md, in place of what stood there."""
    text = RESULTS.read_text() if RESULTS.exists() else _TITLE
    kept = re.sub(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    RESULTS.write_text(f"{kept.rstrip()}\n\n## {title}\n\n{body.rstrip()}\n")
