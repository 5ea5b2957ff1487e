"""Raw log files -> raw tables and quarantine. Every input line is accounted for: row, duplicate or quarantined."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Mapping

from py4j.protocol import Py4JJavaError
from pyarrow import fs
from pyspark.errors import PySparkException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from mail_core.errors import InputError
from mail_core.lake import files
from mail_core.lake.tables import RAW_TABLES, ROLES, Lake
from mail_core.schema.definition import DAY, ImpressionLog, RawFile, Schema, Snapshot
from mail_core.spark.parsing import FILE, HEADER, LINE, REASON, Source, find_source, parse_lines, read_lines

logger = logging.getLogger(__name__)

DUPLICATE, DUPLICATE_KEY, REPEATED_HEADER = "duplicate", "duplicate_key", "repeated_header"
_BROKEN_GZIP = ("EOFException", "ZipException", "not a gzip file", "invalid gzip", "incorrect header check")


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What became of the lines of one raw file (all its parts)."""

    role: str
    """impressions, behaviors, users or items."""
    file: str
    rows_in: int
    """Lines less one header a part."""
    rows_out: int
    """Rows in the table, counted there after the write."""
    duplicates: int
    """Exact copies of an impression, or of a row of a snapshot, that were dropped."""
    quarantined: Mapping[str, int]
    """Reason -> rows, counted in the quarantine table after the write."""
    days: tuple[date, ...]
    """Partitions that were replaced."""


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The outcome of one ingestion."""

    day: date
    """Partition of the snapshots and of the quarantine: the delivery's day, or the last day with impressions."""
    files: tuple[FileReport, ...]

    def table(self) -> str:
        """Rows in, out, quarantined and duplicate by file, then the quarantined by reason."""
        lines = [f"{'file':<24} {'rows in':>13} {'rows out':>13} {'quarantined':>13} {'duplicates':>13}"]
        for f in self.files:
            lines.append(f"{f.file:<24} {f.rows_in:>13,} {f.rows_out:>13,} {sum(f.quarantined.values()):>13,} "
                         f"{f.duplicates:>13,}")
        reasons = [(f.file, reason, n) for f in self.files for reason, n in sorted(f.quarantined.items())]
        if reasons:
            lines += ["", f"{'quarantined of':<24} {'reason':<40} {'rows':>13}"]
            lines += [f"{file:<24} {reason:<40} {n:>13,}" for file, reason, n in reasons]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Input:
    """One raw file judged (scan 1)."""

    role: str
    source: Source
    rows: DataFrame
    """As `judge_rows` gives them."""
    counts: Counter[str | None]
    """Rows by reason, None for those that stand; header lines taken out."""
    days: tuple[date, ...]
    """Local days of the rows that stand (logs only)."""
    repeated: Mapping[str, int]
    """Part -> header lines after its first."""

    @property
    def quarantined(self) -> dict[str, int]:
        return {str(r): n for r, n in self.counts.items() if r not in (None, DUPLICATE) and n}


def ingest_logs(spark: SparkSession, schema: Schema, source: str, lake_uri: str, delivery: date | None) -> IngestReport:
    """Bring the raw files of `source` into the lake: the quarantine first, then each table, in one commit each.

    With `delivery` the folder holds that local day's logs (`<source>/<delivery>` where it exists): earlier rows are
    quarantined as `late`, later ones as `future`, and no other day changes. Without it, the folder is the whole truth
    for every local day it holds. Each file is read three times at most. A run that was cut off is simply run again.

    Of two runs of one day at once the first to commit the day's quarantine wins; the other one finds that and ends
    before it has written anything, so the tables never mix two deliveries of a day. (A backfill claims each table's
    days only where its snapshot day, and so its quarantine, differs; a later table's conflict then ends it between two
    tables, and running it again alone heals that.)

    Raises:
        InputError: a file is missing, doubled or has another header; a day outside the schema's; no impression, user or
            item at all is left. Nothing has been written then. Or another run replaced the same days meanwhile.
        RuntimeError: rows in differ from rows out + quarantined + duplicates, as the tables have them.
    """
    lake, folder = Lake(spark, lake_uri, schema), _source_folder(source, delivery)
    if delivery is not None and not schema.first_day <= delivery <= (schema.last_day or delivery):
        raise InputError(f"day {delivery}: expected a day of the schema, {schema.first_day} to "
                         f"{schema.last_day or 'today'}")
    since = lake.versions("quarantine", *RAW_TABLES.values())
    sources = {role: find_source(folder, getattr(schema, role)) for role in ROLES}
    inputs = {role: _judge(spark, role, sources[role], schema, delivery) for role in ROLES}
    for role in ("impressions", "users", "items"):
        if not inputs[role].counts[None]:
            raise InputError(f"{folder}: no row of {sources[role].raw.file} stands"
                             f"{f' for {delivery}' if delivery else ''}; rows by reason: "
                             f"{inputs[role].quarantined or 'none at all'}")
    if not inputs["behaviors"].counts[None]:
        logger.warning("%s: no behaviour of %s stands", folder, sources["behaviors"].raw.file)
    day = delivery or max(inputs["impressions"].days)
    quarantined = _write_quarantine(lake, inputs, day, since["quarantine"])
    # Impressions last: a day that has them has everything else of its delivery too.
    reports = {role: _write(lake, inputs[role], day, delivery, quarantined[role], since[RAW_TABLES[role]])
               for role in reversed(ROLES)}
    return IngestReport(day=day, files=tuple(reports[role] for role in ROLES))


