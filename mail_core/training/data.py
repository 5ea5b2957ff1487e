"""NumPy batches of the export -> tensors on a rank's device, and the dropout of IDs.

Shape legend: B rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.encoding.encoders import Encoders
from mail_core.errors import InputError
from mail_core.loading.manifest import Manifest, read_manifest
from mail_core.schema.definition import (CONVERSION, DAY, FIRST_CODE, LABEL, MASKED, UNKNOWN, UNSEEN, USER_KEY, WEIGHT,
                                         Schema)

ROW_COLUMNS = (LABEL, CONVERSION, WEIGHT, USER_KEY, MASKED, UNSEEN, DAY)
"""What a batch holds beside the encoded columns."""
HELD_OUT_OF = 10
"""A user in so many, by the hash that is the user's key, is held out."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that fits its schema and encoders."""

    uri: str
    manifest: Manifest
    schema: Schema
    encoders: Encoders
    since: date | None = None
    """Training reads the days from this one on; None: all of them."""

    def rows(self, *splits: str) -> int:
        """Rows of the named splits that training reads."""
        return self.manifest.rows(*splits, since=self.since)


def open_export(uri: str, schema: Schema, *needed: str) -> Export:
    """Read manifest and encoders. Raises InputError where they do not fit, or a split of `needed` has no row."""
    manifest = read_manifest(uri)
    encoders = Encoders.load(manifest.encoders_uri(uri), schema)
    manifest.check(schema, encoders)
    for split in needed:
        if not manifest.rows(split):
            raise InputError(f"{uri}: split {split!r} has no row")
    return Export(uri=uri, manifest=manifest, schema=schema, encoders=encoders)


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """One batch on the device."""

    encoded: dict[str, Tensor]
    labels_B: Tensor
    """float32, 0 or 1."""
    weights_B: Tensor
    """float32, 1 for a real row, 0 for a filler."""
    held_out_B: Tensor
    """bool, the rows of one user in ten: a gated zero-shot tower does not learn from them."""
    conversions_B: Tensor | None
    """float32, 0 or 1; None where the schema names no conversion."""


def to_tensors(batch: Mapping[str, np.ndarray], device: torch.device) -> TensorBatch:
    """Copy a batch of `epoch_batches` to the device; user keys and flags stay behind, no model reads them."""
    tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items() if name not in ROW_COLUMNS}

    def outcome(name: str) -> Tensor:
        return torch.from_numpy(batch[name]).to(device=device, dtype=torch.float32)

    return TensorBatch(encoded=tensors, labels_B=outcome(LABEL),
                       conversions_B=outcome(CONVERSION) if CONVERSION in batch else None,
                       weights_B=torch.from_numpy(batch[WEIGHT]).to(device),
                       held_out_B=torch.from_numpy(batch[USER_KEY] % HELD_OUT_OF == 0).to(device))


class IdDropout:
    """Replaces a share of the known values by `unknown`, so that the unknown rows are trained. Training only."""

    def __init__(self, schema: Schema, seed: int, device: torch.device):
        self.shares = {f.name: f.id_dropout for f in schema.features if f.id_dropout > 0}
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`encoded` with new tensors for the features that the schema gives an `id_dropout`."""
        dropped = dict(encoded)
        for name, share in self.shares.items():
            codes_B = encoded[name]
            draw_B = torch.rand(codes_B.shape, generator=self.generator, device=codes_B.device)
            dropped[name] = torch.where((draw_B < share) & (codes_B >= FIRST_CODE), UNKNOWN, codes_B)
        return dropped
