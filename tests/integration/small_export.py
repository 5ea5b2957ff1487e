"""A planted toy of the Alimama schema as a finished export, made without Spark: clicks follow the item's brand and
the match of the user's interest with the item's category. Occupation and behaviours tell the interest."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_core.encoding.encode import encode, to_arrow
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit_encoders
from mail_core.encoding.hashing import stable_hash
from mail_core.encoding.masking import NewUserMode
from mail_core.loading.manifest import SPLITS, TRAIN, FileEntry, Manifest, day_number, export_columns, export_uri
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import Schema
from mail_core.schema.reader import SCHEMAS, parse_schema

END, DAYS = date(2017, 5, 13), 8
LENGTH = 8
INTERESTS, USERS, ITEMS = 4, 60, 40
SPLIT_FILES = {"train": (200, 120, 160, 90), "validation": (130, 70), "test": (110, 120)}
"""Split -> rows of each of its files."""


def schema_text() -> str:
    """The Alimama schema with short sequences."""
    text = (SCHEMAS / "alimama.yaml").read_text(encoding="utf-8")
    assert "sequence_length: 100 " in text
    return text.replace("sequence_length: 100 ", f"sequence_length: {LENGTH} ")


def small_schema() -> Schema:
    return parse_schema(schema_text(), "small alimama")


def planted_rows(schema: Schema, rows: int, mode: NewUserMode, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """(rows in `input_schema` with masked users' behaviour removed, int32 labels)."""
    draw = np.random.default_rng(seed)
    user, item = draw.integers(0, USERS, rows), draw.integers(0, ITEMS, rows)
    interest = user % INTERESTS
    match = (item % INTERESTS) == interest
    labels = (draw.random(rows) < 0.05 + 0.4 * match + 0.5 * (item % 5 == 0)).astype(np.int32)
    length = np.where((user % 7 == 0) | mode.is_masked(pa.array(user)), 0, draw.integers(1, LENGTH + 3, rows))
    cates = [np.where(draw.random(n) < 0.85, i, draw.integers(0, INTERESTS, n)).tolist()
             for n, i in zip(length, interest)]
    columns = {"userid": user, "occupation": interest, "adgroup_id": item, "cate_id": item % INTERESTS,
               "pid": np.where(draw.random(rows) < 0.5, "430548_1007", "430539_1007"), "brand": item % 5,
               "price": draw.random(rows) * 100, "campaign_id": item, "customer": item % 10,
               "behavior_btag": [draw.choice(["pv", "cart", "fav", "buy"], n).tolist() for n in length],
               "behavior_cate": cates, "behavior_brand": [[None if c == 3 else c for c in cate] for cate in cates]}
    others = {name: draw.integers(1, 4, rows) for name in input_schema(schema).names if name not in columns}
    every = {**columns, **others}
    return pa.table({f.name: pa.array(list(every[f.name]), f.type) for f in input_schema(schema)}), labels


def small_encoders(schema: Schema, mode: NewUserMode = NewUserMode()) -> Encoders:
    return fit_encoders(planted_rows(schema, 500, mode)[0], schema)


def encoded_rows(encoders: Encoders, rows: int, seed: int, mode: NewUserMode = NewUserMode()) -> dict[str, np.ndarray]:
    """Columns of an export's file."""
    table, labels = planted_rows(encoders.schema, rows, mode, seed)
    users = table.column("userid").combine_chunks()
    return {**encode(table, encoders), "label": labels, "user_key": stable_hash(users).view(np.int64),
            "masked": mode.is_masked(users).astype(np.int32),
            "unseen": (encode(table.select(["userid"]), encoders)["userid"] == 1).astype(np.int32)}


def days_of(split: str, rows: int, end: date) -> list[date]:
    """The day of each row: the training days in turn, or the split's only one."""
    last = end - timedelta(days=SPLITS[::-1].index(split))
    return [last - timedelta(days=row % (DAYS - 2 if split == TRAIN else 1)) for row in range(rows)]


def write_export(lake: Path, files: Mapping[str, Sequence[int]] | None = None, new_users: str = "masked:0.4:7",
                 seed: int = 0, end: date = END, encoders: Encoders | None = None) -> str:
    """Write an export of `small_schema` into `lake` and return its URI."""
    schema, mode, data = small_schema(), NewUserMode.parse(new_users), "data-1"
    encoders = encoders or small_encoders(schema, mode)
    uri = export_uri(str(lake), end, DAYS, mode)
    splits, counts = {}, {}
    for number, (split, sizes) in enumerate((files or SPLIT_FILES).items()):
        (Path(uri) / data / split).mkdir(parents=True)
        days = [days_of(split, n, end) for n in sizes]
        splits[split] = tuple(FileEntry(path=f"{data}/{split}/part-{i:05}.parquet", rows=n,
                                        days=dict(Counter(map(str, days[i])))) for i, n in enumerate(sizes))
        counts[split] = {"rows": sum(sizes), "clicks": 0}
        for i, entry in enumerate(splits[split]):
            arrays = encoded_rows(encoders, entry.rows, seed=seed * 1000 + number * 100 + i, mode=mode)
            arrays["day"] = np.array([day_number(day) for day in days[i]], dtype=np.int32)
            counts[split]["clicks"] += int(arrays["label"].sum())
            pq.write_table(pa.Table.from_batches([to_arrow(arrays)]), Path(uri) / entry.path)
    encoders.save(str(Path(uri) / data / "encoders"))
    Manifest(schema_name=schema.name, schema_fingerprint=schema.fingerprint, encoder_fingerprint=encoders.fingerprint,
             new_users=new_users, end_date=end, days=DAYS, delta_versions={"features": 3}, data=data, splits=splits,
             sequence_length=schema.sequence_length, columns=export_columns(schema),
             statistics={"splits": counts}).write(uri)
    return uri
