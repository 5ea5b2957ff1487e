"""A model version with Alimama's vocabularies, and what it scores: raw tables for Spark, whole rows for the others.

U users, K candidates each, B = U * K candidates.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from alimama_batches import SCHEMA, vocabulary_sizes

from mail_core.encoding.encoders import DenseStatistics, Encoders, vocabulary_names
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailModel
from mail_core.package.store import save_package
from mail_core.schema.arrow import input_schema, raw_fields, vocabulary_type
from mail_core.schema.definition import DAY, FIRST_CODE, ITEM, USER, RawFile
from mail_core.spark.context_features import local_moment
from mail_core.spark.features import derived_context
from mail_core.training.presets import model_config

SCORED = date(2017, 5, 12)
NEW, MEAN = 0.3, 34
"""Share of users without a behaviour; scale of the exponential lengths of the others, cut at L."""


class ScoringWorld:
    """Values of every vocabulary, and a row of attributes for each user and each item."""

    def __init__(self, seed: int = 1):
        self.draw = np.random.default_rng(seed)
        self.encoders = Encoders(schema=SCHEMA, vocabularies={n: self._values(n) for n in vocabulary_names(SCHEMA)},
                                 dense={"price": DenseStatistics(mean=4.0, std=1.5)})
        self.users, self.items = self._snapshot(SCHEMA.users), self._snapshot(SCHEMA.items)

    def _values(self, vocabulary: str) -> pa.Array:
        """Distinct values in the order of their frequency, which is not the values' own."""
        kind, count = vocabulary_type(SCHEMA, vocabulary), vocabulary_sizes()[vocabulary] - FIRST_CODE
        if pa.types.is_string(kind):
            known = ["pv", "cart", "fav", "buy"] if vocabulary == SCHEMA.action_column else ["430548_1007"]
            return pa.array((known + [f"value {i}" for i in range(count)])[:count])
        return pa.array(self.draw.permutation(count) + 1).cast(kind)

    def zipf(self, vocabulary: str, count: int) -> pa.Array:
        """`count` values, the probability of the r-th falling as 1 / r."""
        values = self.encoders.vocabularies[vocabulary]
        return values.take(pa.array((len(values) ** self.draw.random(count) - 1).astype(np.int64)))

    def _snapshot(self, raw: RawFile) -> pa.Table:
        """One row a known key, as the lake holds it on the day before."""
        key = raw.columns[0].name
        keys = self.encoders.vocabularies[key]
        columns: dict[str, pa.Array] = {DAY: pa.array([SCORED - timedelta(days=1)] * len(keys)), key: keys}
        for column in raw.columns[1:]:
            columns[column.name] = (pa.array(self.draw.exponential(100, len(keys))) if column.name == "price"
                                    else self.zipf(column.name, len(keys)))
        return pa.table({name: columns[name] for name in [DAY, *(f.name for f in raw_fields(raw))]})

    def package(self, folder: Path, preset: str) -> Path:
        """A version with random weights."""
        torch.manual_seed(1)
        layout = EmbeddingLayout.from_schema(SCHEMA, self.encoders.vocabulary_sizes)
        model = MailModel(model_config(preset, "base_dnn", "base"), layout).eval()
        return save_package(folder, model=model, encoders=self.encoders, lineage={"new_users": "natural"}, metrics={})

    def write(self, folder: Path, users: int, each: int) -> None:
        """Parquet files: behaviors, candidates (for Spark), and the same as `parts` (below) and as whole `rows`."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = self.encoders.vocabularies["userid"]
        user_U = keys.take(pa.array(self.draw.choice(len(keys), users, replace=False)))
        length = SCHEMA.sequence_length
        lengths_U = np.minimum(length, np.ceil(self.draw.exponential(MEAN, users))).astype(np.int64)
        lengths_U[self.draw.random(users) < NEW] = 0
        total, offsets = int(lengths_U.sum()), np.concatenate([[0], np.cumsum(lengths_U)])
        lists = {column: self.zipf(vocabulary, total) for column, vocabulary in SCHEMA.behavior_vocabularies.items()}
        position_N = np.arange(total) - np.repeat(offsets[:-1], lengths_U)
        midnight = datetime.combine(SCORED, time(), tzinfo=ZoneInfo(SCHEMA.timezone))
        newest = int(midnight.timestamp()) - 60
        action, *others = SCHEMA.behavior_vocabularies
        behaviors = {DAY: pa.array([SCORED - timedelta(days=1)] * total),
                     "user": user_U.take(pa.array(np.repeat(np.arange(users), lengths_U))),
                     "time_stamp": pa.array((newest - 60 * position_N) * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
                     "btag": lists[action], "cate": lists[others[0]], "brand": lists[others[1]]}
        pq.write_table(pa.table(behaviors), folder / "behaviors.parquet")

        # Distinct items of a user: an even step through the items from a place of its own.
        items = self.items.num_rows
        item_B = ((self.draw.integers(0, items, users)[:, None] + np.arange(each) * 7919) % items).reshape(-1)
        index_B = np.repeat(np.arange(users), each)
        pq.write_table(pa.table({USER: user_U.take(pa.array(index_B)),
                                 ITEM: self.items.column("adgroup_id").take(pa.array(item_B))}),
                       folder / "candidates.parquet")
        self._write_rows(folder, user_U, index_B, item_B, offsets, lists)

    def _write_rows(self, folder: Path, user_U: pa.Array, index_B: np.ndarray, item_B: np.ndarray, offsets: np.ndarray,
                    lists: dict[str, pa.Array]) -> None:
        """users.parquet (U), pairs.parquet (B, with `index` into the users)."""
        profiles = self.users.take(pc.index_in(user_U, value_set=self.users.column("userid")))
        sequences = {name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
                     for name, values in lists.items()}
        wanted = input_schema(SCHEMA)
        parts = pa.table({f.name: profiles.column(f.column) for f in SCHEMA.group("user")} | sequences)
        pq.write_table(parts.select([n for n in wanted.names if n in parts.column_names]), folder / "users.parquet")
        moment = local_moment(SCORED, SCHEMA.serving.time, SCHEMA.timezone)
        times = pa.array([moment] * len(index_B), pa.timestamp("us", tz="UTC"))
        ads = self.items.take(pa.array(item_B))
        pairs = {"pid": pa.array([SCHEMA.serving.context["pid"]] * len(index_B)), **derived_context(SCHEMA, times),
                 **{f.name: ads.column(f.column) for f in SCHEMA.group("item")}, "index": pa.array(index_B)}
        pq.write_table(pa.table(pairs), folder / "pairs.parquet")


def whole_rows(folder: Path, rows: int) -> pa.Table:
    """The first `rows` candidates as rows of `input_schema`."""
    users, pairs = pq.read_table(folder / "users.parquet"), pq.read_table(folder / "pairs.parquet").slice(0, rows)
    columns = users.take(pairs.column("index"))
    table = {name: columns.column(name) for name in columns.column_names}
    table |= {name: pairs.column(name) for name in pairs.column_names if name != "index"}
    return pa.table({name: table[name] for name in input_schema(SCHEMA).names})
