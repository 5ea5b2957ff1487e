"""The loader beside a plain pyarrow scan of the same files, and what reading adds to a training step of BaseDNN.

Files as export_training writes them (32,768 rows in one row group, Snappy) with Alimama's columns, L = 100, Zipf IDs.
Prints a Markdown table and writes it to docs/benchmarks.md. BENCH_ROUNDS and BENCH_THREADS change rounds and threads.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from alimama_batches import ROWS, SCHEMA, batches
from bench_training_step import ALLOCATOR, OurStep
from report import machine, spread, table, write_section
from torch import Tensor

from mail_core.encoding.encode import to_arrow
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TRAIN, FileEntry, Manifest, day_number, export_columns
from mail_core.schema.definition import DAY, LABEL, MASKED, UNSEEN, USER_KEY
from mail_core.training.data import to_tensors

FILES, FILE_ROWS, MEAN_LENGTH = 4, 32_768, 34
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
THREADS = int(os.environ.get("BENCH_THREADS", str(os.cpu_count())))
CPU = torch.device("cpu")


def write_files(root: Path) -> Manifest:
    """The export's train split: FILES files."""
    entries = tuple(FileEntry(path=f"part-{i:05}.parquet", rows=FILE_ROWS) for i in range(FILES))
    drawn = iter(batches(FILES * FILE_ROWS // ROWS, MEAN_LENGTH))
    for number, entry in enumerate(entries):
        parts = [{name: column.numpy() for name, column in batch.items()}
                 for batch in itertools.islice(drawn, FILE_ROWS // ROWS)]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        keys = np.random.default_rng(number).integers(0, 2 ** 40, FILE_ROWS)
        marks = {LABEL: (keys % 20 == 0).astype(np.int32), USER_KEY: keys,
                 MASKED: np.zeros(FILE_ROWS, dtype=np.int32), UNSEEN: np.zeros(FILE_ROWS, dtype=np.int32),
                 DAY: np.full(FILE_ROWS, day_number(date(2017, 5, 6)), dtype=np.int32)}
        pq.write_table(pa.Table.from_batches([to_arrow({**arrays, **marks})]), root / entry.path)
    return Manifest(schema_name=SCHEMA.name, schema_fingerprint="", encoder_fingerprint="", new_users="natural",
                    end_date=date(2017, 5, 13), days=8, delta_versions={}, sequence_length=SCHEMA.sequence_length,
                    data=".", columns=export_columns(SCHEMA), splits={TRAIN: entries}, statistics={})


def loaded(root: Path, manifest: Manifest) -> Iterator[dict[str, np.ndarray]]:
    """One shuffled epoch."""
    return epoch_batches(str(root), manifest, (TRAIN,), seed=1, epoch=0, world_size=1, rank=0, batch_size=ROWS,
                         shuffle=True)


def scan(root: Path, manifest: Manifest) -> None:
    """Every column of every file by pyarrow, one file after the other."""
    for entry in manifest.splits[TRAIN]:
        pq.read_table(root / entry.path)


def train(step: OurStep, encoded: Iterator[dict[str, Tensor]]) -> None:
    """A pass over batches by a BaseDNN step."""
    step.batches = encoded  # type: ignore[assignment]
    for _ in range(FILES * FILE_ROWS // ROWS):
        step()


def variants(root: Path, manifest: Manifest) -> dict[str, Callable[[], None]]:
    """Whole passes over all rows."""
    memory = [to_tensors(batch, CPU).encoded for batch in loaded(root, manifest)]
    step = OurStep("base_dnn", memory[:1])
    return {
        "pyarrow scan, all columns": lambda: scan(root, manifest),
        "loader, shuffled batches": lambda: [None for _ in loaded(root, manifest)] and None,
        "BaseDNN from memory": lambda: train(step, iter(memory)),
        "BaseDNN from the loader": lambda: train(step, (to_tensors(b, CPU).encoded for b in loaded(root, manifest)))}


def report(seconds: dict[str, list[float]], before: str) -> str:
    """The section's text."""
    rows, middle = FILES * FILE_ROWS, {name: statistics.median(s) for name, s in seconds.items()}
    base = middle["BaseDNN from memory"]
    lines = [[name, spread([v * ROWS / rows for v in s]), f"{rows / middle[name]:,.0f}",
              f"{middle[name] / base:.2f}"] for name, s in seconds.items()]
    added = middle["BaseDNN from the loader"] / base - 1
    alone = middle["loader, shuffled batches"] / base
    note = (f"`python tests/benchmarks/bench_loader.py`: {FILES} files of {FILE_ROWS:,} rows with Alimama's columns, "
            f"L = {SCHEMA.sequence_length} (mean length {MEAN_LENGTH}), batches of {ROWS:,}, {ROUNDS} interleaved "
            f"rounds of whole passes after one to warm up. {before} at the start. Target: below 10 % of a step of "
            f"BaseDNN; the loader alone takes {alone:.1%} of one, and a step that reads takes {added:.1%} longer.\n")
    return "\n".join([note, table(["pass over all rows", "ms a batch: median (quartiles)", "rows/s",
                                   "time as a share of BaseDNN's"], lines)])


def main() -> None:
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(THREADS)
    before = machine(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        calls = variants(Path(folder), write_files(Path(folder)))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(ROUNDS + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if number:
                    seconds[name].append(time.perf_counter() - start)
    body = report(seconds, before)
    print(body)
    write_section("Loader", body)


if __name__ == "__main__":
    main()
