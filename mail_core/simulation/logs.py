"""Raw files of a planted world, made by Spark: one task a part, each a function of its blocks of users.

The executors write the files themselves, by Arrow: names and bytes then depend on the seed alone, and no row passes
through the JVM. The output folder must be one that driver and executors share.

Result of the tasks: part int32, impressions, clicks, conversions, behaviors, profiles int64; one row a file.
"""

from __future__ import annotations

import gzip
import io
import logging
import uuid
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Iterable, Iterator, Mapping
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv, fs
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.metrics import roc_auc_score

from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join, spark_uri, validated_lake_uri
from mail_core.schema.definition import RawFile, Schema
from mail_core.simulation.draws import BLOCK, DAY_SECONDS, Samplers, calibrated, draw_conversions, draw_logs, draw_users
from mail_core.simulation.planted import Items, Stream, WorldConfig, draw_items
from mail_core.simulation.rows import Rows, raw_rows
from mail_core.simulation.world import World, items_table, users_table, world_document

BLOCKS_PER_FILE = 4
ORACLE_ROWS = 100_000
WORLD = "world"
_CLAIM = "simulation.json"  # in the world's folder from the first moment on; world.json comes last
_COUNTS = ("impressions", "clicks", "conversions", "behaviors", "profiles")
_RESULT = "part int, " + ", ".join(f"{name} long" for name in _COUNTS)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SimulationSummary:
    """What a simulation wrote, and the oracles' AUC on the last day (None without a click or without a non-click)."""

    users: int
    items: int
    profiles: int
    impressions: int
    clicks: int
    conversions: int
    """0 where the schema names none."""
    behaviors: int
    oracle_rows: int
    auc_truth: float | None
    auc_attributes: float | None


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where and how files are written; travels to the executors."""

    uri: str
    schema: Schema
    compress: bool
    start: int
    """First local midnight of the window, seconds since the epoch."""

    def write(self, raw: RawFile, part: int, tables: list[pa.Table]) -> None:
        """One part of a raw file: the schema's header, then the tables' rows; put in place in one move."""
        assert all(t.column_names == [c.name for c in raw.columns] for t in tables)
        body = io.BytesIO()
        body.write((raw.delimiter.join(c.header for c in raw.columns) + "\n").encode())
        options = csv.WriteOptions(include_header=False, delimiter=raw.delimiter, quoting_style="none")
        for table in tables:
            csv.write_csv(table, body, options)
        data = gzip.compress(body.getvalue(), compresslevel=6, mtime=0) if self.compress else body.getvalue()
        _put(join(self.uri, raw.file, f"part-{part:05d}.csv" + (".gz" if self.compress else "")), data)


def simulate_logs(spark: SparkSession, schema: Schema, config: WorldConfig, out: str, compress: bool = False,
                  files: int | None = None) -> SimulationSummary:
    """Write the raw files and the world of `config` to the folder `out`; an earlier simulation there is replaced.

    Args:
        schema: the dataset's; the files' names, columns, headers, time zone and last day come from it, and whether
            conversions are written.
        compress: gzip the raw files.
        files: Spark partitions to make the files in; the files are the same for every number.

    Raises:
        InputError: a setting out of range, a window outside the schema's days, or `out` holds anything else.
    """
    out = validated_lake_uri(out)
    start = _window_start(schema, config)
    _claim(out, schema)
    items = calibrated(config, draw_items(config))
    target = _Target(uri=out, schema=schema, compress=compress, start=start)
    target.write(schema.items, 0, [raw_rows(schema, config, items).items()])
    _put(join(out, WORLD, "items.parquet"), _parquet(items_table(items)))
    parts = -(-config.users // (BLOCK * BLOCKS_PER_FILE))
    counts = _write_parts(spark.range(0, parts, 1, files or parts), config, items, target).agg(
        *(F.sum(name).alias(name) for name in _COUNTS)).first()
    assert counts is not None
    _put(join(out, WORLD, "world.json"), world_document(config, items).encode())
    rows, truth, attributes = _oracles(spark, schema, config, out, start)
    return SimulationSummary(users=config.users, items=config.items, oracle_rows=rows, auc_truth=truth,
                             auc_attributes=attributes, **counts.asDict())


def _window_start(schema: Schema, config: WorldConfig) -> int:
    if schema.last_day is None:
        raise InputError(f"schema {schema.name}: last_day is not set; simulated days end there")
    first = schema.last_day - timedelta(days=max(config.days, config.behavior_days) - 1)
    if first < schema.first_day:
        raise InputError(f"days {config.days}, behavior_days {config.behavior_days}: the logs would begin on {first}, "
                         f"before the schema's first_day {schema.first_day}")
    start, end = (datetime.combine(day, time(), ZoneInfo(schema.timezone))
                  for day in (first, schema.last_day + timedelta(days=1)))
    if start.utcoffset() != end.utcoffset():
        raise InputError(f"schema {schema.name}: between {first} and {schema.last_day} the clocks of {schema.timezone} "
                         "change; simulated days have 24 hours: name another last_day")
    return int(start.timestamp())


def _claim(out: str, schema: Schema) -> None:
    """Make `out` ours: empty but for the mark of a simulation under way."""
    files, path = filesystem(out)
    ours = {WORLD, *(raw.file for raw in _raw_files(schema))}
    entries = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    marked = files.get_file_info(f"{path}/{WORLD}/{_CLAIM}").type == fs.FileType.File
    foreign = [e.base_name for e in entries if not marked or e.base_name not in ours]
    if foreign:
        raise InputError(f"{out}: holds {', '.join(sorted(foreign)[:5])}, which no earlier simulation wrote; "
                         "expected an empty folder, a new one, or an earlier simulation")
    # The mark goes last, so that a cut here leaves a folder that the next run still knows as ours.
    for entry in sorted(entries, key=lambda e: e.base_name == WORLD):
        files.delete_dir(entry.path) if entry.type == fs.FileType.Directory else files.delete_file(entry.path)
    _put(join(out, WORLD, _CLAIM), b'{"written_by": "simulate_logs"}\n')


def _raw_files(schema: Schema) -> tuple[RawFile, ...]:
    return schema.impressions, schema.behaviors, schema.users, schema.items


def _write_parts(parts: DataFrame, config: WorldConfig, items: Items, target: _Target) -> DataFrame:
    """Input: id long, the parts to write. Output: `_RESULT`."""
    shared = parts.sparkSession.sparkContext.broadcast(items)

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        samplers, rows = Samplers(shared.value), raw_rows(target.schema, config, shared.value)
        for batch in batches:
            for part in batch.column(0).to_pylist():
                counts = _write_part(part, config, shared.value, samplers, rows, target)
                yield pa.RecordBatch.from_pylist([{"part": part, **counts}], schema=result)

    result = pa.schema([("part", pa.int32()), *((name, pa.int64()) for name in _COUNTS)])
    return parts.mapInArrow(write, _RESULT)


def _write_part(part: int, config: WorldConfig, items: Items, samplers: Samplers, rows: Rows,
                target: _Target) -> Mapping[str, int]:
    """Draw the blocks of one part, write its files and count their rows."""
    schema, impressions, behaviors, profiles, world = target.schema, [], [], [], []
    clicks = conversions = 0
    for block in range(part * BLOCKS_PER_FILE, (part + 1) * BLOCKS_PER_FILE):
        size = min(BLOCK, config.users - block * BLOCK)
        if size <= 0:
            break
        users = draw_users(config, items, block, size)
        logs = draw_logs(config, items, samplers, users, config.stream(Stream.LOGS, block))
        converted_N = None
        if schema.impressions.conversion is not None:
            converted_N = draw_conversions(items, users, logs, config.stream(Stream.CONVERSIONS, block))
            conversions += int(converted_N.sum())
        impressions.append(rows.impressions(users, logs, converted_N, target.start))
        behaviors.append(rows.behaviors(users, logs, target.start))
        profiles.append(rows.profiles(users))
        world.append(users_table(users))
        clicks += int(logs.click_N.sum())
    for raw, tables in ((schema.impressions, impressions), (schema.behaviors, behaviors), (schema.users, profiles)):
        target.write(raw, part, tables)
    _put(join(target.uri, WORLD, "users", f"part-{part:05d}.parquet"), _parquet(pa.concat_tables(world)))
    return {"impressions": sum(map(len, impressions)), "clicks": clicks, "conversions": conversions,
            "behaviors": sum(map(len, behaviors)), "profiles": sum(map(len, profiles))}


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _put(uri: str, data: bytes) -> None:
    """Write under a name of this attempt's own, then move: a task's second attempt cannot spoil the first's."""
    files, path = filesystem(uri)
    folder, name = path.rsplit("/", 1)
    files.create_dir(folder, recursive=True)
    attempt = f"{folder}/.{name}.{uuid.uuid4().hex}"
    with files.open_output_stream(attempt) as stream:
        stream.write(data)
    files.move(attempt, path)


