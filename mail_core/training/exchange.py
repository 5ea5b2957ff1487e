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
    counts, dim = _counts(rows_R, ranks), grad_RD.shape[1]
    assert grad_RD.element_size() == 4, grad_RD.dtype
    # One message a rank: the IDs as int32 (half the bytes, faster to sort), behind them the gradients' bits. Both parts
    # are whole rows of `dim` numbers, so that the gradients are summed where they arrive.
    longest = -(-max(*counts, 1) // dim) * dim
    message = torch.empty(longest * (1 + dim), dtype=torch.int32, device=rows_R.device)
    message[:len(rows_R)] = rows_R
    message[longest:].view(grad_RD.dtype)[:grad_RD.numel()] = grad_RD.reshape(-1)
    received = message.new_empty(ranks.world_size * len(message))
    dist.all_gather(list(received.split(len(message))), message)
    firsts = [rank * len(message) for rank in range(ranks.world_size)]
    ids_N = torch.cat([received[first:first + count] for first, count in zip(firsts, counts)])
    place_N = torch.cat([torch.arange(count, device=ids_N.device) + (first + longest) // dim
                         for first, count in zip(firsts, counts)])
    rows_S, grad_SD = reduce_by_row(ids_N, received.view(grad_RD.dtype).view(-1, dim), place_N)
    return rows_S.to(torch.int64), grad_SD.div_(ranks.world_size)


def reduce_by_row(ids_N: torch.Tensor, grad_MD: torch.Tensor,
                  place_N: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the gradients of equal IDs: (sorted unique IDs, sums (S, D)), added in a fixed order on every device.

    Args:
        place_N: row of `grad_MD` that belongs to each ID; None: they stand in the same order.
    """
    sorted_N, order_N = ids_N.sort(stable=True)
    rows_S, counts_S = torch.unique_consecutive(sorted_N, return_counts=True)
    # A bag is summed front to back by one thread, where index_add_ on CUDA adds in any order.
    offsets = F.pad(counts_S.cumsum(0), (1, 0))
    if rows_S.numel() == 0:
        return rows_S, grad_MD[:0]
    bags_N = order_N if place_N is None else place_N[order_N]
    return rows_S, F.embedding_bag(bags_N, grad_MD, offsets, mode="sum", include_last_offset=True)


def gather_rows(rows: torch.Tensor, ranks: Ranks) -> list[torch.Tensor] | None:
    """Every rank's (N, ...) tensor on rank 0, in the order of ranks; N may differ and may be 0. None on the others."""
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
