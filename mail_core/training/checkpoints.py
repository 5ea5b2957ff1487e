"""Checkpoints of a training run: folders that appear whole or not at all, holding JSON and safetensors, no pickle.

Layout: `<lake's parent>/checkpoints/<model name>/<run key>/<number>/` with checkpoint.json and state.safetensors, and
beside the numbers `mlflow_run`, the ID of the MLflow run. The run key is a hash of all that decides the run's result,
so that no other run goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mail_core.errors import InputError
from mail_core.models.config import read_config
from mail_core.training.presets import TrainingConfig
from mail_core.training.ranks import Ranks
from mail_core.training.state import TrainState

CHECKPOINTS = "checkpoints"
DOCUMENT, STATE, TRACKED = "checkpoint.json", "state.safetensors", "mlflow_run"
FORMAT = 1
"""Of the folder; a reader refuses any other."""
SECONDS = 300.0
"""Between two checkpoints within an epoch, where nothing else is asked for."""
KEPT = 2
_UNFINISHED = ".unfinished"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is."""

    phase: str
    """The choice of epochs, or the final training."""
    epoch: int
    """Of the phase, from 0."""
    steps: int
    """Steps of that epoch that are done; at all of them the buffers are averaged already."""


@dataclass(kw_only=True)
class Notes:
    """What a run knows beside its tensors."""

    epochs: int | None = None
    """Of the final training; None until they are chosen."""
    best: float | None = None
    """The best validation score so far, and after how many epochs it came."""
    best_epochs: int = 0
    curves: list[tuple[dict[str, float], int]] = field(default_factory=list)
    """(figures, step) in the order of recording, on rank 0; a run that goes on offers them again."""


