"""Arrow schemas of the tables that a dataset's Schema implies; Spark's StructTypes follow from these."""

from __future__ import annotations

import pyarrow as pa

from mail_core.schema.definition import BEHAVIOR_PREFIX, DAY, ITEM, TIME, USER, Column, Feature, RawFile, Schema

_TYPES = {"string": pa.string(), "int": pa.int32(), "long": pa.int64(), "double": pa.float64(),
          "epoch_seconds": pa.timestamp("us", tz="UTC")}


def column_type(column: Column) -> pa.DataType:
    """Arrow type of a raw column; a multi-valued one is a list."""
    return pa.list_(_TYPES[column.type]) if column.separator else _TYPES[column.type]


def raw_fields(raw: RawFile) -> list[pa.Field]:
    """The columns of a raw file as they stand in the lake; nullable where the schema names a NULL text."""
    return [pa.field(c.name, column_type(c), nullable=bool(c.nulls)) for c in raw.columns]


def feature_type(schema: Schema, feature: Feature) -> pa.DataType:
    """Arrow type of a feature's raw values: its source column's, int32 for a derived one."""
    if feature.derive:
        return pa.int32()
    raw: RawFile = {"user": schema.users, "item": schema.items, "context": schema.impressions}[feature.group]
    return column_type(raw.column(feature.column))


def vocabulary_type(schema: Schema, vocabulary: str) -> pa.DataType:
    """Arrow type of the values of a vocabulary: a feature's name, or the action column's."""
    if vocabulary == schema.action_column:
        return column_type(schema.behaviors.column(schema.behaviors.action))
    kind = feature_type(schema, schema.feature(vocabulary))
    return kind.value_type if pa.types.is_list(kind) else kind


def behavior_fields(schema: Schema) -> list[pa.Field]:
    """The list columns of a behaviour sequence (raw values, newest first, no padding): the action, then item fields."""
    return [pa.field(name, pa.list_(column_type(schema.behaviors.column(name.removeprefix(BEHAVIOR_PREFIX)))))
            for name in schema.behavior_vocabularies]


def input_schema(schema: Schema) -> pa.Schema:
    """What a model version takes: every feature's raw value and the behaviour sequence, a row an impression."""
    return pa.schema([pa.field(f.name, feature_type(schema, f)) for f in schema.features] + behavior_fields(schema))


def features_schema(schema: Schema) -> pa.Schema:
    """The `features` table: day, keys, time and outcome before `input_schema`."""
    user, item = (column_type(schema.impressions.column(c)) for c in (schema.impressions.user, schema.impressions.item))
    head = [pa.field(DAY, pa.date32(), nullable=False), pa.field(USER, user, nullable=False),
            pa.field(ITEM, item, nullable=False), pa.field(TIME, _TYPES["epoch_seconds"], nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in schema.outcomes)]
    return pa.schema(head + list(input_schema(schema)))
