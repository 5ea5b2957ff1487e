"""Which user x item pairs are scored on a day, and in what context."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date

from pyspark.errors import PySparkException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import DataType, TimestampType

from mail_core.errors import InputError
from mail_core.lake.files import spark_uri
from mail_core.schema.arrow import column_type, feature_type
from mail_core.schema.definition import ITEM, TIME, USER, Schema
from mail_core.spark.context_features import local_moment

_WIDENED = {"bigint": ("tinyint", "smallint", "int"), "int": ("tinyint", "smallint"),
            "double": ("float", "tinyint", "smallint", "int")}
"""Types that a column of candidates may have beside the schema's: casts to it lose nothing."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Rows to be scored."""

    rows: DataFrame
    """USER, ITEM (together unique), TIME and every context feature that is not derived."""
    given: int
    """Rows before duplicates were dropped."""


def seen_candidates(schema: Schema, impressions: DataFrame, day: date) -> Candidates:
    """Every distinct user x item pair of `impressions` (raw), in the schema's serving-time context of `day`."""
    log = schema.impressions
    pairs = impressions.select(F.col(log.user).alias(USER), F.col(log.item).alias(ITEM))
    return Candidates(rows=_in_context(schema, pairs.distinct(), day), given=impressions.count())


def read_candidates(spark: SparkSession, schema: Schema, path: str, day: date) -> Candidates:
    """Candidates that the caller brings, a Delta table or Parquet files at `path`.

    Columns: USER, ITEM, optionally TIME and context features that are not derived, by name; what it does not bring
    follows from the schema's serving time and context. Of several rows with one user and item the least one is kept.

    Raises:
        InputError: nothing to read, no rows, an unknown or missing column, a type that does not fit, or NULL where the
            schema allows none (with the number of rows).
    """
    table = _read(spark, path)
    wanted = _column_types(schema)
    for name in (USER, ITEM):
        if name not in table.columns:
            raise InputError(f"candidates {path}: no column {name!r}; columns: {', '.join(table.columns)}")
    for field in table.schema:
        _check_column(path, field.name, field.dataType, wanted)
    table = table.select(*(F.col(name).cast(wanted[name]).alias(name) for name in wanted if name in table.columns))
    given = _check_nulls(schema, path, table)
    extra = [name for name in table.columns if name not in (USER, ITEM)]
    pairs = table.groupBy(USER, ITEM).agg(F.min(F.struct(*extra)).alias("rest")) if extra else table.distinct()
    pairs = pairs.select(USER, ITEM, *(F.col(f"rest.{name}").alias(name) for name in extra))
    return Candidates(rows=_in_context(schema, pairs, day), given=given)


def _read(spark: SparkSession, path: str) -> DataFrame:
    from delta.tables import DeltaTable  # the driver reads; executors need no Delta in their Python

    try:
        uri = spark_uri(path)
        return spark.read.format("delta" if DeltaTable.isDeltaTable(spark, uri) else "parquet").load(uri)
    except PySparkException as error:
        raise InputError(f"candidates {path}: neither a Delta table nor Parquet files that can be read: "
                         f"{str(error).splitlines()[0]}") from error


def _column_types(schema: Schema) -> dict[str, DataType]:
    """The columns that candidates may have, with their types."""
    log = schema.impressions
    keys = {USER: log.user, ITEM: log.item}
    types = {name: from_arrow_type(column_type(log.column(column))) for name, column in keys.items()}
    context = {f.name: from_arrow_type(feature_type(schema, f)) for f in schema.logged_context}
    return {**types, TIME: TimestampType(), **context}


def _check_column(path: str, name: str, found: DataType, wanted: dict[str, DataType]) -> None:
    if name not in wanted:
        raise InputError(f"candidates {path}: unknown column {name!r}; allowed: {', '.join(wanted)}")
    kind = wanted[name].simpleString()
    if found.simpleString() not in (kind, *_WIDENED.get(kind, ())):
        raise InputError(f"candidates {path}: column {name!r} is {found.simpleString()}, expected {kind}")


def _check_nulls(schema: Schema, path: str, table: DataFrame) -> int:
    """Rows of `table`; InputError on none, and on NULL in a column of which the schema names no NULL text."""
    nullable = [f.name for f in schema.logged_context if schema.impressions.column(f.column).nulls]
    never_null = [name for name in table.columns if name not in nullable]
    counted = table.select(F.count("*").alias("rows"),
                           *(F.count_if(F.col(name).isNull()).alias(f"null_{name}") for name in never_null)).first()
    assert counted is not None
    nulls = {name: counted[f"null_{name}"] for name in never_null if counted[f"null_{name}"]}
    if nulls:
        found = ", ".join(f"{count} in column {name!r}" for name, count in nulls.items())
        raise InputError(f"candidates {path}: NULL where none is allowed: {found} (of {counted['rows']} rows)")
    if not counted["rows"]:
        raise InputError(f"candidates {path}: no rows")
    return counted["rows"]


def _in_context(schema: Schema, pairs: DataFrame, day: date) -> DataFrame:
    """`pairs` with TIME and every context feature that is not derived; serving time and context where absent."""
    moment = local_moment(day, schema.serving.time, schema.timezone)
    absent: dict[str, SparkColumn] = {TIME: F.lit(moment)}
    for name, value in schema.serving.context.items():
        absent[name] = F.lit(list(value) if isinstance(value, tuple) else value)
    types = _column_types(schema)
    return pairs.withColumns({name: value.cast(types[name]) for name, value in absent.items()
                              if name not in pairs.columns})
