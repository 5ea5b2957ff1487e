"""One small model and its batches, as the tests of one process and of two build them alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from small_export import encoded_rows, small_encoders, small_schema
from torch import Tensor

from mail_core.loading.batches import WEIGHT
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.ranking import TOWERS
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.ranking.dmr import DmrConfig
from mail_core.models.zero_shot import ZeroShotConfig
from mail_core.training.data import to_tensors
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS as OPTIMIZERS
from mail_core.training.presets import PRESETS, TrainingConfig
from mail_core.training.ranks import Ranks
from mail_core.training.step import TrainStep

__all__ = ["BATCH", "CASES", "OPTIMIZERS", "ZERO_SHOT", "Batch", "batch_for", "batch_of", "fresh_step", "state_of",
           "take"]
BATCH = 24
"""Rows of a rank's half."""
CASES = [*((optimizer, "base_dnn") for optimizer in OPTIMIZERS),
         *(("row_sparse", tower) for tower in (*TOWERS, "esmm") if tower != "base_dnn")]
"""Embedding optimiser and ranking tower; `esmm` is two of base_dnn."""
Batch = tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]
"""Encoded columns, labels, weights, held-out rows, conversions."""
_SMALL = ZeroShotConfig(hidden=(16, 8), latent=8, attention=4, dropout=0.0)
ZERO_SHOT = {"dual": replace(_SMALL, variant="dual"), "joint": replace(_SMALL, variant="dual", joint=True),
             "none": replace(_SMALL, variant="none"), "single": replace(_SMALL, variant="single"),
             "gated": replace(_SMALL, variant="gated", alignment="mse")}


def fresh_step(optimizer: str, ranks: Ranks, zero_shot: str | None = "dual", tower: str = "base_dnn") -> TrainStep:
    """The same model each time, without all that a step of one process cannot share: dropout, MMD, batch statistics.

    `zero_shot` is a name of ZERO_SHOT, None for the ranking tower alone.
    """
    torch.manual_seed(11)
    small = BaseDnnConfig(hidden=(16, 8), dropout=0.0, pooling="mean" if zero_shot == "gated" else "sum")
    towers = {**PRESETS["tiny"].towers, "base_dnn": small,
              "dmr": DmrConfig(attention=8, hidden=(16, 8, 8), match_weight=1e-9)}  # the match loss is a rank's own
    layout = EmbeddingLayout.from_schema(small_schema(), small_encoders(small_schema()).vocabulary_sizes)
    head, tower = ("esmm", "base_dnn") if tower == "esmm" else ("ctr", tower)
    model = MailModel(MailConfig(tower=tower, head=head, dim=8, embedding_std=0.3, tower_config=towers[tower],
                                 zero_shot=None if zero_shot is None else ZERO_SHOT[zero_shot]), layout)
    model.ranking.eval()
    return TrainStep(model, TrainingConfig(model=model.config, embedding_optimizer=optimizer), ranks)


def state_of(step: TrainStep) -> dict[str, Tensor]:
    """Parameters and Adam's first moments, which show a constant factor on the gradients where the steps hide it."""
    state = {**step.model.state_dict(), "moment.table": step.g_b_table.state_dict()["m"]}
    for name, adam in (("g_a", step.g_a), ("g_b", step.g_b)):
        for group in adam.param_groups if adam is not None else ():
            state.update({f"moment.{name}.{i}": adam.state[p]["exp_avg"] for i, p in enumerate(group["params"])
                          if p in adam.state})
    return {name: tensor.clone() for name, tensor in state.items()}


def batch_of(seed: int) -> Batch:
    """Twice BATCH rows, the old ones first, so that the halves differ in their number."""
    arrays = encoded_rows(small_encoders(small_schema()), 2 * BATCH, seed)
    first_old = np.argsort(arrays["behavior_btag"][:, 0] == 0, kind="stable")
    arrays = {name: array[first_old] for name, array in arrays.items()}
    batch = to_tensors({**arrays, WEIGHT: np.ones(2 * BATCH, dtype=np.float32)}, torch.device("cpu"))
    converted_B = torch.arange(2 * BATCH) % 3 > 0
    return batch.encoded, batch.labels_B, batch.weights_B, batch.held_out_B, batch.labels_B * converted_B


def batch_for(zero_shot: str, seed: int) -> Batch:
    """`batch_of`; all rows held out for the gated tower, whose alignment loss is a mean over one rank's rows."""
    encoded, labels, weights, held_out, conversions = batch_of(seed)
    return encoded, labels, weights, torch.ones_like(held_out) if zero_shot == "gated" else held_out, conversions


def take(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some rows of a batch."""
    encoded, *others = batch
    labels, weights, held_out, conversions = (column[rows] for column in others)
    return {name: column[rows] for name, column in encoded.items()}, labels, weights, held_out, conversions
