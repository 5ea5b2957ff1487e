"""Raw files as lines, and lines as typed columns with a reason for each one that cannot stand. No row is lost here.

Cells are judged by regular expressions before any cast: Spark's casts trim white space and control characters. The
patterns are possessive, so that a line of a million quotes cannot exhaust the stack, and end in `\\z`, because `$` also
matches before a line break.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import reduce
from typing import Mapping
from zoneinfo import ZoneInfo

from pyarrow import ArrowException, fs
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mail_core.errors import InputError
from mail_core.lake import files
from mail_core.schema.definition import DAY, BehaviorLog, Column, ImpressionLog, RawFile, Schema, Snapshot

FILE, LINE, VALID, REASON = "file", "line", "valid", "reason"
HEADER = "header"
"""The reason of header lines: one a file is no row, more are quarantined as `repeated_header`."""

_BOM = "\ufeff"
_INTEGER = r"^-?[0-9]++\z"
_PATTERNS = {"int": _INTEGER, "long": _INTEGER, "epoch_seconds": _INTEGER,
             "double": r"^-?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+\z"}
_CASTS = {"int": "int", "long": "bigint", "epoch_seconds": "bigint", "double": "double", "string": "string"}
_YEARS_1_TO_9999 = (-62135596800, 253402300799)  # what a timestamp can hold without overflow


@dataclass(frozen=True, kw_only=True)
class Source:
    """One raw file as it was found."""

    raw: RawFile
    paths: tuple[str, ...]
    """URIs of its parts; one where it is a single file."""
    folder: bool
    headers: Mapping[str, str]
    """Name of a part, below the source folder -> its header line."""


def find_source(folder: str, raw: RawFile) -> Source:
    """`<file>`, `<file>.gz` or the parts of the folder `<file>` below the URI `folder`, with headers checked.

    Raises:
        InputError: none of them or two of them exist, the folder has no part, or a part's header differs.
    """
    system, root = files.filesystem(folder)
    candidates = [f"{root}/{raw.file}", f"{root}/{raw.file}.gz"]
    found = [info for info in system.get_file_info(candidates) if info.type != fs.FileType.NotFound]
    if len(found) != 1:
        raise InputError(f"{folder}: expected either {raw.file} or {raw.file}.gz or a folder {raw.file} of part files, "
                         f"found {' and '.join(info.base_name for info in found) or 'none of them'}")
    is_folder = found[0].type == fs.FileType.Directory
    infos = system.get_file_info(fs.FileSelector(found[0].path)) if is_folder else found
    # Spark skips these names too: markers of its own, not data.
    parts = sorted((i for i in infos if i.type == fs.FileType.File and i.base_name[0] not in "_."),
                   key=lambda info: info.path)
    if not parts:
        raise InputError(f"{folder}: the folder {raw.file} holds no part file")
    above = f"{raw.file}/" if is_folder else ""
    headers = {above + part.base_name: _header(system, part.path, raw, f"{folder}: {above}{part.base_name}")
               for part in parts}
    return Source(raw=raw, folder=is_folder, headers=headers,
                  paths=tuple(files.spark_uri(files.join(folder, name)) for name in headers))


def _header(system: fs.FileSystem, path: str, raw: RawFile, shown: str) -> str:
    expected = [c.header for c in raw.columns]
    try:
        with system.open_input_stream(path, compression="detect") as stream:
            head = stream.read(1 << 16)
    except (OSError, ArrowException) as error:
        raise InputError(f"{shown}: cannot be read: {error}") from error
    line = head.split(b"\n", 1)[0].decode("utf-8", errors="replace").removeprefix(_BOM).removesuffix("\r")
    cells = next(csv.reader([line], delimiter=raw.delimiter), [])
    if cells != expected:
        raise InputError(f"{shown}: the header line is {line[:300]!r}, expected {raw.delimiter.join(expected)!r}")
    return line


def read_lines(spark: SparkSession, source: Source) -> DataFrame:
    """Every line of every part: file (name below the source folder), line (without its line end), valid (UTF-8).

    Bytes that are no UTF-8 stand in `line` as U+FFFD.
    """
    # Spark takes paths as patterns; only "\n" ends a line, lest a stray "\r" make two lines of one.
    paths = [re.sub(r"([\\{}\[\]*?])", r"\\\1", path) for path in source.paths]
    text = spark.read.option("lineSep", "\n").text(paths)
    # Spark gives names as in a URI, where "+" stands for itself.
    name, line = F.url_decode(F.replace("_metadata.file_name", F.lit("+"), F.lit("%2B"))), F.col(LINE)
    lines = text.select((F.concat(F.lit(f"{source.raw.file}/"), name) if source.folder else name).alias(FILE),
                        F.make_valid_utf8("value").alias(LINE), F.is_valid_utf8("value").alias(VALID))
    return lines.withColumn(LINE, F.when(line.endswith("\r"), F.substring(line, F.lit(1), F.length(line) - 1))
                            .otherwise(line))


def parse_lines(lines: DataFrame, source: Source, schema: Schema, delivery: date | None) -> DataFrame:
    """file, line, valid -> file, line, reason (NULL: the row stands), the typed columns by name, day (local; of logs).
    """
    raw, cells = source.raw, F.col("_cells")
    rows = lines.select(FILE, LINE, _line_problem(source).alias("_problem"), _split(raw.delimiter).alias("_cells"))
    rows = rows.select(FILE, LINE, F.when(F.col("_problem").isNotNull(), F.col("_problem"))
                       .when(F.size(cells) != len(raw.columns), "wrong_column_count").alias("_problem"),
                       *[F.get(cells, F.lit(i)).alias(_cell(c)) for i, c in enumerate(raw.columns)])
    rows = rows.select(FILE, LINE, "_problem", *[_cell(c) for c in raw.columns],
                       *[_value(c).alias(c.name) for c in raw.columns])
    problems = [F.col("_problem"), *(_column_problem(c, raw) for c in raw.columns), _label_problem(raw)]
    time_column = _time_column(raw)
    if time_column is not None:
        problems.append(_time_problem(time_column, schema, delivery))
    typed = [_timestamp(c.name) if c.type == "epoch_seconds" else F.col(c.name) for c in raw.columns]
    parsed = rows.select(FILE, LINE, F.coalesce(*problems).alias(REASON), *typed)
    if time_column is None:
        return parsed
    return parsed.withColumn(DAY, F.to_date(F.from_utc_timestamp(time_column, schema.timezone)))


def _time_column(raw: RawFile) -> str | None:
    return raw.time if isinstance(raw, (ImpressionLog, BehaviorLog)) else None


def _key_columns(raw: RawFile) -> tuple[str, ...]:
    if isinstance(raw, ImpressionLog):
        return raw.user, raw.time, raw.item
    if isinstance(raw, BehaviorLog):
        return raw.user, raw.time
    assert isinstance(raw, Snapshot)
    return (raw.key,)


def _line_problem(source: Source) -> SparkColumn:
    line, d = F.col(LINE), re.escape(source.raw.delimiter)
    cell = _field(d)
    return (F.when(F.ltrim(line) == "", "blank_line")
            .when(line.isin(sorted({mark + text for text in source.headers.values() for mark in ("", _BOM)})), HEADER)
            .when(~F.col(VALID), "invalid_utf8")
            .when(line.contains("\0"), "nul_byte")
            .when(line.contains('"') & ~line.rlike(rf"^{cell}(?:{d}{cell})*+\z"), "unparsable"))


def _field(delimiter: str) -> str:
    return rf'(?:"(?:[^"]++|"")*+"|[^"{delimiter}]*+)'


def _split(delimiter: str) -> SparkColumn:
    """Cells of a line; only lines with a quote take the slow way."""
    line, d = F.col(LINE), re.escape(delimiter)
    quoted = F.regexp_extract_all(F.concat(F.lit(delimiter), line), F.lit(rf"{d}({_field(d)})"), F.lit(1))
    unquoted = F.transform(quoted, lambda c: F.when(c.startswith('"'), F.replace(
        F.substring(c, F.lit(2), F.length(c) - 2), F.lit('""'), F.lit('"'))).otherwise(c))
    return F.when(line.contains('"'), unquoted).otherwise(F.split(line, d, -1))


def _cell(column: Column) -> str:
    return f"_cell_{column.name}"


def _is_null(column: Column) -> SparkColumn:
    cell = F.col(_cell(column))
    return cell.isin(list(column.nulls)) if column.nulls else F.lit(False)


def _well_formed(text: SparkColumn, column: Column) -> SparkColumn:
    return text.rlike(_PATTERNS[column.type]) if column.type in _PATTERNS else F.lit(True)


def _value(column: Column) -> SparkColumn:
    """The typed value; NULL where the cell means NULL, is malformed or does not fit the type. Times stay seconds."""
    def cast(text: SparkColumn) -> SparkColumn:
        return F.when(_well_formed(text, column), text.try_cast(_CASTS[column.type]))
    cell = F.col(_cell(column))
    values = F.transform(F.split(cell, re.escape(column.separator), -1), cast) if column.separator else cast(cell)
    return F.when(~_is_null(column), values)


def _column_problem(column: Column, raw: RawFile) -> SparkColumn:
    cell, value = F.col(_cell(column)), F.col(column.name)
    is_key = column.name in _key_columns(raw)
    absent = f"{'null_key' if is_key else 'null_value'}:{column.name}"
    if column.separator:
        texts = F.split(cell, re.escape(column.separator), -1)
        empty = F.exists(texts, lambda text: text == "")
        malformed = ~F.forall(texts, lambda text: _well_formed(text, column))
        outside = F.exists(value, lambda entry: ~_in_range(entry, column))
        unknown = F.exists(value, lambda entry: ~entry.isin(list(column.values)))
    else:
        empty = (cell == "") | (cell == "NULL" if column.type != "string" else F.lit(False))
        malformed, outside = ~_well_formed(cell, column), ~_in_range(value, column)
        unknown = ~value.isin(list(column.values))
    problem = (F.when(_is_null(column), F.lit(absent if is_key else None).cast("string"))
               .when(empty, absent)
               .when(malformed, f"not_a_number:{column.name}"))
    if column.name != _time_column(raw):  # whose range is judged by `_time_problem`
        problem = problem.when(outside, f"out_of_range:{column.name}")
    return problem.when(unknown, f"unknown_value:{column.name}") if column.values else problem


def _in_range(value: SparkColumn, column: Column) -> SparkColumn:
    """Whether a well-formed value fits its type and the schema's bounds."""
    bounds = [value.isNotNull()]
    if column.type == "epoch_seconds":
        bounds.append(value.between(*_YEARS_1_TO_9999))
    if column.type == "double":
        bounds.append(F.abs(value) < float("inf"))
    if column.minimum is not None:
        bounds.append(value >= column.minimum)
    if column.maximum is not None:
        bounds.append(value <= column.maximum)
    return reduce(lambda a, b: a & b, bounds)


