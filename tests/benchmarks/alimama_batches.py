"""Random encoded batches with Alimama's vocabularies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mail_core.schema.definition import FIRST_CODE
from mail_core.schema.reader import load_schema

SCHEMA = load_schema("alimama")
ROWS = 1024
_LARGE = {"userid": 1_141_729, "adgroup_id": 846_811, "campaign_id": 423_436, "customer": 255_875, "brand": 461_497,
          "cate_id": 12_968}
_SMALL, _ACTIONS = 20, 7
_SCALE = {34: 36.5, 100: None}  # of the exponential lengths, cut at 100, that have this mean; None: all of them 100


def vocabulary_sizes(share: float = 1.0) -> dict[str, int]:
    """Codes of each vocabulary, the large ones at `share` of their size."""
    sizes = {f.name: max(_SMALL, int(share * _LARGE[f.name])) if f.name in _LARGE else _SMALL
             for f in SCHEMA.features if f.kind != "dense"}
    return {**sizes, SCHEMA.action_column: _ACTIONS}


def batches(count: int, mean_length: int, ids: str = "zipf", share: float = 1.0) -> list[dict[str, Tensor]]:
    """`count` batches of 1,024 old rows. `ids`: zipf (a code's probability falls as 1 / rank) or uniform."""
    draw, sizes, length = np.random.default_rng(1), vocabulary_sizes(share), SCHEMA.sequence_length

    def codes(vocabulary: str, shape: tuple[int, ...]) -> np.ndarray:
        known = sizes[vocabulary] - FIRST_CODE
        at = draw.random(shape)
        rank = known**at - 1 if ids == "zipf" else known * at
        return (FIRST_CODE + rank).astype(np.int32)

    def batch() -> dict[str, Tensor]:
        scale = _SCALE[mean_length]
        lengths = np.full(ROWS, length) if scale is None else np.minimum(length, np.ceil(draw.exponential(scale, ROWS)))
        real = np.arange(length) < lengths[:, None]
        arrays = {f.name: draw.normal(size=ROWS).astype(np.float32) if f.kind == "dense" else codes(f.name, (ROWS,))
                  for f in SCHEMA.features}
        arrays.update({c: codes(v, (ROWS, length)) * real for c, v in SCHEMA.behavior_vocabularies.items()})
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    return [batch() for _ in range(count)]


def labels() -> Tensor:
    """One click in twenty."""
    return (torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) < 0.05).float()
