"""Scoring a split of the export over all ranks, in the order of its files on rank 0.

Shape legend: B rows of a batch, N rows of the split, K columns of a row's result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.evaluation.cohorts import cohort_masks
from mail_core.evaluation.metrics import auc, conversion_aucs
from mail_core.loading.batches import epoch_batches
from mail_core.loading.plan import rank_plan
from mail_core.models.esmm import Esmm
from mail_core.models.inputs import TowerInputs
from mail_core.models.mail import MailModel
from mail_core.schema.definition import CONVERSION, LABEL, MASKED, UNSEEN, USER_KEY, WEIGHT
from mail_core.training.data import Export, to_tensors
from mail_core.training.exchange import gather_rows
from mail_core.training.ranks import Ranks

BATCH_ROWS = 4096
"""Rows scored at once on a rank."""
VIRTUAL_VARIANTS = ("permuted", "zeroed")
"""Virtual behaviour exchanged among a batch's new rows, or set to zero: the difference shows what it carries."""
_PLAIN = ("probability", LABEL, USER_KEY, "is_new", MASKED, UNSEEN)
_CONVERSIONS = ("cvr", CONVERSION)
"""Also a row's, of the head `esmm`."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A scored split, rows in the order of its files."""

    probabilities: np.ndarray
    """(N,) float64."""
    labels: np.ndarray
    user_keys: np.ndarray
    """(N,) int64."""
    is_new: np.ndarray
    """(N,) 1 where the row's sequence is empty (Eq. 9)."""
    masked: np.ndarray
    unseen: np.ndarray
    variants: Mapping[str, np.ndarray] = field(default_factory=dict)
    """VIRTUAL_VARIANTS -> (N,) probabilities with the new rows' virtual behaviour changed so."""
    cvr: np.ndarray | None = None
    """(N,) float64 probability of a conversion after a click; None without the head `esmm`, likewise `conversions`."""
    conversions: np.ndarray | None = None

    def cohorts(self) -> dict[str, np.ndarray]:
        """As of `cohort_masks`."""
        return cohort_masks(self.is_new, self.masked, self.unseen)


def predict(model: MailModel, export: Export, split: str, ranks: Ranks, variants: bool = False,
            batch_rows: int = BATCH_ROWS) -> Predictions | None:
    """Score `split` with the model in eval mode; every rank calls it, rank 0 gets the result, the others None.

    Args:
        variants: also with virtual behaviour permuted and zeroed; a model that makes none has none of these.
    """
    altered = VIRTUAL_VARIANTS if variants and model.makes_behavior else ()
    names = (*_PLAIN, *(_CONVERSIONS if isinstance(model.ranking, Esmm) else ()), *altered)
    rows_NK = torch.cat([torch.empty(0, len(names), dtype=torch.int64, device=ranks.device),
                         *_scored(model, export, split, ranks, names, batch_rows)])
    gathered = gather_rows(rows_NK, ranks)
    if gathered is None:
        return None
    ordered_NK = _in_file_order([part.cpu().numpy() for part in gathered], export, split, batch_rows)
    columns = dict(zip(names, ordered_NK.T))
    return Predictions(probabilities=_floats(columns["probability"]), labels=columns[LABEL],
                       user_keys=columns[USER_KEY], is_new=columns["is_new"], masked=columns[MASKED],
                       unseen=columns[UNSEEN], variants={name: _floats(columns[name]) for name in altered},
                       cvr=_floats(columns["cvr"]) if "cvr" in columns else None,
                       conversions=columns.get(CONVERSION))


def diagnostics(predictions: Predictions) -> dict[str, float | None]:
    """AUC of new rows with their virtual behaviour as it is, permuted and zeroed (notes.md, trials, point 1)."""
    new = predictions.is_new.astype(bool)
    scores = {"true": predictions.probabilities, **predictions.variants}
    return {f"new_auc_virtual_{name}": auc(predictions.labels[new], values[new]) for name, values in scores.items()}


