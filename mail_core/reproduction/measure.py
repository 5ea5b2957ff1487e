"""A version on the revealed test day: its metrics as the protocol has it, and what it would say if it knew more.

Shape legend: B rows of a batch, N rows of the day, L behaviour length.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any, Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.evaluation.behavior_fit import BehaviorFit
from mail_core.evaluation.breakdowns import CalibrationBin, LengthGroup, auc_by_length, calibration_bins
from mail_core.evaluation.cohorts import cohort_masks
from mail_core.evaluation.metrics import CohortMetrics, auc, cohort_metrics
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TEST
from mail_core.models.mail import MailModel
from mail_core.package.scoring import Package
from mail_core.schema.definition import LABEL, MASKED, UNSEEN, USER_KEY, Schema
from mail_core.training.data import Export, to_tensors
from mail_core.training.predict import BATCH_ROWS, VIRTUAL_VARIANTS, changed

AS_IS, PERMUTED, ZEROED = "as_is", *VIRTUAL_VARIANTS
REVEALED = "revealed"
"""The scores: by the protocol; with virtual behaviour changed; with masked users' real behaviour given."""
CALIBRATED = ("old", "new")
FORMAT = 1
_MARKS = (LABEL, USER_KEY, MASKED, UNSEEN)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of one version."""

    cohorts: Mapping[str, list[CohortMetrics]]
    """AS_IS, and where they exist PERMUTED, ZEROED and REVEALED -> metrics by cohort."""
    fit: Mapping[str, float | None]
    """rows, r2 and cosine of pooled virtual behaviour against masked users' own; empty where the version makes none."""
    warm_up: Mapping[int, float | None]
    """Behaviours revealed, the latest first -> AUC of masked users' rows that have any to reveal."""
    gate: float | None
    """How far the gate of a virtual token is open; None without one."""
    epochs: int
    """That it was trained."""
    lengths: list[LengthGroup]
    calibration: Mapping[str, list[CalibrationBin]]
    """A cohort of CALIBRATED -> its bins."""

    def value(self, scores: str, cohort: str, metric: str) -> float | None:
        """A metric of one cohort under one kind of scores; None where undefined or not measured."""
        if scores not in self.cohorts:
            return None
        return next(getattr(each, metric) for each in self.cohorts[scores] if each.cohort == cohort)

    def to_json(self) -> str:
        """A document that `from_json` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Measured | None:
        """What `to_json` wrote; None for a document of another format."""
        document: dict[str, Any] = json.loads(text)
        if document.pop("format") != FORMAT:
            return None
        document["cohorts"] = {name: [CohortMetrics(**c) for c in each] for name, each in document["cohorts"].items()}
        document["warm_up"] = {int(shown): value for shown, value in document["warm_up"].items()}
        document["lengths"] = [LengthGroup(**group) for group in document["lengths"]]
        document["calibration"] = {cohort: [CalibrationBin(**b) for b in bins]
                                   for cohort, bins in document["calibration"].items()}
        return cls(**document)


@dataclass(kw_only=True)
class _Rows:
    """What is kept of the day's rows, batch by batch."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    fits: list[BehaviorFit] = field(default_factory=list)

    def add(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self.columns.setdefault(name, []).append(array)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(self.columns[name])


def warm_up_lengths(length: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... below L, and L."""
    powers = [1]
    while powers[-1] * 2 < length:
        powers.append(powers[-1] * 2)
    return tuple(sorted({*powers, length}))


def measure(package: Package, revealed: Export, shown: tuple[int, ...] = ()) -> Measured:
    """Score every row of the revealed test day; some tens of bytes a row are held, as in the evaluation of training.

    Args:
        revealed: as of `write_revealed`, of the export that the version was trained on.
        shown: numbers of behaviours that masked users' rows are scored with besides none; with L among them the
            result has REVEALED.
    """
    rows = _scored(package, revealed, shown)
    labels, users, lengths, known = (rows.column(name) for name in (LABEL, USER_KEY, "length", "known"))
    masks = cohort_masks(lengths == 0, rows.column(MASKED), rows.column(UNSEEN))
    probabilities = {name: rows.column(name) for name in rows.columns if name in (AS_IS, *VIRTUAL_VARIANTS)}
    as_is, after = probabilities[AS_IS], {n: rows.column(_after(n)) for n in shown}  # of the known rows alone
    if revealed.schema.sequence_length in shown:
        probabilities[REVEALED] = as_is.copy()
        probabilities[REVEALED][known] = after[revealed.schema.sequence_length]
    fit = reduce(add, rows.fits) if rows.fits else None
    gate = None if package.model.zero_shot is None else package.model.zero_shot.gate
    return Measured(
        cohorts={name: cohort_metrics(labels, values, users, masks) for name, values in probabilities.items()},
        fit={} if fit is None else {"rows": fit.rows, "r2": fit.r2, "cosine": fit.cosine},
        warm_up={n: auc(labels[known], values) for n, values in ({0: as_is[known], **after} if shown else {}).items()},
        gate=None if gate is None else float(gate.g), epochs=package.lineage["training"]["epochs"],
        lengths=auc_by_length(labels, as_is, lengths),
        calibration={name: calibration_bins(labels[masks[name]], as_is[masks[name]]) for name in CALIBRATED})


def behavior_shown(encoded: Mapping[str, Tensor], schema: Schema, rows_B: Tensor, keep: int) -> dict[str, Tensor]:
    """`encoded` with the latest `keep` behaviours of the rows of the mask (B,), and no others of theirs."""
    cut = dict(encoded)
    for name in schema.behavior_vocabularies:
        cut[name] = encoded[name].clone()
        cut[name][rows_B, keep:] = 0
    return cut


@torch.inference_mode()
def _scored(package: Package, revealed: Export, shown: tuple[int, ...]) -> _Rows:
    model, schema, rows = package.model, revealed.schema, _Rows()
    variants = VIRTUAL_VARIANTS if model.makes_behavior else ()
    device, generator = model.tables.weight.device, torch.Generator().manual_seed(0)
    for batch in epoch_batches(revealed.uri, revealed.manifest, (TEST,), seed=0, epoch=0, world_size=1, rank=0,
                               batch_size=BATCH_ROWS, shuffle=False):
        encoded, masked = to_tensors(batch, device).encoded, batch[MASKED] == 1
        real_length = (batch[schema.action_column] != 0).sum(1)
        known, masked_B = masked & (real_length > 0), torch.from_numpy(masked).to(device)
        completed = model.complete(model.tables.gather(behavior_shown(encoded, schema, masked_B, 0)).inputs)
        as_is = _probabilities(model.ranking(completed).logits_B)
        rows.add(**{name: batch[name] for name in _MARKS}, length=np.where(masked, 0, real_length), known=known,
                 **{AS_IS: as_is})
        for variant in variants:
            rows.add(**{variant: _probabilities(model.ranking(changed(completed, variant, generator)).logits_B)})
        part = {name: encoded[name][torch.from_numpy(known).to(device)] for name in encoded}
        for n in shown:
            rows.add(**{_after(n): _shown_probabilities(model, schema, part, n)})
        if model.makes_behavior and known.any():
            rows.fits.append(BehaviorFit.of(*package.pooled_behavior_of(part)))
    return rows


def _shown_probabilities(model: MailModel, schema: Schema, part: Mapping[str, Tensor], keep: int) -> np.ndarray:
    every_B = torch.ones(len(part[schema.action_column]), dtype=torch.bool, device=model.tables.weight.device)
    return _probabilities(model(behavior_shown(part, schema, every_B, keep))) if len(every_B) else np.empty(0)


def _probabilities(logits_B: Tensor) -> np.ndarray:
    return torch.sigmoid(logits_B.double()).cpu().numpy()


def _after(shown: int) -> str:
    return f"after {shown}"
