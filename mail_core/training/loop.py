"""Epochs: which number of them is best on the last training day, and the model of that many on all training days."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import Iterator, Mapping, Protocol

import numpy as np
import torch
from torch import Tensor

from mail_core.evaluation.metrics import auc
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TRAIN, VALIDATION
from mail_core.loading.plan import rank_plan
from mail_core.models.deferred import deferred
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.esmm import Esmm
from mail_core.models.mail import MailModel
from mail_core.training.checkpoints import Checkpoints, Position
from mail_core.training.cold_start import fit_cold_start
from mail_core.training.data import Export, IdDropout, to_tensors
from mail_core.training.moments import moments_of
from mail_core.training.predict import Predictions, predict
from mail_core.training.presets import TrainingConfig
from mail_core.training.progress import CURVE_STEPS, Progress
from mail_core.training.ranks import Ranks
from mail_core.training.state import TrainState
from mail_core.training.step import TrainStep
from mail_core.training.warm_start import WarmStart

CHOICE, FINAL = "choice", "final"
"""The phases of a run."""
_SEED_STRIDE = 1_000_003

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Takes figures as they come, such as an MLflow run's `metrics`."""

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training leaves."""

    model: MailModel
    """In eval mode, the same on every rank."""
    epochs: int
    moments: dict[str, Tensor]
    """As of `moments_of`, on rank 0; empty on the others."""


def fit(export: Export, config: TrainingConfig, ranks: Ranks, record: Recorder, checkpoints: Checkpoints | None = None,
        start: WarmStart | None = None) -> Fitted:
    """Train on all days but the test day, which is not read. Every rank calls it; `record` is called on rank 0 only.

    Without `config.epochs` their number is chosen first: a model trained without the last training day is measured on
    it after each epoch. The final model then starts afresh from the same seed, so that it has seen that day too. A
    peer of MAIL's is fitted to it at the end. A warm start has a number of epochs and begins with the final model.

    Args:
        checkpoints: written on the way, and gone on from; None: none. On CPU a run that goes on ends with the weights
            and figures of an undisturbed one bit for bit on up to two ranks; with more, DDP may add their gradients in
            another order in its first step.
        start: of whose weights and moments training begins; the export is its `part_of`.

    Raises:
        InputError: a file of the export, of the start or of a checkpoint that is absent or damaged.
    """
    assert start is None or config.epochs, "the days of a warm start leave none to choose epochs on"
    checkpoints = checkpoints or Checkpoints(None, "", ranks)
    notes = checkpoints.notes
    if ranks.is_first:
        for values, step in notes.curves:
            record(values, step)

    def noted(values: Mapping[str, float], step: int) -> None:
        notes.curves.append((dict(values), step))
        record(values, step)

    notes.epochs = config.epochs or notes.epochs or choose_epochs(export, config, ranks, noted, checkpoints)
    last = None
    for _, last in train(export, (TRAIN, VALIDATION), notes.epochs, config, ranks, noted, checkpoints, FINAL, start):
        pass
    assert last is not None
    fit_cold_start(last.model, export, (TRAIN, VALIDATION), config.seed, ranks)
    return Fitted(model=last.model.eval(), epochs=notes.epochs, moments=moments_of(last) if ranks.is_first else {})


def choose_epochs(export: Export, config: TrainingConfig, ranks: Ranks, record: Recorder,
                  checkpoints: Checkpoints) -> int:
    """The number of epochs with the best AUC over all rows of the last training day; the fewer at a tie."""
    notes = checkpoints.notes
    for epoch, step in train(export, (TRAIN,), config.max_epochs, config, ranks, record, checkpoints, CHOICE):
        score = torch.zeros(1, dtype=torch.float64, device=ranks.device)
        predictions = predict(step.model, export, VALIDATION, ranks)
        if predictions is not None:
            name, value = _validation_score(predictions)
            logger.info("epoch %d: validation %s %.5f", epoch, name, value)
            record({f"{CHOICE}/validation_{name}": value}, epoch)
            score.fill_(value)
        value = float(ranks.broadcast(score))
        if notes.best is None or value > notes.best:
            notes.best, notes.best_epochs = value, epoch
        elif epoch - notes.best_epochs >= config.patience:
            break
    if ranks.is_first:
        logger.info("%d of at most %d epochs chosen on the last training day (best %.5f)", notes.best_epochs,
                    config.max_epochs, notes.best)
    return notes.best_epochs


def train(export: Export, splits: tuple[str, ...], epochs: int, config: TrainingConfig, ranks: Ranks, record: Recorder,
          checkpoints: Checkpoints, phase: str, start: WarmStart | None = None) -> Iterator[tuple[int, TrainStep]]:
    """A model trained by `epochs` passes over `splits`: yields (epochs done, its step) after each, the same model
    stepped further. It starts afresh, or from `start`, or goes on from the checkpoint of this phase."""
    step = _first_step(export, splits, config, ranks, start)
    # From here on every rank draws its own dropout, and its own unknown IDs.
    rank_seed = config.seed + _SEED_STRIDE * (ranks.rank + 1)
    torch.manual_seed(rank_seed)
    drop_ids = IdDropout(export.schema, rank_seed, ranks.device)
    state = TrainState(step, drop_ids, ranks)
    batch_size, files = config.batch_of(ranks.world_size), export.manifest.files(splits, export.since)
    steps = [rank_plan(files, config.seed, epoch, ranks.world_size, ranks.rank, batch_size, True).steps
             for epoch in range(epochs)]
    first, done = checkpoints.restore(phase, state)
    prefix = f"{CHOICE}/" if phase == CHOICE else ""
    progress = Progress(f"train on {' and '.join(splits)}", sum(steps), ranks,
                        lambda at, losses: record({f"{prefix}{name}": value for name, value in losses.items()}, at))
    progress.steps = sum(steps[:first]) + done
    try:
        for epoch in range(first, epochs):
            step.model.train()
            # Reading repeats itself, so that the batches before the checkpoint are passed over.
            batches = epoch_batches(export.uri, export.manifest, splits, seed=config.seed, epoch=epoch,
                                    world_size=ranks.world_size, rank=ranks.rank, batch_size=batch_size, shuffle=True,
                                    since=export.since)
            for at, arrays in enumerate(islice(batches, done, None) if done < steps[epoch] else (), done + 1):
                batch = to_tensors(arrays, ranks.device)
                progress.advance(step(drop_ids(batch.encoded), batch.labels_B, batch.weights_B,
                                      batch.held_out_B, batch.conversions_B))
                # Right after a point of the curves, which then go on as they would have done.
                if progress.steps % CURVE_STEPS == 0 and at < steps[epoch] and checkpoints.due():
                    checkpoints.save(Position(phase=phase, epoch=epoch, steps=at), state)
            if done < steps[epoch]:
                progress.flush()
                step.average_buffers()
                checkpoints.save(Position(phase=phase, epoch=epoch, steps=steps[epoch]), state)
            done = 0
            yield epoch + 1, step
    finally:
        progress.close()


def _first_step(export: Export, splits: tuple[str, ...], config: TrainingConfig, ranks: Ranks,
                start: WarmStart | None) -> TrainStep:
    """Of a fresh model that knows the click rate, or of one that has what `start` had."""
    model = build_model(export, config, ranks)
    if start is None:
        model.ranking.set_prior(export.manifest.click_rate(*splits))
        if isinstance(model.ranking, Esmm):
            model.ranking.set_conversion_prior(export.manifest.conversion_rate(*splits))
        return TrainStep(model, config, ranks)
    carried = start.carried(model.layout, export.encoders)
    carried.give_weights(model)
    step = TrainStep(model, config, ranks)
    carried.give_moments(step)
    if ranks.is_first:
        logger.info("training starts from %s", carried.describe())
    return step


def build_model(export: Export, config: TrainingConfig, ranks: Ranks) -> MailModel:
    """The initial model of `config.seed`, filled once, on this rank's device."""
    layout = EmbeddingLayout.from_schema(export.schema, export.encoders.vocabulary_sizes)
    torch.manual_seed(config.seed)
    return deferred(lambda: MailModel(config.model, layout), ranks.device)


def _validation_score(predictions: Predictions) -> tuple[str, float]:
    """AUC over all rows, or, where the day has one class only, the negative log loss."""
    from sklearn.metrics import log_loss  # as in mail_core.evaluation.metrics

    labels = predictions.labels.astype(np.int64)
    value = auc(labels, predictions.probabilities)
    if value is not None:
        return "auc", value
    return "negative_logloss", -float(log_loss(labels, predictions.probabilities, labels=[0, 1]))
