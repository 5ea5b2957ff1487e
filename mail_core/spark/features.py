"""`features`: raw values of user, context and item, as-of behaviour sequence and label, one row an impression."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Callable, Iterable, Iterator

import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type
from pyspark.sql.types import IntegerType

from mail_core.errors import InputError
from mail_core.schema.arrow import features_schema, raw_fields
from mail_core.schema.definition import DAY, ITEM, TIME, USER, Feature, Schema, Snapshot
from mail_core.spark.context_features import derive, earliest_moments
from mail_core.spark.new_users import behavior_length
from mail_core.spark.sequences import Spans, partition_count, read_partition, slices, timeline

if TYPE_CHECKING:  # executors need no Delta in their Python
    from mail_core.lake.tables import Lake

_SNAPSHOT, _KEY = "_snapshot", "_key"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FeatureDays:
    """Which days of `features` to build."""

    last: date
    days: int = 1
    """Local days up to and with `last`."""
    allow_short: bool = False
    """Leave out days without impressions instead of refusing."""

    def present(self, found: list[date]) -> list[date]:
        """The days asked for that are among `found`.

        Raises:
            InputError: less than one day asked for, none there, or some missing where that is not allowed.
        """
        if self.days < 1:
            raise InputError(f"--days {self.days}: expected 1 or more")
        wanted = [self.last - timedelta(days=back) for back in reversed(range(self.days))]
        missing = [day for day in wanted if day not in found]
        if missing and (len(missing) == len(wanted) or not self.allow_short):
            there = f"it has {len(found)} days, {min(found)} to {max(found)}" if found else "it is empty"
            raise InputError(f"raw_impressions has no rows for {', '.join(map(str, missing))} ({there}); ingest them "
                             "first, or build the days that are there with --allow-short")
        return [day for day in wanted if day in found]


def replace_features(schema: Schema, lake: Lake, window: FeatureDays) -> tuple[int, list[Row]]:
    """Build the days of `window` from the lake's raw tables and replace them in `features`.

    Returns:
        Rows written, and a row a day: day, rows, mean_length (behaviours in a sequence), empty (share of rows without).
    Raises:
        InputError: days or tables are missing, a table does not fit the schema, or another run built these days
            meanwhile.
    """
    since = lake.versions("features")["features"]
    days = window.present(lake.days("raw_impressions"))
    if len(days) < window.days:
        logger.warning("building %d of %d days: the others have no impressions", len(days), window.days)
    first = days[0] - timedelta(days=schema.behavior_days)
    # Days outside hold nothing that a sequence may take: this prunes files, the as-of core decides by the time itself.
    behaviors = lake.read("raw_behaviors").where(F.col(DAY).between(F.lit(first), F.lit(days[-1])))
    impressions = lake.read("raw_impressions").where(F.col(DAY).isin(days))
    rows = lake.replace_days("features", build_features(schema, impressions, behaviors, lake.read("users"),
                                                        lake.read("items")), days, since=since)
    length = behavior_length(schema)
    summary = (lake.read("features").where(F.col(DAY).isin(days)).groupBy(DAY)
               .agg(F.count("*").alias("rows"), F.avg(length).alias("mean_length"),
                    F.avg((length == 0).cast("double")).alias("empty")).orderBy(DAY))
    return rows, summary.collect()


def format_summary(summary: list[Row]) -> str:
    """A line a day: rows, average sequence length, share of rows with an empty sequence."""
    lines = [f"{'day':10}  {'rows':>12}  {'mean length':>11}  {'empty':>7}"]
    lines += [f"{row.day}  {row.rows:>12,}  {row.mean_length:>11.2f}  {row.empty:>7.2%}" for row in summary]
    return "\n".join(lines)


def build_features(schema: Schema, impressions: DataFrame, behaviors: DataFrame, users: DataFrame,
                   items: DataFrame) -> DataFrame:
    """Every impression with its inputs as they stood at its time, as `arrow.features_schema` has it.

    A sequence holds the latest L behaviours of the user strictly before the impression, from at most `behavior_days`
    local days before its day. Profiles and items are the newest snapshot where the schema calls them static, else the
    newest at or before the impression's day; what they lack is NULL, the users' and items' own keys excepted.
    Impressions and behaviours are counted here to choose the number of partitions.

    Args:
        impressions, behaviors, users, items: the lake's raw tables (DAY and the raw columns by name).
    Raises:
        InputError: a table lacks a column or has one of another type.
    """
    for role, table in (("impressions", impressions), ("behaviors", behaviors), ("users", users), ("items", items)):
        check_columns(schema, role, table)
    log = schema.impressions
    rows = impressions.select(DAY, F.col(log.user).alias(USER), F.col(log.time).alias(TIME),
                              F.col(log.item).alias(ITEM),
                              *(F.col(c).cast(IntegerType()).alias(name) for name, c in schema.outcomes.items()),
                              *(F.col(f.column).alias(f.name) for f in schema.logged_context))
    rows = with_snapshots(schema, rows, users, items)
    parallelism = impressions.sparkSession.sparkContext.defaultParallelism
    partitions = partition_count(impressions.count() + behaviors.count(), parallelism)
    events = timeline(schema, rows, behaviors, partitions)
    return events.mapInArrow(_sequence_reader(schema), from_arrow_schema(features_schema(schema)))


def check_columns(schema: Schema, role: str, table: DataFrame) -> None:
    """The input schema of raw table `role`: DAY and each raw column with the type that the schema gives it.

    Raises:
        InputError: naming the column, what it is and what was expected.
    """
    found = {field.name: field.dataType for field in table.schema}
    for field in [pa.field(DAY, pa.date32()), *raw_fields(getattr(schema, role))]:
        wanted = from_arrow_type(field.type)
        if field.name not in found:
            raise InputError(f"{role}: no column {field.name!r}; columns: {', '.join(found)}")
        if found[field.name].simpleString() != wanted.simpleString():
            raise InputError(f"{role}: column {field.name!r} is {found[field.name].simpleString()}, "
                             f"expected {wanted.simpleString()}")


def with_snapshots(schema: Schema, rows: DataFrame, users: DataFrame, items: DataFrame) -> DataFrame:
    """`rows` (DAY, USER, ITEM, ...) with every user and item feature's raw value as of the row's DAY."""
    # Items first: their table is the one that may be too large to broadcast, and rows are narrow as yet.
    rows = with_items(schema, rows, items)
    return _with_snapshot(rows, users, schema.users, USER, schema.group("user"))


def with_items(schema: Schema, rows: DataFrame, items: DataFrame) -> DataFrame:
    """`rows` (DAY, ITEM, ...) with every item feature's raw value as of the row's DAY."""
    return _with_snapshot(rows, items, schema.items, ITEM, schema.group("item"))


def _with_snapshot(rows: DataFrame, snapshots: DataFrame, raw: Snapshot, key: str,
                   features: tuple[Feature, ...]) -> DataFrame:
    """Left join on (snapshot as of the row's day, key): at most one match, because a key stands once in a snapshot."""
    stored = [f for f in features if f.column != raw.key]
    if stored:
        days = sorted(row[DAY] for row in snapshots.select(DAY).distinct().collect())
        if raw.static:
            snapshots = snapshots.where(F.col(DAY) == F.lit(days[-1] if days else None))
            as_of: SparkColumn = F.lit(days[-1] if days else None)
        else:
            earlier = F.filter(F.array(*map(F.lit, days)), lambda day: day <= F.col(DAY))
            as_of = F.array_max(earlier) if days else F.lit(None)
        profiles = snapshots.select(F.col(DAY).alias(_SNAPSHOT), F.col(raw.key).alias(_KEY),
                                    *(F.col(f.column).alias(f.name) for f in stored))
        left = rows.withColumn(_SNAPSHOT, as_of.cast("date")).withColumn(_KEY, F.col(key))
        rows = left.join(profiles, [_SNAPSHOT, _KEY], "left").drop(_SNAPSHOT, _KEY)
    return rows.withColumns({f.name: F.col(key) for f in features if f.column == raw.key})


def derived_context(schema: Schema, times_B: pa.Array) -> dict[str, pa.Array]:
    """Every derived context feature of rows at `times_B`, int32 (B,) each."""
    return {f.name: derive(f.derive, times_B, schema.timezone) for f in schema.group("context") if f.derive}


def _sequence_reader(schema: Schema) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    layout = features_schema(schema)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """One partition of a timeline -> its features, by user and time."""
        rows, index = read_partition(schema, batches)
        if not rows.num_rows:
            return
        rows = rows.sort_by([(USER, "ascending"), (TIME, "ascending"), (ITEM, "ascending")])
        before_B = rows.column(TIME).cast(pa.int64()).to_numpy()
        since_B = earliest_moments(rows.column(DAY).combine_chunks(), schema.behavior_days, schema.timezone)
        spans = index.find(rows.column(USER).combine_chunks(), before_B, since_B, schema.sequence_length)
        for part in slices(rows.num_rows):
            some = rows.slice(part.start, part.stop - part.start).combine_chunks()
            columns = {name: some.column(name) for name in some.column_names}
            columns |= derived_context(schema, some.column(TIME))
            columns |= index.gather(Spans(starts_B=spans.starts_B[part], ends_B=spans.ends_B[part]))
            ordered = pa.table({name: columns[name] for name in layout.names}).cast(layout)
            yield from ordered.to_batches()

    return read
