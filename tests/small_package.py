"""Raw rows and an untrained, small model version of any schema, for tests that need a version and no training."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit_encoders
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailConfig, MailModel
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.zero_shot import ZeroShotConfig
from mail_core.package.store import save_package
from mail_core.schema.arrow import features_schema, input_schema
from mail_core.schema.definition import DAY, ITEM, LABEL, TIME, USER, Schema

ZERO_SHOT = ZeroShotConfig(hidden=(16, 8), latent=8, attention=8)


def raw_rows(schema: Schema, count: int, seed: int = 0, values: int = 20) -> pa.Table:
    """Random rows in `input_schema`: ragged and empty sequences, NULLs, values up to `values`."""
    generator = np.random.default_rng(seed)
    wanted = input_schema(schema)
    lengths = generator.integers(0, 8, count) * (generator.random(count) < 0.7)
    keys = {f.name for f in schema.features if f.column in (schema.users.key, schema.items.key)}
    columns: dict[str, list[Any]] = {}
    for field in wanted:
        if field.name in schema.behavior_vocabularies:
            kind = field.type.value_type
            may_be_null = field.name != schema.action_column
            columns[field.name] = [[_value(kind, generator, values, may_be_null) for _ in range(n)] for n in lengths]
        elif pa.types.is_list(field.type):
            columns[field.name] = [[_value(field.type.value_type, generator, values, False)
                                    for _ in range(generator.integers(0, 4))] for _ in range(count)]
        else:
            columns[field.name] = [_value(field.type, generator, values, field.name not in keys) for _ in range(count)]
    return pa.table(columns, schema=wanted)


def feature_rows(schema: Schema, day: date, count: int, seed: int = 0, users: int = 25) -> pa.Table:
    """Random rows in `features_schema` of one day; a row's user attributes that are keys equal its user."""
    generator = np.random.default_rng(seed)
    raw = raw_rows(schema, count, seed)
    user, item = (pa.array(generator.integers(1, users, count), features_schema(schema).field(name).type)
                  for name in (USER, ITEM))
    start = datetime(day.year, day.month, day.day, 12, tzinfo=timezone.utc)
    head = {DAY: pa.array([day] * count), USER: user, ITEM: item,
            TIME: pa.array([start + timedelta(seconds=i) for i in range(count)], pa.timestamp("us", tz="UTC")),
            LABEL: pa.array(generator.integers(0, 2, count), pa.int32())}
    body = {name: raw.column(name) for name in raw.schema.names}
    for feature in schema.features:
        if feature.column in (schema.users.key, schema.items.key):
            body[feature.name] = user if feature.column == schema.users.key and feature.group == "user" else item
    return pa.table({**head, **body}, schema=features_schema(schema))


def small_model(schema: Schema, encoders: Encoders, zero_shot: bool = True, seed: int = 0,
                variant: str = "base") -> MailModel:
    """Random weights, large enough that different rows get different CTRs; batch norm with statistics of its own."""
    torch.manual_seed(seed)
    tower = replace(ZERO_SHOT, variant=variant)
    config = MailConfig(dim=4, embedding_std=0.5, zero_shot=tower if zero_shot else None, tower_config=BaseDnnConfig(
        hidden=(16, 8), pooling="mean" if tower.parts.token else "sum"))
    model = MailModel(config, EmbeddingLayout.from_schema(schema, encoders.vocabulary_sizes))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model.eval()


def small_package(folder: Path, schema: Schema, zero_shot: bool = True, seed: int = 0,
                  new_users: str = "natural", variant: str = "base", test_day: date | None = None) -> Path:
    """An untrained version in `folder`, its encoders fitted on `raw_rows`; its lineage has a window with a test day."""
    window = {} if test_day is None else {"export": {"first_day": str(test_day - timedelta(days=7)),
                                                     "end_date": str(test_day)}}
    encoders = fit_encoders(raw_rows(schema, 200, values=15), schema)
    return save_package(folder, model=small_model(schema, encoders, zero_shot, seed, variant), encoders=encoders,
                        lineage={"new_users": new_users, "seed": seed, **window}, metrics={})


def _value(kind: pa.DataType, generator: np.random.Generator, values: int, may_be_null: bool) -> Any:
    if may_be_null and generator.random() < 0.15:
        return None
    number = int(generator.integers(1, values + 1))
    if pa.types.is_string(kind):
        return str(number)
    return float(number) / 2 if pa.types.is_floating(kind) else number