def judge_rows(parsed: DataFrame, raw: RawFile) -> DataFrame:
    """`parse_lines`' rows, with reason `duplicate` for exact copies (impressions, snapshots) and `duplicate_key` for a
    snapshot's further, different rows of a key; the one that sorts first by its values is kept."""
    values = [F.col(c.name) for c in raw.columns]
    # Rows with a reason already are spread by their lines, lest a file of bad rows fall to one task.
    apart = F.when(F.col(REASON).isNotNull(), F.xxhash64(LINE))
    copy: SparkColumn
    if isinstance(raw, ImpressionLog):
        order = Window.partitionBy(*values, apart).orderBy(F.col(REASON))
        further = F.when(F.row_number().over(order) > 1, DUPLICATE)
    elif isinstance(raw, Snapshot):
        order = Window.partitionBy(F.col(raw.key), apart).orderBy(*[value.asc_nulls_last() for value in values])
        copy = F.struct(*values).eqNullSafe(F.first(F.struct(*values)).over(order))
        further = F.when(F.row_number().over(order) > 1, F.when(copy, DUPLICATE).otherwise(DUPLICATE_KEY))
    else:
        return parsed
    judged = parsed.withColumn("_further", further)
    return judged.withColumn(REASON, F.coalesce(REASON, "_further")).drop("_further")


def _source_folder(source: str, delivery: date | None) -> str:
    folder = files.validated_lake_uri(source, "source")
    below = files.join(folder, str(delivery))
    for candidate in ([below] if delivery is not None else []) + [folder]:
        system, path = files.filesystem(candidate)
        if system.get_file_info(path).type == fs.FileType.Directory:
            return candidate
    raise InputError(f"source {source!r}: no such folder")


def _judge(spark: SparkSession, role: str, source: Source, schema: Schema, delivery: date | None) -> _Input:
    rows = judge_rows(parse_lines(read_lines(spark, source), source, schema, delivery), source.raw)
    by_day = F.col(DAY) if DAY in rows.columns else F.lit(None).cast("date")
    try:
        groups = rows.groupBy(FILE, REASON, F.when(F.col(REASON).isNull(), by_day).alias(DAY)).count().collect()
    except (PySparkException, Py4JJavaError) as error:
        if any(sign in str(error) for sign in _BROKEN_GZIP):
            reason = str(error).splitlines()[0][:300]
            raise InputError(f"{', '.join(source.headers)}: broken gzip data: {reason}") from error
        raise
    counts: Counter[str | None] = Counter()
    repeated = {part: -1 for part in source.headers}
    for group in groups:
        if group[REASON] == HEADER:
            repeated[group[FILE]] += group["count"]
        else:
            counts[group[REASON]] += group["count"]
    assert min(repeated.values()) >= 0, f"a part whose header was read has none in Spark's lines: {repeated}"
    counts[REPEATED_HEADER] = sum(repeated.values())
    days = sorted({group[DAY] for group in groups if group[DAY] is not None})
    return _Input(role=role, source=source, rows=rows, counts=counts, days=tuple(days), repeated=repeated)


def _write_quarantine(lake: Lake, inputs: Mapping[str, _Input], day: date, since: int) -> dict[str, dict[str, int]]:
    """Replace the day's quarantine by what all files leave there (scan 2, of those files alone).

    Returns role -> reason -> rows, as the table has them.
    """
    found = lake.spark.createDataFrame([], lake.definitions["quarantine"].spark_schema)
    for role, given in inputs.items():
        if given.quarantined:
            kept = given.rows.where(F.col(REASON).isNotNull() & ~F.col(REASON).isin(DUPLICATE, HEADER))
            found = found.unionByName(_quarantine_rows(kept.select(FILE, LINE, REASON), role, day))
        if any(given.repeated.values()):
            copies = [(part, given.source.headers[part], REPEATED_HEADER, n) for part, n in given.repeated.items() if n]
            frame = lake.spark.createDataFrame(copies, f"{FILE} string, {LINE} string, {REASON} string, n int")
            frame = frame.withColumn("n", F.explode(F.array_repeat(F.lit(1), F.col("n")))).drop("n")
            found = found.unionByName(_quarantine_rows(frame, role, day))
    lake.replace_days("quarantine", found, [day], since=since)
    written: dict[str, dict[str, int]] = {role: {} for role in inputs}
    for row in lake.read("quarantine").where(F.col(DAY) == F.lit(day)).groupBy("source", REASON).count().collect():
        written[row["source"]][row[REASON]] = row["count"]
    for role, given in inputs.items():
        if written[role] != given.quarantined:
            raise RuntimeError(f"{given.source.raw.file}: quarantine holds {written[role]}, expected "
                               f"{given.quarantined}: did the file change while it was read? No raw table has changed")
    return written


def _quarantine_rows(rows: DataFrame, role: str, day: date) -> DataFrame:
    return rows.select(F.lit(day).alias(DAY), F.lit(role).alias("source"), FILE, LINE, REASON)


def _write(lake: Lake, given: _Input, day: date, delivery: date | None, quarantined: Mapping[str, int],
           since: int) -> FileReport:
    """Replace the partitions of one table by the rows that stand (scan 3), and check that none is missing."""
    rows, raw = given.rows.where(F.col(REASON).isNull()), given.source.raw
    snapshot = isinstance(raw, Snapshot)
    days = (day,) if snapshot or delivery is not None or not given.days else given.days
    columns = [F.lit(day).alias(DAY) if snapshot else F.col(DAY), *[F.col(c.name) for c in raw.columns]]
    written = lake.replace_days(RAW_TABLES[given.role], rows.select(*columns), days, since=since)
    report = FileReport(role=given.role, file=raw.file, rows_in=sum(given.counts.values()), rows_out=written, days=days,
                        duplicates=given.counts[DUPLICATE], quarantined=quarantined)
    if report.rows_in != written + sum(quarantined.values()) + report.duplicates:
        raise RuntimeError(f"{raw.file}: rows in differ from rows out + quarantined + duplicates: {report}")
    return report
