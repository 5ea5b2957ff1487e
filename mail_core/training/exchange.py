"""Rows of varying number between ranks by all-gather, which gloo and NCCL both have (NCCL has no sparse all-reduce).

Shape legend: R rows of the fused table touched on one rank, S those touched on any, D embedding size, N rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mail_core.training.ranks import Ranks


def exchange_row_gradients(rows_R: torch.Tensor, grad_RD: torch.Tensor,
                           ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """Row gradients averaged over the ranks as DDP averages: the sum by row, divided by the world size.

    Args:
        rows_R: unique row IDs of this rank, int64; may be empty.
        grad_RD: their gradients.

    Returns:
        (rows_S int64 sorted and unique, grad_SD), bit for bit the same on all ranks: every rank adds the same numbers
        in the same order, so that the ranks' copies of the table never drift apart.
    """
    if ranks.world_size == 1:
        return rows_R, grad_RD
    # int32 halves the bytes of the IDs and sorts faster.
    ids = torch.cat(all_gather_rows(rows_R.to(torch.int32), ranks))
    grads = torch.cat(all_gather_rows(grad_RD, ranks))
    rows_S, grad_SD = reduce_by_row(ids, grads)
    return rows_S.to(torch.int64), grad_SD / ranks.world_size


def reduce_by_row(ids_N: torch.Tensor, grad_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the gradients of equal IDs: (sorted unique IDs, sums (S, D)), added in a fixed order on every device."""
    sorted_N, order_N = ids_N.sort(stable=True)
    rows_S, counts_S = torch.unique_consecutive(sorted_N, return_counts=True)
    # A bag is summed front to back by one thread, where index_add_ on CUDA adds in any order.
    offsets = F.pad(counts_S.cumsum(0), (1, 0))
    if rows_S.numel() == 0:
        return rows_S, grad_ND
    return rows_S, F.embedding_bag(order_N, grad_ND, offsets, mode="sum", include_last_offset=True)


def all_gather_rows(rows: torch.Tensor, ranks: Ranks) -> list[torch.Tensor]:
    """Every rank's (N, ...) tensor, in the order of ranks; N may differ and may be 0."""
    if ranks.world_size == 1:
        return [rows]
    counts = _counts(rows, ranks)
    padded = _padded(rows, max(counts))
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [part[:count] for part, count in zip(gathered, counts)]


def gather_rows(rows: torch.Tensor, ranks: Ranks) -> list[torch.Tensor] | None:
    """As `all_gather_rows`, but on rank 0 only; None on the others, which need no memory for it."""
    if ranks.world_size == 1:
        return [rows]
    counts = _counts(rows, ranks)
    padded = _padded(rows, max(counts))
    gathered = [torch.empty_like(padded) for _ in counts] if ranks.is_first else None
    dist.gather(padded, gathered, dst=0)
    return None if gathered is None else [part[:count] for part, count in zip(gathered, counts)]


def _counts(rows: torch.Tensor, ranks: Ranks) -> list[int]:
    count = torch.tensor([rows.shape[0]], dtype=torch.int64, device=rows.device)
    counts = [torch.empty_like(count) for _ in range(ranks.world_size)]
    dist.all_gather(counts, count)
    return [int(c) for c in torch.cat(counts).tolist()]


def _padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    # An empty collective is an error on some backends; one padding row costs nothing.
    padded = rows.new_zeros((max(length, 1), *rows.shape[1:]))
    padded[:rows.shape[0]] = rows
    return padded