def _oracles(spark: SparkSession, schema: Schema, config: WorldConfig, out: str,
             start: int) -> tuple[int, float | None, float | None]:
    """Rows used, AUC of the truth and of the best attribute-only predictor on the last day's impressions as written."""
    log = schema.impressions
    last_day = start + (max(config.days, config.behavior_days) - 1) * DAY_SECONDS
    written = spark.read.csv(spark_uri(join(out, log.file)), header=True, sep=log.delimiter)
    rows = written.toDF(*(c.name for c in log.columns)).select(
        *(F.col(name).cast("long").alias(name) for name in (log.user, log.item, log.time, log.label)))
    sample = rows.where(F.col(log.time) >= last_day).orderBy(
        F.xxhash64(log.user, log.item, log.time), log.user, log.item, log.time).limit(ORACLE_ROWS).toPandas()
    if sample[log.label].nunique() < 2:
        logger.warning("the last day's %d impressions have one class only: no oracle AUC", len(sample))
        return len(sample), None, None
    world = World.load(join(out, WORLD))
    users, items, labels = (sample[c].to_numpy() for c in (log.user, log.item, log.label))
    return (len(sample), float(roc_auc_score(labels, world.click_probability(users, items))),
            float(roc_auc_score(labels, world.attribute_only_probability(users, items))))
