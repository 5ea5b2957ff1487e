"""All tensors that the next step depends on, so that a run can go on from them as if it had never stopped."""

from __future__ import annotations

from typing import Iterator, Mapping

import torch
from torch import Tensor, nn

from mail_core.training.data import IdDropout
from mail_core.training.exchange import gather_rows
from mail_core.training.ranks import Ranks
from mail_core.training.step import TrainStep

_CPU, _CUDA, _ID_DROPOUT = "random.cpu", "random.cuda", "random.id_dropout"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainState:
    """The state of one rank's step: a shared part, equal on all ranks, and the rank's own part.

    Shared are parameters and the optimisers' moments. A rank's own are batch norm's running statistics, which differ
    until they are averaged, and its random number generators: torch's (dropout) and that of the dropped IDs.
    """

    def __init__(self, step: TrainStep, drop_ids: IdDropout, ranks: Ranks):
        self.step, self.drop_ids, self.ranks = step, drop_ids, ranks

    def gather(self) -> dict[str, Tensor] | None:
        """Name -> tensor on the CPU of the shared part and of every rank's own; rank 0 gets it, the others None.

        Every rank calls it. It changes no state.
        """
        own = self._own()
        parts = gather_rows(torch.cat([_bytes(tensor).to(self.ranks.device) for tensor in own.values()]), self.ranks)
        if parts is None:
            return None
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._shared().items()}
        for rank, part in enumerate(parts):
            pieces = part.cpu().split([_bytes(tensor).numel() for tensor in own.values()])
            for (name, like), piece in zip(own.items(), pieces):
                # A copy is aligned, as a view of another type needs it.
                tensors[_of_rank(rank, name)] = piece.clone().view(like.dtype).view(like.shape)
        return tensors

    def mismatch(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What keeps `tensors` from being a `gather` of this run, in words; None where nothing does."""
        own = {_of_rank(rank, n): t for rank in range(self.ranks.world_size) for n, t in self._own().items()}
        expected = {name: _kind(tensor) for name, tensor in {**self._shared(), **own}.items()}
        for name in sorted(set(expected) | set(tensors)):
            found = _kind(tensors[name]) if name in tensors else None
            if found != expected.get(name):
                return f"tensor {name} is {found or 'absent'}, this run has {expected.get(name) or 'none of that name'}"
        return None

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `gather` gave; every rank calls it with all tensors and takes the shared ones and its own."""
        assert self.mismatch(tensors) is None, self.mismatch(tensors)
        for name, parameter in self.step.model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
        for name, adam, parameter in self._adams():
            adam.state[parameter] = {key: tensors[f"{name}.{key}"].to(parameter.device, copy=True) for key in _MOMENTS}
        table = self.step.g_b_table
        table.load_state_dict({key: tensors[f"g_b_table.{key}"] for key in table.state_dict()})
        own = {name: tensors[_of_rank(self.ranks.rank, name)] for name in self._own()}
        for name, buffer in self.step.model.named_buffers():
            buffer.copy_(own[f"buffer.{name}"])
        torch.set_rng_state(own[_CPU])
        self.drop_ids.generator.set_state(own[_ID_DROPOUT])
        if self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(own[_CUDA], self.ranks.device)

    def _shared(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in self.step.model.named_parameters()}
        for name, adam, parameter in self._adams():
            # Before its first step Adam has no moment, as with zeros.
            empty = {"step": torch.zeros(()), **{key: torch.zeros_like(parameter) for key in _MOMENTS[1:]}}
            tensors.update({f"{name}.{key}": tensor for key, tensor in (adam.state.get(parameter) or empty).items()})
        return {**tensors, **{f"g_b_table.{key}": t for key, t in self.step.g_b_table.state_dict().items()}}

    def _own(self) -> dict[str, Tensor]:
        tensors = {f"buffer.{name}": buffer for name, buffer in self.step.model.named_buffers()}
        tensors |= {_CPU: torch.get_rng_state(), _ID_DROPOUT: self.drop_ids.generator.get_state()}
        if self.ranks.device.type == "cuda":
            tensors[_CUDA] = torch.cuda.get_rng_state(self.ranks.device)
        return tensors

    def _adams(self) -> Iterator[tuple[str, torch.optim.Adam, nn.Parameter]]:
        """Each dense parameter with its optimiser and a name of its own."""
        for name, adam in (("g_a", self.step.g_a), ("g_b", self.step.g_b)):
            for number, parameter in enumerate(adam.param_groups[0]["params"] if adam is not None else ()):
                assert adam is not None
                yield f"{name}.{number}", adam, parameter


def _of_rank(rank: int, name: str) -> str:
    return f"rank{rank}.{name}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
