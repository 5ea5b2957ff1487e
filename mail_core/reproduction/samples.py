"""Vectors of some users for Figures 5 and 6: real and virtual behaviour, and hidden attribute features.

B rows, A user attributes, L behaviour length, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.encoding.masking import NewUserMode
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TEST
from mail_core.models.zero_shot import ZeroShotTower
from mail_core.package.scoring import Package
from mail_core.schema.definition import MASKED, USER_KEY
from mail_core.training.data import Export, to_tensors
from mail_core.training.predict import BATCH_ROWS

USERS = 500
"""Of each kind, at most."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Users of one kind, a row each."""

    real_BD: np.ndarray
    """Real behaviour, pooled as the ranking tower and the R² diagnostic see it."""
    virtual_BD: np.ndarray
    """Virtual behaviour, pooled alike."""
    hidden_BD: np.ndarray
    """h_a: attributes after the zero-shot tower's attention (Eqs. 1-2)."""


@torch.no_grad()
def samples(package: Package, revealed: Export, users: int = USERS) -> dict[str, Sample]:
    """`old` and `new`, where there are any: users with behaviour that the protocol leaves, and that it hides (whose
    real one is here, too); where it hides none, new users are those without behaviour.

    The rows lie in hash-random order, so that the first ones are a sample. A version with a zero-shot tower only.
    """
    tower = package.model.zero_shot
    assert isinstance(tower, ZeroShotTower)
    found = _first_rows(revealed, users, package.model.tables.weight.device)
    return {kind: _sample(package, tower, encoded) for kind, encoded in found.items()
            if len(encoded[revealed.schema.action_column])}


def hidden_behavior(revealed: Export) -> bool:
    """Whether the protocol hides any."""
    return NewUserMode.parse(revealed.manifest.new_users).fraction > 0


def _sample(package: Package, tower: ZeroShotTower, encoded: Mapping[str, Tensor]) -> Sample:
    real_BD, virtual_BD = package.pooled_behavior_of(encoded)
    a_BAD = package.model.tables.gather_users(encoded)[0]
    return Sample(real_BD=real_BD, virtual_BD=virtual_BD, hidden_BD=tower.hidden_attributes(a_BAD).cpu().numpy())


def _first_rows(revealed: Export, users: int, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """The first row of each of `users` old and as many new users, encoded."""
    hides = hidden_behavior(revealed)
    parts: dict[str, list[dict[str, Tensor]]] = {"old": [], "new": []}
    seen: dict[str, set[int]] = {"old": set(), "new": set()}
    for batch in epoch_batches(revealed.uri, revealed.manifest, (TEST,), seed=0, epoch=0, world_size=1, rank=0,
                               batch_size=BATCH_ROWS, shuffle=False):
        encoded = to_tensors(batch, device).encoded
        has_behavior = (batch[revealed.schema.action_column] != 0).any(1)
        masked = batch[MASKED] == 1
        new = has_behavior & masked if hides else ~has_behavior
        for kind, chosen in (("old", has_behavior & ~masked), ("new", new)):
            rows = np.flatnonzero(chosen)
            _, first = np.unique(batch[USER_KEY][rows], return_index=True)
            fresh = [row for row in rows[np.sort(first)] if batch[USER_KEY][row] not in seen[kind]]
            fresh = fresh[:users - len(seen[kind])]
            seen[kind].update(batch[USER_KEY][fresh].tolist())
            parts[kind].append({name: column[torch.tensor(fresh, dtype=torch.int64, device=device)]
                                for name, column in encoded.items()})
        if all(len(keys) == users for keys in seen.values()):
            break
    return {kind: {name: torch.cat([part[name] for part in found]) for name in found[0]}
            for kind, found in parts.items()}