def conversion_figures(predictions: Predictions) -> dict[str, float | None]:
    """COHORT/FIGURE -> the figures of `conversion_aucs`; nothing without the head `esmm`."""
    cvr, conversions = predictions.cvr, predictions.conversions
    if cvr is None or conversions is None:
        return {}
    labels, ctr = predictions.labels, predictions.probabilities
    return {f"{cohort}/{name}": value for cohort, rows in predictions.cohorts().items()
            for name, value in conversion_aucs(labels[rows], conversions[rows], ctr[rows], cvr[rows]).items()}


@torch.inference_mode()
def _scored(model: MailModel, export: Export, split: str, ranks: Ranks, names: tuple[str, ...],
            batch_rows: int) -> list[Tensor]:
    """This rank's real rows, int64 (B, K) a batch, the columns `names`: probabilities as the bits of their float64, so
    that one exact matrix holds them beside 64-bit user keys."""
    model.eval()
    generator = torch.Generator().manual_seed(ranks.rank)
    scored = []
    for batch in epoch_batches(export.uri, export.manifest, (split,), seed=0, epoch=0, world_size=ranks.world_size,
                               rank=ranks.rank, batch_size=batch_rows, shuffle=False):
        if not batch[WEIGHT].any():
            break  # only fillers are left, and no collective is waiting in this loop
        inputs = model.tables.gather(to_tensors(batch, ranks.device).encoded).inputs
        completed = model.complete(inputs)
        output = model.ranking(completed)
        columns = {name: torch.from_numpy(batch[name]).to(ranks.device, torch.int64)
                   for name in (LABEL, CONVERSION, USER_KEY, MASKED, UNSEEN) if name in names}
        columns |= {"probability": _bits(output.logits_B), "is_new": inputs.is_new_B.to(torch.int64)}
        if output.conversion_logits_B is not None:
            columns["cvr"] = _bits(output.conversion_logits_B)
        for name in (n for n in VIRTUAL_VARIANTS if n in names):
            columns[name] = _bits(model.ranking(changed(completed, name, generator)).logits_B)
        scored.append(torch.stack([columns[name] for name in names], dim=1))
    return scored


def changed(inputs: TowerInputs, variant: str, generator: torch.Generator) -> TowerInputs:
    """Completed `inputs` with their virtual behaviour changed as one of VIRTUAL_VARIANTS says."""
    virtual_N = inputs.is_virtual_B.nonzero().squeeze(1)
    v_NLD = inputs.v_BLD[virtual_N]
    if variant == "permuted":
        # Rows lie in hash-random order in the files, so that a permutation within a batch is one between users.
        v_NLD = v_NLD[torch.randperm(len(virtual_N), generator=generator).to(v_NLD.device)]
    else:
        v_NLD = torch.zeros_like(v_NLD)
    return replace(inputs, v_BLD=inputs.v_BLD.index_copy(0, virtual_N, v_NLD))


def _bits(logits_B: Tensor) -> Tensor:
    return torch.sigmoid(logits_B.double()).view(torch.int64)


def _floats(bits_N: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits_N).view(np.float64)


def _in_file_order(parts: list[np.ndarray], export: Export, split: str, batch_rows: int) -> np.ndarray:
    """The ranks' rows -> rows in the manifest's order of files: the plan says which files each rank has read."""
    files = export.manifest.files((split,))
    blocks: dict[str, np.ndarray] = {}
    for rank, part in enumerate(parts):
        plan = rank_plan(files, 0, 0, len(parts), rank, batch_rows, False)
        assert len(part) == plan.rows, (rank, len(part), plan.rows)
        ends = np.cumsum([entry.rows for entry in plan.files])
        blocks.update((entry.path, part[end - entry.rows:end]) for entry, end in zip(plan.files, ends))
    return np.concatenate([blocks[entry.path] for entry in files]) if files else parts[0]