def _label_problem(raw: RawFile) -> SparkColumn:
    if not isinstance(raw, ImpressionLog):
        return F.lit(None).cast("string")
    label = F.col(raw.label)
    wrong = ~label.isin(0, 1)
    if raw.negative_label is not None:
        negative = F.col(raw.negative_label)
        wrong = wrong | ~negative.isin(0, 1) | (label == negative)
    problem = F.when(wrong, "contradictory_label")
    if raw.conversion is None:
        return problem
    conversion = F.col(raw.conversion)
    return problem.when(~conversion.isin(0, 1) | (conversion > label), "contradictory_conversion")


def _time_problem(column: str, schema: Schema, delivery: date | None) -> SparkColumn:
    """Bounds in seconds, local midnights of the schema's zone; NULL seconds are a numeral too large to be a time."""
    zone, value = ZoneInfo(schema.timezone), F.col(column)

    def midnight(day: date) -> int:
        return int(datetime.combine(day, time(), zone).timestamp())

    last = schema.last_day or delivery or datetime.now(zone).date()
    problem = F.when(value.isNull() | (value < midnight(schema.first_day))
                     | (value >= midnight(last + timedelta(days=1))), "impossible_time")
    if delivery is None:
        return problem
    return (problem.when(value < midnight(delivery), "late")
            .when(value >= midnight(delivery + timedelta(days=1)), "future"))


def _timestamp(column: str) -> SparkColumn:
    value = F.col(column)
    return F.when(value.between(*_YEARS_1_TO_9999), F.timestamp_seconds(value)).alias(column)
