"""A loaded model version: raw rows in, CTR out, and CVR where it has that head. Encoding and model are those of
training, in float32 and eval mode.

B rows, U users, H heads, L behaviour length, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from mail_core.encoding.encode import encode
from mail_core.encoding.encoders import Encoders
from mail_core.errors import InputError
from mail_core.models.inputs import RankingOutput
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.ranking import pooling_of
from mail_core.models.zero_shot import mean_behavior
from mail_core.package.inputs import conform, table_from_pandas
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import Schema

CHUNK_ROWS = 1024
"""Rows that the model sees at once: (1024, L, D) floats are 13 MB at the paper's sizes, which the allocator uses again;
the 52 MB of 4096 rows are mapped and faulted in anew for every chunk, a quarter of the time."""
CHUNK_USERS = 1024


@dataclass(frozen=True)
class Scores:
    """What a version says of B rows."""

    ctr: np.ndarray
    """float64 (B,)."""
    cvr: np.ndarray | None = None
    """float64 (B,): probability of a conversion after a click; None without the head `esmm`."""

    @property
    def ctcvr(self) -> np.ndarray | None:
        """float64 (B,): probability of a click and a conversion."""
        return None if self.cvr is None else self.ctr * self.cvr


@dataclass(frozen=True, kw_only=True)
class Package:
    """One model version in memory; `mail_core.package.store` reads and writes it."""

    schema: Schema
    encoders: Encoders
    config: MailConfig
    model: MailModel
    """In eval mode."""
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]
    input_example: pa.Table
    """Raw rows in `input_schema(schema)`."""

    @property
    def test_day(self) -> date:
        """The day that its training kept for measuring; of days from here on it has seen nothing."""
        return date.fromisoformat(self.lineage["export"]["end_date"])

    def predict(self, rows: pa.Table | pa.RecordBatch, chunk_rows: int = CHUNK_ROWS,
                virtual_behavior: bool = True) -> np.ndarray:
        """float64 (B,) CTR in the order of `rows`, which has every column of `input_schema(schema)`.

        The chunk size changes memory, and the CTR by rounding only (below 1e-6). With virtual behaviour switched off
        the ranking tower reads new rows as they are, empty.

        Raises:
            InputError: a column is missing, or its values do not fit without loss.
        """
        return self.score(rows, chunk_rows, virtual_behavior).ctr

    @torch.no_grad()
    def score(self, rows: pa.Table | pa.RecordBatch, chunk_rows: int = CHUNK_ROWS,
              virtual_behavior: bool = True) -> Scores:
        """`predict` with every head."""
        rows = conform(rows, input_schema(self.schema))
        logits = [_logits(self.model.outputs(self._tensors(rows.slice(first, stop - first)), virtual_behavior))
                  for first, stop in _spans(rows.num_rows, chunk_rows)]
        return _scores(np.concatenate([np.empty((self._heads, 0)), *logits], axis=1))

    def predict_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """`predict` of a pandas frame; None and NaN are NULL."""
        return self.predict(table_from_pandas(frame, input_schema(self.schema)))

    @torch.no_grad()
    def score_candidates(self, users: pa.Table, user_index: np.ndarray, candidates: pa.Table,
                         chunk_rows: int = CHUNK_ROWS) -> Scores:
        """Scores of candidates; users are encoded, embedded and completed (Eq. 8) once, not once a candidate.

        Args:
            users: U rows with the columns of `user_schema`.
            user_index: int (B,) row of `users` that candidate i is for.
            candidates: B rows with the columns of `candidate_schema`.

        Raises:
            InputError: as `predict`, or an index outside `users`.
        """
        users, candidates = conform(users, self.user_schema), conform(candidates, self.candidate_schema)
        user_index = np.asarray(user_index, dtype=np.int64)
        if len(user_index) != candidates.num_rows:
            raise InputError(f"{candidates.num_rows} candidates with {len(user_index)} user indices, expected one each")
        if len(user_index) and not 0 <= user_index.min() <= user_index.max() < users.num_rows:
            raise InputError(f"user indices from {user_index.min()} to {user_index.max()}, expected 0 to "
                             f"{users.num_rows - 1}")
        order = np.argsort(user_index, kind="stable")
        encoded = self._tensors(candidates)  # all at once: a call of `encode` costs more than 1024 rows of it
        logits_HB = np.empty((self._heads, len(user_index)), dtype=np.float64)
        for first, stop in _spans(users.num_rows, CHUNK_USERS):
            begin, end = np.searchsorted(user_index[order], [first, stop])
            if begin == end:
                continue
            part = self.model.embed_users(self._tensors(users.slice(first, stop - first)))
            for chunk, chunk_stop in _spans(end - begin, chunk_rows):
                rows = order[begin + chunk:begin + chunk_stop]
                index_B = torch.from_numpy(user_index[rows] - first).to(part.a_UAD.device)
                places_B = torch.from_numpy(rows).to(index_B.device)
                chosen = {name: values[places_B] for name, values in encoded.items()}
                logits_HB[:, rows] = _logits(self.model.rank(part, index_B, chosen))
        return _scores(logits_HB)

    @property
    def _heads(self) -> int:
        return 1 if self.config.head == "ctr" else 2

    @property
    def user_schema(self) -> pa.Schema:
        """Raw columns that belong to the user: attributes and the behaviour sequence."""
        names = [f.name for f in self.schema.group("user")] + list(self.schema.behavior_vocabularies)
        return pa.schema([input_schema(self.schema).field(name) for name in names])

    @property
    def candidate_schema(self) -> pa.Schema:
        """Raw columns of a candidate: context and target item."""
        names = [f.name for group in ("context", "item") for f in self.schema.group(group)]
        return pa.schema([input_schema(self.schema).field(name) for name in names])

    @torch.no_grad()
    def pooled_behavior(self, rows: pa.Table | pa.RecordBatch) -> tuple[np.ndarray, np.ndarray] | None:
        """Real and virtual behaviour of `rows` as new users, each (B, D), pooled alike; None where none is made.

        Virtual behaviour of L positions (Eq. 8) is fitted to the whole sequence with zeros at padding: both sides are
        the mean over all L. A token stands for the mean of real behaviour, LLAE's vector for what its tower pools.
        """
        if not self.model.makes_behavior:
            return None
        users = conform(rows, self.user_schema)
        empty = np.empty((0, self.config.dim), dtype=np.float32)
        parts = [(empty, empty), *(self.pooled_behavior_of(self._tensors(users.slice(first, stop - first)))
                                   for first, stop in _spans(users.num_rows, CHUNK_ROWS))]
        real, virtual = zip(*parts)
        return np.concatenate(real), np.concatenate(virtual)

    @torch.no_grad()
    def pooled_behavior_of(self, encoded: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """`pooled_behavior` of rows that are encoded already, on the model's device; the model makes behaviour."""
        a_BAD, v_BLD, mask_BL = self.model.tables.gather_users(encoded)
        virtual_BKD = self.model.virtual_behavior(a_BAD)
        real_BD = self._pooled(v_BLD, mask_BL, virtual_BKD.shape[1])
        return real_BD.cpu().numpy(), virtual_BKD.mean(1).cpu().numpy()

    def _pooled(self, v_BLD: Tensor, mask_BL: Tensor, positions: int) -> Tensor:
        if positions > 1:
            return v_BLD.mean(1)
        mean = self.model.completes_all or pooling_of(self.config.tower_config) == "mean"
        return mean_behavior(v_BLD, mask_BL) if mean else (v_BLD * mask_BL.unsqueeze(2)).sum(1)

    def _tensors(self, rows: pa.Table) -> dict[str, Tensor]:
        device = self.model.tables.weight.device
        return {name: torch.from_numpy(array).to(device) for name, array in encode(rows, self.encoders).items()}


def _spans(rows: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, rows)) for first in range(0, rows, size))


def _logits(output: RankingOutput) -> np.ndarray:
    """float64 (H, B), the CTR's first."""
    heads = [logits_B for logits_B in (output.logits_B, output.conversion_logits_B) if logits_B is not None]
    return torch.stack(heads).double().cpu().numpy()


def _scores(logits_HB: np.ndarray) -> Scores:
    return Scores(*torch.from_numpy(logits_HB).sigmoid().numpy())
