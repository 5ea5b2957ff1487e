"""One rank's epoch as NumPy batches: files by the plan, rows shuffled in a seeded buffer, equal steps on every rank.

Shapes: B rows of a batch (at most `batch_size`), W width of a list column.
"""

from __future__ import annotations

from datetime import date
from typing import Iterable, Iterator

import numpy as np

from mail_core.loading.manifest import ColumnEntry, Manifest
from mail_core.loading.petastorm import read_files
from mail_core.loading.plan import rank_plan
from mail_core.schema.definition import WEIGHT

BUFFER_ROWS = 131_072
"""Rows drawn from at random: four full files. Rows lie in hash-random order in the files already."""

Arrays = dict[str, np.ndarray]


def epoch_batches(export_uri: str, manifest: Manifest, split: tuple[str, ...], *, seed: int, epoch: int,
                  world_size: int, rank: int, batch_size: int, shuffle: bool,
                  buffer_rows: int = BUFFER_ROWS, since: date | None = None) -> Iterator[Arrays]:
    """Read this rank's rows of the named splits, of the days from `since` on where it is given, once.

    Yields exactly `rank_plan(...).steps` batches of the manifest's columns, (B,) or (B, W), and `weight` float32 (B,):
    first the real rows, weight 1, each once over all ranks; then batches of one all-zero row of weight 0.
    The same arguments give the same batches.

    Raises:
        InputError: as `Manifest.files`, or a file that is absent or differs from the manifest.
    """
    plan = rank_plan(manifest.files(split, since), seed, epoch, world_size, rank, batch_size, shuffle)
    rng = np.random.default_rng([seed, epoch, rank]) if shuffle else None
    blocks = read_files(export_uri, plan.files, manifest.columns, since)
    return padded(rebatched(blocks, batch_size, buffer_rows, rng), plan.steps, manifest.columns)


def rebatched(blocks: Iterable[Arrays], batch_size: int, buffer_rows: int,
              rng: np.random.Generator | None) -> Iterator[Arrays]:
    """Blocks of any size -> batches of `batch_size` rows, the last one shorter; permuted in a buffer with an `rng`."""
    buffer: list[Arrays] = []
    held = 0
    for block in blocks:
        buffer.append(block)
        held += _rows(block)
        if held >= max(buffer_rows, batch_size):
            yield from _full_batches(buffer, batch_size, rng)
            held = sum(map(_rows, buffer))
    yield from _full_batches(buffer, batch_size, rng)
    if buffer:
        yield buffer[0]


def padded(batches: Iterable[Arrays], steps: int, columns: tuple[ColumnEntry, ...]) -> Iterator[Arrays]:
    """Add `weight`, and one-row batches of weight 0 until there are `steps`."""
    taken = 0
    for batch in batches:
        taken += 1
        yield {**batch, WEIGHT: np.ones(_rows(batch), dtype=np.float32)}
    assert taken <= steps, f"{taken} batches, planned {steps}"
    for _ in range(steps - taken):
        filler = {c.name: np.zeros((1, c.width) if c.width else 1, dtype=c.dtype) for c in columns}
        yield {**filler, WEIGHT: np.zeros(1, dtype=np.float32)}


def _full_batches(buffer: list[Arrays], batch_size: int, rng: np.random.Generator | None) -> Iterator[Arrays]:
    """Yield the full batches of the buffer's rows; leave the rest in it as one block."""
    if not buffer:
        return
    rows = {name: np.concatenate([block[name] for block in buffer]) for name in buffer[0]}
    buffer.clear()
    size = _rows(rows)
    order = rng.permutation(size) if rng is not None else None
    end = size - size % batch_size
    for start in range(0, end, batch_size):
        yield _take(rows, order, start, start + batch_size)
    if end < size:
        buffer.append(_take(rows, order, end, size))


def _take(rows: Arrays, order: np.ndarray | None, start: int, stop: int) -> Arrays:
    # Copies, so that a batch that is kept does not keep the whole buffer.
    index = np.arange(start, stop) if order is None else order[start:stop]
    return {name: array.take(index, axis=0) for name, array in rows.items()}


def _rows(block: Arrays) -> int:
    return len(next(iter(block.values())))
