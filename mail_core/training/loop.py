"""Epochs: which number of them is best on the last training day, and the model of that many on all training days."""

from __future__ import annotations

import logging
import math
from typing import Iterator, Mapping, Protocol

import numpy as np
import torch
from sklearn.metrics import log_loss

from mail_core.evaluation.metrics import auc
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TRAIN, VALIDATION
from mail_core.loading.plan import rank_plan
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailModel
from mail_core.training.data import Export, IdDropout, to_tensors
from mail_core.training.predict import Predictions, predict
from mail_core.training.presets import TrainingConfig
from mail_core.training.progress import Progress
from mail_core.training.ranks import Ranks
from mail_core.training.step import TrainStep

_SEED_STRIDE = 1_000_003

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Takes figures as they come, such as an MLflow run's `metrics`."""

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""


def fit(export: Export, config: TrainingConfig, ranks: Ranks, record: Recorder) -> tuple[MailModel, int]:
    """Train on all days but the test day, which is not read. Every rank calls it; `record` is called on rank 0 only.

    Without `config.epochs` their number is chosen first: a model trained without the last training day is measured on
    it after each epoch. The final model then starts afresh from the same seed, so that it has seen that day too.

    Returns:
        (model in eval mode, the same on every rank; its epochs).
    """
    epochs = config.epochs or choose_epochs(export, config, ranks, record)
    model = None
    for model in train(export, (TRAIN, VALIDATION), epochs, config, ranks, record, ""):
        pass
    assert model is not None
    return model.eval(), epochs


def choose_epochs(export: Export, config: TrainingConfig, ranks: Ranks, record: Recorder) -> int:
    """The number of epochs with the best AUC over all rows of the last training day; the fewer at a tie."""
    best, chosen = -math.inf, 0
    for epoch, model in enumerate(train(export, (TRAIN,), config.max_epochs, config, ranks, record, "choice/"), 1):
        score = torch.zeros(1, dtype=torch.float64, device=ranks.device)
        predictions = predict(model, export, VALIDATION, ranks)
        if predictions is not None:
            name, value = _validation_score(predictions)
            logger.info("epoch %d: validation %s %.5f", epoch, name, value)
            record({f"choice/validation_{name}": value}, epoch)
            score.fill_(value)
        value = float(ranks.broadcast(score))
        if value > best:
            best, chosen = value, epoch
        elif epoch - chosen >= config.patience:
            break
    if ranks.is_first:
        logger.info("%d of at most %d epochs chosen on the last training day (best %.5f)", chosen, config.max_epochs,
                    best)
    return chosen


def train(export: Export, splits: tuple[str, ...], epochs: int, config: TrainingConfig, ranks: Ranks, record: Recorder,
          prefix: str) -> Iterator[MailModel]:
    """A fresh model, yielded after each of `epochs` passes over `splits`; the same one each time, stepped further."""
    model = build_model(export, config, ranks)
    model.ranking.set_prior(export.manifest.click_rate(*splits))
    step = TrainStep(model, config, ranks)
    batch_size = config.batch_of(ranks.world_size)
    # From here on every rank draws its own dropout, and its own unknown IDs.
    rank_seed = config.seed + _SEED_STRIDE * (ranks.rank + 1)
    torch.manual_seed(rank_seed)
    drop_ids = IdDropout(export.schema, rank_seed, ranks.device)
    files = export.manifest.files(splits)
    steps = sum(rank_plan(files, config.seed, epoch, ranks.world_size, ranks.rank, batch_size, True).steps
                for epoch in range(epochs))
    progress = Progress(f"train on {' and '.join(splits)}", steps, ranks,
                        lambda at, losses: record({f"{prefix}{name}": value for name, value in losses.items()}, at))
    try:
        for epoch in range(epochs):
            model.train()
            for arrays in epoch_batches(export.uri, export.manifest, splits, seed=config.seed, epoch=epoch,
                                        world_size=ranks.world_size, rank=ranks.rank, batch_size=batch_size,
                                        shuffle=True):
                batch = to_tensors(arrays, ranks.device)
                progress.advance(step(drop_ids(batch.encoded), batch.labels_B, batch.weights_B))
            progress.flush()
            step.average_buffers()
            yield model
    finally:
        progress.close()


def build_model(export: Export, config: TrainingConfig, ranks: Ranks) -> MailModel:
    """The initial model of `config.seed`, laid out on the meta device so that it is filled once, where it stays."""
    layout = EmbeddingLayout.from_schema(export.schema, export.encoders.vocabulary_sizes)
    torch.manual_seed(config.seed)
    with torch.device("meta"):
        model = MailModel(config.model, layout)
    model.to_empty(device=ranks.device)
    model.reset_parameters()
    return model


def _validation_score(predictions: Predictions) -> tuple[str, float]:
    """AUC over all rows, or, where the day has one class only, the negative log loss."""
    labels = predictions.labels.astype(np.int64)
    value = auc(labels, predictions.probabilities)
    if value is not None:
        return "auc", value
    return "negative_logloss", -float(log_loss(labels, predictions.probabilities, labels=[0, 1]))