def run_key(config: TrainingConfig, manifest_text: str, ranks: Ranks) -> str:
    """Hash of configuration (seed and sizes included), export, number of ranks and device."""
    settings = {**asdict(config), "model": config.model.to_dict()}
    parts = [FORMAT, settings, hashlib.sha256(manifest_text.encode()).hexdigest(), ranks.world_size, ranks.device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run; without a folder nothing is written.

    A checkpoint that cannot be written (a full disk) is a warning: the training itself goes on.
    """

    def __init__(self, folder: Path | None, key: str, ranks: Ranks, seconds: float = SECONDS, resume: bool = False):
        """Every rank builds it before it joins the others: nobody writes before all have read.

        Args:
            folder: of this run, in a file system that all ranks share; None: keep no checkpoints.
            key: as of `run_key`; a checkpoint with another one is refused.
            seconds: between checkpoints within an epoch; each epoch ends with one, too.
            resume: go on from the last checkpoint; otherwise rank 0 removes what an earlier run has left.

        Raises:
            InputError: the last checkpoint is damaged, or belongs to another run.
        """
        self.folder, self.key, self.ranks, self.seconds, self.resume = folder, key, ranks, seconds, resume
        self.notes = Notes()
        self.earlier_run: str | None = None if folder is None else _tracked(folder / TRACKED)
        """The MLflow run that an attempt before this one has left, whether it is gone on from or not."""
        self._position: Position | None = None
        self._tensors: dict[str, Tensor] = {}
        self._source: Path | None = None
        self._last = time.monotonic()
        if folder is None:
            return
        if resume:
            self._read(folder)
        elif ranks.is_first:
            self.clear()

    def due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch: rank 0's clock says it for all. Every rank asks."""
        if self.folder is None:
            return False
        late = float(time.monotonic() - self._last >= self.seconds)
        return bool(self.ranks.broadcast(torch.tensor([late], device=self.ranks.device)))

    def save(self, position: Position, state: TrainState) -> None:
        """Write a checkpoint and remove all but the last KEPT. Every rank calls it; rank 0 writes."""
        if self.folder is None:
            return
        tensors = state.gather()
        if tensors is not None:
            try:
                self._write(self.folder, position, tensors)
            except (OSError, SafetensorError) as error:
                logger.warning("%s: no checkpoint written, training goes on: %s", self.folder, error)
        self._last = time.monotonic()

    def restore(self, phase: str, state: TrainState) -> tuple[int, int]:
        """Put the checkpoint that was found into `state`, if it is of this phase; (epoch, its steps done), else (0, 0).

        Raises:
            InputError: its tensors are not those of this run.
        """
        if self._position is None or self._position.phase != phase:
            return 0, 0
        mismatch = state.mismatch(self._tensors)
        if mismatch is not None:
            raise InputError(f"{self._source}: {mismatch}")
        state.load(self._tensors)
        self._tensors = {}
        return self._position.epoch, self._position.steps

    def keep_run(self, run_id: str) -> None:
        """Remember the MLflow run for a later attempt; without a folder, or with a full disk, it is not."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f"{_UNFINISHED}.{TRACKED}"
            unfinished.write_text(run_id, encoding="utf-8")
            unfinished.rename(self.folder / TRACKED)
        except OSError as error:
            logger.warning("%s: the MLflow run is not kept, training goes on: %s", self.folder, error)

    def clear(self) -> None:
        """Remove this run's checkpoints, and the folders above them where nothing else is in them."""
        if self.folder is None or not self.folder.exists():
            return
        shutil.rmtree(self.folder)
        for parent in list(self.folder.parents)[:2]:
            try:
                parent.rmdir()
            except OSError:
                return  # other runs' checkpoints are in it

    def _read(self, folder: Path) -> None:
        numbers = _numbers(folder)
        if not numbers:
            if self.ranks.is_first:
                logger.info("no checkpoint in %s: training starts afresh", folder)
            return
        last = folder / _name(numbers[-1])
        document = _document(last, self.key)
        try:
            self._position = read_config(Position, document["position"], f"{last / DOCUMENT}: position")
            self.notes = read_config(Notes, document["notes"], f"{last / DOCUMENT}: notes")
            self.notes.curves = [(dict(values), int(step)) for values, step in self.notes.curves]
        except (TypeError, ValueError) as error:
            raise InputError(f"{last / DOCUMENT}: not the description of a checkpoint: {error}") from error
        self._source = last / STATE
        self._tensors = _tensors(self._source, document["sha256"])
        if self.ranks.is_first:
            logger.info("training goes on from %s: %s, %d epochs and %d steps", last, self._position.phase,
                        self._position.epoch, self._position.steps)

    def _write(self, folder: Path, position: Position, tensors: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            save_file(dict(tensors), unfinished / STATE)
            document = {"format": FORMAT, "key": self.key, "sha256": _digest(unfinished / STATE),
                        "position": asdict(position), "notes": asdict(self.notes)}
            (unfinished / DOCUMENT).write_text(json.dumps(document) + "\n", encoding="utf-8")
            for path in (unfinished / STATE, unfinished / DOCUMENT):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            numbers = _numbers(folder)
            unfinished.rename(folder / _name(numbers[-1] + 1 if numbers else 1))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for number in _numbers(folder)[:-KEPT]:
            shutil.rmtree(folder / _name(number))


def _tracked(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:  # also where an attempt of before has ended before it had a run
        return None


def _name(number: int) -> str:
    return f"{number:08}"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def _document(folder: Path, key: str) -> dict[str, Any]:
    """checkpoint.json, checked but for its `position` and `notes`."""
    path, expected = folder / DOCUMENT, {DOCUMENT, STATE}
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise InputError(f"{folder / odd}: {'missing from' if odd in expected else 'not a file of'} a checkpoint, "
                         f"which holds {DOCUMENT} and {STATE}")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:  # also bytes that are no UTF-8
        raise InputError(f"{path}: not JSON: {error}; remove {folder} to go on from the one before it") from error
    if not isinstance(document, dict) or set(document) != {"format", "key", "sha256", "position", "notes"}:
        raise InputError(f"{path}: not the description of a checkpoint")
    if document["format"] != FORMAT:
        raise InputError(f"{path}: format {document['format']!r}, this code reads {FORMAT}")
    if document["key"] != key:
        raise InputError(f"{path}: a checkpoint of another run ({document['key']!r}, expected {key!r}): its export, "
                         f"configuration or number of ranks differs")
    return document


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}; remove {path.parent} to go on from the checkpoint "
                         f"before it") from error
    if _digest(path) != sha256:
        raise InputError(f"{path}: damaged, its hash is not that of {DOCUMENT}; remove {path.parent} to go on from "
                         f"the checkpoint before it")
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
