"""Raw rows made of the encoders' most frequent values: a version's input example needs no row of a real user."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from mail_core.encoding.encoders import Encoders
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import Feature

_BEHAVIORS = 2


def example_rows(encoders: Encoders) -> pa.Table:
    """Two rows in `input_schema`: a user with two behaviours, and one without any."""
    schema = encoders.schema
    columns: dict[str, list[Any]] = {f.name: [_value(f, encoders)] * 2 for f in schema.features}
    for column, vocabulary in schema.behavior_vocabularies.items():
        columns[column] = [[_frequent(vocabulary, encoders)] * _BEHAVIORS, []]
    return pa.table(columns, schema=input_schema(schema))


def _value(feature: Feature, encoders: Encoders) -> Any:
    if feature.kind == "dense":
        mean = encoders.dense[feature.name].mean
        raw = math.expm1(mean) if feature.transform == "log1p" else mean
        kind = input_schema(encoders.schema).field(feature.name).type
        return round(raw) if pa.types.is_integer(kind) else raw
    value = _frequent(feature.name, encoders)
    return [value] if feature.kind == "multi" else value


def _frequent(vocabulary: str, encoders: Encoders) -> Any:
    """The most frequent value; NULL for a vocabulary without values (hashed, or never filled)."""
    values = encoders.vocabularies[vocabulary] if vocabulary in encoders.vocabularies else []
    return values[0].as_py() if len(values) else None
