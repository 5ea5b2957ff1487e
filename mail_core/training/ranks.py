"""Which process this is of how many, and the few collectives that training needs. One rank needs no process group."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Iterator

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others in one collective before it gives up. A step takes a fraction of a second; the
longest wait is that for the slowest rank to open its first file of an epoch, or for rank 0 to reach MLflow or to write
a checkpoint. A rank that dies is noticed at once (its connections close, and the launcher watches it); one that hangs
ends the others after this time."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `world_size`. Tests build it by hand, jobs by `from_environment`."""

    rank: int
    world_size: int
    device: torch.device

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size, (self.rank, self.world_size)

    @classmethod
    def alone(cls, device: str = "cpu") -> Ranks:
        """One process, no launcher."""
        return cls(rank=0, world_size=1, device=torch.device(device))

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun put into the environment; alone where it did not. A GPU a rank where they suffice."""
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        return cls(rank=rank, world_size=world_size, device=_device(local_rank, local_world_size))

    @classmethod
    def first_of(cls, world_size: int) -> Ranks:
        """The first of so many ranks, as a launcher would start them on this machine."""
        return cls(rank=0, world_size=world_size, device=_device(0, world_size))

    @property
    def is_first(self) -> bool:
        """Rank 0 logs, writes and registers."""
        return self.rank == 0

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Join the others (gloo on CPU, NCCL on CUDA; `env://`), and leave at the end, also after an error."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size == 1:
            yield
            return
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", rank=self.rank,
                                world_size=self.world_size, timeout=TIMEOUT)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor` on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor


def _device(local_rank: int, local_world_size: int) -> torch.device:
    # NCCL refuses two ranks on one GPU, so that all ranks of a machine go to the CPU where the GPUs do not suffice.
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_world_size:
        return torch.device("cuda", local_rank)
    return torch.device("cpu")
