"""Two gloo ranks, one embedding table of 2 million rows: gradients exchanged and the table updated, three ways.

Each rank has the row gradients of a batch of its own (1,024 rows, 120 Zipf IDs each). Starts itself as two ranks.
Prints a Markdown table and writes it to docs/benchmarks.md.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from report import WARM_UP, interleaved, machine, spread, table, write_section
from torch import Tensor, nn

from mail_core.training.exchange import exchange_row_gradients
from mail_core.training.launcher import is_rank, launch
from mail_core.training.optimizers import RowSparseAdam
from mail_core.training.ranks import Ranks

ROWS, DIM, IDS = 2_000_000, 32, 1024 * 120
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
OURS, SPARSE, DENSE = "all-gather of row gradients, row-sparse Adam", "sparse all-reduce, SparseAdam", \
    "dense all-reduce, fused Adam"


def gradients(rank: int) -> tuple[Tensor, Tensor]:
    """(rows_R unique, grad_RD) of one rank's batch; the probability of an ID falls as 1 / rank."""
    draw = np.random.default_rng(rank)
    rows_R = np.unique((ROWS ** draw.random(IDS)).astype(np.int64) - 1)
    return torch.from_numpy(rows_R), torch.from_numpy(draw.normal(size=(len(rows_R), DIM)).astype(np.float32))


def variants(ranks: Ranks) -> dict[str, Callable[[], None]]:
    """One step of each way, on a table of its own."""
    rows_R, grad_RD = gradients(ranks.rank)
    weights = {name: nn.Parameter(torch.zeros(ROWS, DIM)) for name in (OURS, SPARSE, DENSE)}
    row_sparse = RowSparseAdam(weights[OURS], 1e-3)
    sparse_adam = torch.optim.SparseAdam([weights[SPARSE]], lr=1e-3)
    adam = torch.optim.Adam([weights[DENSE]], lr=1e-3, fused=True)

    def ours() -> None:
        row_sparse.step(*exchange_row_gradients(rows_R, grad_RD, ranks))

    def sparse() -> None:
        gradient = torch.sparse_coo_tensor(rows_R[None], grad_RD.clone(), (ROWS, DIM), is_coalesced=True)
        dist.all_reduce(gradient)
        weights[SPARSE].grad = gradient.coalesce() / ranks.world_size
        sparse_adam.step()

    def dense() -> None:
        gradient = torch.zeros(ROWS, DIM).index_copy_(0, rows_R, grad_RD)
        weights[DENSE].grad = ranks.sum(gradient).div_(ranks.world_size)
        adam.step()

    return {OURS: ours, SPARSE: sparse, DENSE: dense}


def timed(call: Callable[[], None]) -> Callable[[], float]:
    """Seconds from a common start to the end of this rank's part."""
    def measure() -> float:
        dist.barrier()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    return measure


def report(seconds: dict[str, list[float]], before: str, touched: int) -> str:
    """The section's text."""
    reference = statistics.median(seconds[SPARSE])
    rows = [[name, spread(s), f"{statistics.median(s) / reference:.2f}"] for name, s in seconds.items()]
    return "\n".join([
        f"`python tests/benchmarks/bench_exchange.py`: two ranks of one thread on gloo, a table of {ROWS:,} x {DIM}, "
        f"{touched:,} rows touched a rank (Zipf), {ROUNDS} interleaved rounds after {WARM_UP} to warm up, times of "
        f"rank 0. {before} at the start. Target: ours at most 0.4 of the sparse all-reduce.\n",
        table(["exchange and update", "ms: median (quartiles)", "share of sparse"], rows)])


def main() -> None:
    if not is_rank():
        launch(Path(__file__).resolve(), [], 2)
        return
    ranks, before = Ranks.from_environment(), machine(1)
    with ranks.process_group():
        seconds = interleaved({name: timed(call) for name, call in variants(ranks).items()}, ROUNDS)
    if ranks.is_first:
        body = report(seconds, before, len(gradients(0)[0]))
        print(body)
        write_section("Exchange between two ranks", body)


if __name__ == "__main__":
    main()
