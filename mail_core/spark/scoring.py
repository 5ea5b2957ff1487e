"""`ctr_scores`: the CTR of candidates on a day by one model version. U users, B candidates."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from mail_core.errors import InputError
from mail_core.package.scoring import Package
from mail_core.package.store import load_package
from mail_core.schema.arrow import column_type, input_schema
from mail_core.schema.definition import DAY, ITEM, TIME, USER, Schema
from mail_core.spark.candidates import Candidates, read_candidates, seen_candidates
from mail_core.spark.context_features import earliest_moments, local_moment, microseconds
from mail_core.spark.features import check_columns, derived_context, with_snapshots
from mail_core.spark.packages import PackageHandle, ship_package
from mail_core.spark.sequences import BehaviorIndex, partition_count, read_partition, slices, timeline

if TYPE_CHECKING:  # executors need no Delta in their Python
    from mail_core.lake.tables import Lake

SHOWN_ROWS = 10
SLICE_ROWS = 32_768
"""Candidates that are encoded and scored at once: bounds their users' list columns in memory."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to score, by what."""

    day: date
    """Local day; behaviours before its 00:00 count."""
    model_name: str
    model_version: str
    package_folder: Path
    """The version's package on the driver."""
    candidates: str | None = None
    """Path of a Delta table or of Parquet files; None: the user x item pairs of the day before."""


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What was written."""

    path: str
    rows: int
    duplicates: int
    """Candidates dropped because their user and item stood there before."""
    new_users: int
    """Users without a behaviour in their look-back."""
    users: int
    first_rows: list[Row]
    """By user and item."""


def replace_scores(schema: Schema, lake: Lake, request: ScoreRequest) -> ScoreSummary:
    """Score the candidates of `request.day` and replace that day in `ctr_scores`.

    A second run writes the same rows, `scored_at` excepted: it says when, and is no part of what was computed.

    Raises:
        InputError: tables or candidates are missing or do not fit, the version was made for other input, or another run
            scored that day meanwhile.
    """
    since = lake.versions("ctr_scores")["ctr_scores"]
    _check_version(schema, request)
    day, yesterday = request.day, request.day - timedelta(days=1)
    if request.candidates is not None:
        candidates = read_candidates(lake.spark, schema, request.candidates, day)
    elif yesterday in lake.days("raw_impressions"):
        seen = lake.read("raw_impressions").where(F.col(DAY) == F.lit(yesterday))
        candidates = seen_candidates(schema, seen, day)
    else:
        raise InputError(f"raw_impressions has no rows for {yesterday}, whose users and items are scored on {day} by "
                         "default; ingest that day or give --candidates")
    first = day - timedelta(days=schema.behavior_days)
    behaviors = lake.read("raw_behaviors").where(F.col(DAY).between(F.lit(first), F.lit(yesterday)))
    scores = score_candidates(schema, candidates, behaviors, lake.read("users"), lake.read("items"), day,
                              ship_package(lake.spark, request.package_folder))
    scored_at = datetime.now(timezone.utc)
    rows = lake.replace_days("ctr_scores", scores.select(
        F.lit(day).alias(DAY), "*", F.lit(request.model_name).alias("model_name"),
        F.lit(request.model_version).alias("model_version"), F.lit(scored_at).alias("scored_at")), [day], since=since)
    return _summary(lake, day, rows, candidates.given - rows if request.candidates is not None else 0)


def score_candidates(schema: Schema, candidates: Candidates, behaviors: DataFrame, users: DataFrame, items: DataFrame,
                     day: date, package: PackageHandle) -> DataFrame:
    """USER, ITEM, ctr, is_new_user of every candidate, (USER, ITEM) unique; cvr and ctcvr, too, where the schema names
    conversions, NULL by a version without them.

    Sequences stand as of `day` 00:00 local, profiles and items as of the day before (static ones: the newest), which is
    what a run on that morning knows. Users and items never seen, or without a row, are scored from what is there.
    Sequences are assembled and used inside one task a partition, and never return to the JVM.

    Args:
        behaviors, users, items: the lake's raw tables.
        package: the version, as sent to the workers.
    Raises:
        InputError: a table lacks a column or has one of another type.
    """
    for role, table in (("behaviors", behaviors), ("users", users), ("items", items)):
        check_columns(schema, role, table)
    known = candidates.rows.withColumn(DAY, F.lit(day - timedelta(days=1)))
    rows = with_snapshots(schema, known, users, items).drop(DAY)
    parallelism = behaviors.sparkSession.sparkContext.defaultParallelism
    partitions = partition_count(candidates.given + behaviors.count(), parallelism)
    events = timeline(schema, rows, behaviors, partitions)
    return events.mapInArrow(_scorer(schema, day, package), from_arrow_schema(_scores_schema(schema)))


def format_summary(summary: ScoreSummary) -> str:
    """The table's path, its size, the share of new users, and its first rows."""
    share = summary.new_users / summary.users if summary.users else 0.0
    lines = [f"ctr_scores: {summary.path}",
             f"{summary.rows:,} rows, {summary.users:,} users, {share:.2%} of them new (no behaviour); "
             f"{summary.duplicates:,} duplicate candidates dropped",
             f"{'day':10}  {'user':>12}  {'item':>12}  {'ctr':>8}  {'new':5}  model"]
    lines += [f"{row.day}  {row.user:>12}  {row.item:>12}  {row.ctr:>8.6f}  {str(row.is_new_user).lower():5}  "
              f"{row.model_name}/{row.model_version}" for row in summary.first_rows]
    return "\n".join(lines)


