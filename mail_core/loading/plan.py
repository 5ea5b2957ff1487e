"""Who reads what: a pure function of the manifest's files, seed, epoch, world size and rank."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from mail_core.loading.manifest import FileEntry


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One rank's part of one epoch."""

    files: tuple[FileEntry, ...]
    """In reading order; may be empty."""
    rows: int
    """Rows of these files."""
    steps: int
    """Batches of the epoch, the same for every rank; a rank whose rows end earlier fills up with rows of weight 0."""


def rank_plan(files: Sequence[FileEntry], seed: int, epoch: int, world_size: int, rank: int, batch_size: int,
              shuffle: bool) -> RankPlan:
    """Split `files` over the ranks: every file goes to exactly one rank, and every rank takes equally many steps.

    With `shuffle` the files are first put in an order drawn from (seed, epoch); then the largest goes to the rank with
    the fewest rows so far. Each rank reads its files in the drawn order (the given one without `shuffle`).
    """
    assert 0 <= rank < world_size and batch_size > 0
    order = np.random.default_rng([seed, epoch]).permutation(len(files)) if shuffle else np.arange(len(files))
    drawn = [files[i] for i in order]
    loads = [(0, r) for r in range(world_size)]
    owners = [0] * len(drawn)
    for position in sorted(range(len(drawn)), key=lambda p: -drawn[p].rows):
        rows, owner = heapq.heappop(loads)
        owners[position] = owner
        heapq.heappush(loads, (rows + drawn[position].rows, owner))
    mine = tuple(entry for entry, owner in zip(drawn, owners) if owner == rank)
    steps = max(-(-rows // batch_size) for rows, _ in loads)
    return RankPlan(files=mine, rows=sum(entry.rows for entry in mine), steps=steps)