def _check_version(schema: Schema, request: ScoreRequest) -> None:
    """The whole package is read here once, so that a damaged one fails on the driver and not in every task."""
    made_for = load_package(request.package_folder).schema
    title = f"model {request.model_name} version {request.model_version}"
    for field in input_schema(made_for):
        place = input_schema(schema).get_field_index(field.name)
        found = input_schema(schema).field(place).type if place >= 0 else "nothing"
        if found != field.type:
            raise InputError(f"{title}: takes column {field.name!r} as {field.type}, schema {schema.name!r} gives "
                             f"{found}")
    if made_for.sequence_length != schema.sequence_length or made_for.behavior_days != schema.behavior_days:
        raise InputError(f"{title}: made for {made_for.sequence_length} behaviours of {made_for.behavior_days} days, "
                         f"schema {schema.name!r} gives {schema.sequence_length} of {schema.behavior_days}")


def _summary(lake: Lake, day: date, rows: int, duplicates: int) -> ScoreSummary:
    table = lake.read("ctr_scores").where(F.col(DAY) == F.lit(day))
    per_user = table.groupBy(USER).agg(F.first("is_new_user").alias("is_new"))
    counted = per_user.agg(F.count("*").alias("users"), F.count_if("is_new").alias("new_users")).first()
    assert counted is not None
    return ScoreSummary(path=lake.path("ctr_scores"), rows=rows, duplicates=duplicates, users=counted["users"],
                        new_users=counted["new_users"],
                        first_rows=table.orderBy(USER, ITEM).limit(SHOWN_ROWS).collect())


def _scores_schema(schema: Schema) -> pa.Schema:
    log = schema.impressions
    return pa.schema([pa.field(USER, column_type(log.column(log.user)), nullable=False),
                      pa.field(ITEM, column_type(log.column(log.item)), nullable=False),
                      pa.field("ctr", pa.float64(), nullable=False),
                      *(pa.field(name, pa.float64()) for name in schema.conversion_scores),
                      pa.field("is_new_user", pa.bool_(), nullable=False)])


def _scorer(schema: Schema, day: date,
            package: PackageHandle) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    layout = _scores_schema(schema)
    before = microseconds(local_moment(day, time(), schema.timezone))
    since = int(earliest_moments(pa.array([day]), schema.behavior_days, schema.timezone)[0])

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """One partition's candidates, by user and item -> their scores."""
        candidates, index = read_partition(schema, batches)
        if not candidates.num_rows:
            return
        # In one order on every run, so that the model sees the same batches.
        candidates = candidates.sort_by([(USER, "ascending"), (ITEM, "ascending")])
        _check_unique(candidates)
        for part in slices(candidates.num_rows, SLICE_ROWS):
            some = candidates.slice(part.start, part.stop - part.start).combine_chunks()
            yield from _scored(schema, package.load(), index, some, before, since).cast(layout).to_batches()

    return score


def _scored(schema: Schema, package: Package, index: BehaviorIndex, candidates: pa.Table, before: int,
            since: int) -> pa.Table:
    """Scores of candidates (B rows); sequences, encoding and virtual behaviour once for each of their users."""
    encoded_B = candidates.column(USER).combine_chunks().dictionary_encode()
    user_index_B = encoded_B.indices.to_numpy()
    _, first_U = np.unique(user_index_B, return_index=True)
    before_U, since_U = (np.full(len(first_U), moment, dtype=np.int64) for moment in (before, since))
    spans = index.find(encoded_B.dictionary, before_U, since_U, schema.sequence_length)
    attributes = candidates.take(pa.array(first_U)).select([f.name for f in schema.group("user")])
    users = pa.table({**dict(zip(attributes.column_names, attributes.columns)), **index.gather(spans)})
    targets = {f.name: candidates.column(f.name) for f in (*schema.logged_context, *schema.group("item"))}
    scores = package.score_candidates(users, user_index_B,
                                      pa.table({**targets, **derived_context(schema, candidates.column(TIME))}))
    columns = {USER: candidates.column(USER), ITEM: candidates.column(ITEM), "ctr": scores.ctr, "cvr": scores.cvr,
               "ctcvr": scores.ctcvr, "is_new_user": (spans.lengths_B == 0)[user_index_B]}
    return pa.table([pa.nulls(candidates.num_rows) if columns[name] is None else columns[name]
                     for name in _scores_schema(schema).names], names=_scores_schema(schema).names)


def _check_unique(candidates: pa.Table) -> None:
    """The key (user, item) is unique: a partition has whole users, sorted, so equal keys are neighbours."""
    users, items = (candidates.column(name).combine_chunks() for name in (USER, ITEM))
    same = pc.and_(pc.equal(users[1:], users[:-1]), pc.equal(items[1:], items[:-1]))
    assert not pc.any(same).as_py(), "a user and item twice: a snapshot has two rows of one key"
