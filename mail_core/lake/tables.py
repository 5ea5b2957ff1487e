"""The Delta tables of a lake: one definition each, and the only code that reads or writes them."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Iterator, Mapping, Sequence

import pyarrow as pa
from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyarrow.fs import FileType
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import ArrayType, DataType, StructType

from mail_core.errors import InputError
from mail_core.lake import files
from mail_core.lake.concurrency import Replacement, latest_version, one_writer, replacements_after, replacing_seconds
from mail_core.lake.sql import sql_literal
from mail_core.schema.arrow import column_type, features_schema, raw_fields
from mail_core.schema.definition import CONVERSION, DAY, ITEM, LABEL, USER, Column, RawFile, Schema

ROLES = ("impressions", "behaviors", "users", "items")
"""The raw files of a dataset, in the order of ingestion; also the values of `quarantine.source`."""
RAW_TABLES = {"impressions": "raw_impressions", "behaviors": "raw_behaviors", "users": "users", "items": "items"}
_RERUN = "Let one run of a day end before the next; run this one again if its rows are wanted"
_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, kw_only=True)
class TableDefinition:
    """One Delta table of the lake, partitioned by `day`."""

    name: str
    columns: pa.Schema
    """Names, types and nullability, in the table's order."""
    key: tuple[str, ...] = ()
    """Columns that identify a row; empty where equal rows are legitimate."""
    constraints: Mapping[str, str] = field(default_factory=dict)
    """CHECK constraints that Delta enforces at each write: name -> SQL."""
    optimize_write: bool = True
    """Whether Delta shuffles rows before it writes them, into files of about 128 MiB whatever the number of tasks."""

    @property
    def spark_schema(self) -> StructType:
        """The columns as Spark types."""
        return from_arrow_schema(self.columns)


def table_definitions(schema: Schema) -> Mapping[str, TableDefinition]:
    """Every table that a dataset has, by name."""
    imp = schema.impressions
    user, item = (pa.field(name, column_type(imp.column(column)), nullable=False)
                  for name, column in ((USER, imp.user), (ITEM, imp.item)))
    labels = {f"{imp.label}_allowed": f"{imp.label} IN (0, 1)"}
    if imp.negative_label is not None:
        labels[f"{imp.label}_{imp.negative_label}"] = f"{imp.label} + {imp.negative_label} = 1"
    outcomes = {LABEL: f"{LABEL} IN (0, 1)"}
    if imp.conversion is not None:
        labels[f"{imp.conversion}_{imp.label}"] = f"{imp.conversion} BETWEEN 0 AND {imp.label}"
        outcomes[CONVERSION] = f"{CONVERSION} BETWEEN 0 AND {LABEL}"
    definitions = [
        TableDefinition(name="raw_impressions", columns=_with_day(raw_fields(imp)),
                        constraints=labels | _value_constraints(imp)),
        TableDefinition(name="raw_behaviors", columns=_with_day(raw_fields(schema.behaviors)),
                        constraints=_value_constraints(schema.behaviors)),
        TableDefinition(name="users", columns=_with_day(raw_fields(schema.users)), key=(DAY, schema.users.key),
                        constraints=_value_constraints(schema.users)),
        TableDefinition(name="items", columns=_with_day(raw_fields(schema.items)), key=(DAY, schema.items.key),
                        constraints=_value_constraints(schema.items)),
        TableDefinition(name="quarantine", columns=_with_day(_fields(source="string", file="string", line="string",
                                                                     reason="string")),
                        constraints={"source": f"source IN ({_literals(ROLES)})"}),
        # Wide rows from few large tasks: the shuffle would cost a quarter of the job and change little.
        TableDefinition(name="features", columns=features_schema(schema), constraints=outcomes, optimize_write=False),
        TableDefinition(name="evaluations", key=(DAY, "model_name", "model_version", "against", "cohort", "metric"),
                        columns=_with_day([*_fields(model_name="string", model_version="string"),
                                           pa.field("against", pa.string()), *_fields(cohort="string", metric="string"),
                                           pa.field("value", pa.float64()),
                                           pa.field("evaluated_at", _UTC, nullable=False)])),
        TableDefinition(name="checks", key=(DAY, "figure"),
                        columns=_with_day([*_fields(figure="string", value="double"),
                                           *(pa.field(name, pa.float64()) for name in ("low", "high")),
                                           pa.field("history", pa.list_(pa.float64())), *_fields(broken="bool"),
                                           pa.field("note", pa.string()),
                                           pa.field("checked_at", _UTC, nullable=False)])),
        TableDefinition(name="promotions", key=(DAY, "model_name"), columns=_with_day(_promotion_fields()),
                        constraints={"decision": "decision IN ('promoted', 'kept')"}),
        TableDefinition(name="ctr_scores", key=(DAY, USER, ITEM), constraints={"ctr": "ctr >= 0 AND ctr <= 1"},
                        columns=_with_day([user, item, *_fields(ctr="double"),
                                           *(pa.field(name, pa.float64()) for name in schema.conversion_scores),
                                           *_fields(is_new_user="bool", model_name="string", model_version="string"),
                                           pa.field("scored_at", _UTC, nullable=False)])),
    ]
    return {definition.name: definition for definition in definitions}


class Lake:
    """The tables of one dataset below one URI.

    Raises:
        InputError: the URI is none, or names a file.
    """

    def __init__(self, spark: SparkSession, uri: str, schema: Schema):
        self.spark, self.uri = spark, files.validated_lake_uri(uri)
        self.definitions = table_definitions(schema)
        self._opened = time.time()

    def folder(self, table: str) -> str:
        """URI of a table, which need not be there; KeyError for a table that the lake does not define."""
        return files.join(self.uri, self.definitions[table].name)

    def path(self, table: str) -> str:
        """`folder` as Spark takes it."""
        return files.spark_uri(self.folder(table))

    def exists(self, table: str) -> bool:
        """Whether the table has been written."""
        return DeltaTable.isDeltaTable(self.spark, self.path(table))

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """The whole table at `version`; None: at its present one.

        Raises:
            InputError: the table does not exist or has no such version, or was written by another schema.
        """
        path = self.path(table)
        if not self.exists(table):
            raise InputError(f"no table {table} at {path}: the job that writes it has not run on this lake")
        if version is None:
            frame, what = self.spark.read.format("delta").load(path), "as it stands"
        else:
            frame, what = self._at(table, version), f"at version {version}"
        self._check_types(table, frame.schema, f"{path} {what} (another schema wrote it?)")
        return frame.select(*self.definitions[table].columns.names)

    def days(self, table: str, first: date | None = None, last: date | None = None) -> list[date]:
        """The days that have rows, in order, within [first, last]. Raises InputError as `read` does."""
        found = {day for day, _ in _day_files(self.read(table))}
        return sorted(day for day in found if (first is None or day >= first) and (last is None or day <= last))

    def read_days(self, table: str, days: Sequence[date], version: int) -> DataFrame:
        """The rows of `days` as they were at `version`.

        Raises:
            InputError: as `read`; a day had no rows then, or its files have been removed since.
        """
        frame, path = self.read(table, version), self.folder(table)
        named = [(day, name) for day, name in _day_files(frame) if day in days]
        missing = sorted(set(days) - {day for day, _ in named})
        if missing:
            raise InputError(f"table {table} at {path}: version {version} has no rows for "
                             f"{', '.join(map(str, missing))}; was the table made anew since?")
        fs, root = files.filesystem(path)
        found = fs.get_file_info([files.join(root, name) for _, name in named])
        gone = sorted({day for (day, _), info in zip(named, found) if info.type != FileType.File})
        if gone:
            raise InputError(f"table {table} at {path}: the files of version {version} for {', '.join(map(str, gone))} "
                             f"have been removed (VACUUM); bring them back from a copy of the table")
        return frame.where(F.col(DAY).isin(list(days)))

    def _at(self, table: str, version: int) -> DataFrame:
        path = self.path(table)
        try:
            return self.spark.read.format("delta").option("versionAsOf", version).load(path)
        except (PySparkException, Py4JJavaError) as error:
            found = re.search(r"Cannot time travel Delta table to version \d+. (.*\])", str(error))
            if not found:
                raise
            raise InputError(f"no version {version} of table {table} at {path}: it was made anew, or its log has been "
                             f"cleaned up since (Delta: {found[1]}); bring the table back from a copy") from error

    def version(self, table: str) -> int:
        """Delta's version number of the table. Raises InputError where it does not exist."""
        if not self.exists(table):
            raise InputError(f"no table {table} at {self.path(table)}")
        row = DeltaTable.forPath(self.spark, self.path(table)).history(1).select("version").first()
        assert row is not None, "a Delta table has at least one version"
        return row["version"]

    def seconds(self, table: str, day: date) -> float | None:
        """As of `replacing_seconds`, the table not needing to be there."""
        return replacing_seconds(self.folder(table), day)

    def versions(self, *tables: str) -> dict[str, int]:
        """Table -> its version now (ABSENT without one), for `replace_days(since=...)`; no Spark job."""
        return {table: latest_version(self.folder(table)) for table in tables}

    def replace_days(self, table: str, df: DataFrame, days: Sequence[date], where: str | None = None,
                     since: int | None = None) -> int:
        """Replace the rows of `days` (narrowed by the SQL condition `where`) by `df`, in one commit; rows now there.

        `df` has the definition's columns by name, in any order. An empty `df` empties the days. A second run with equal
        `df` leaves equal content; a crash leaves the version before. Of two runs that replace the same days at once the
        first to commit wins: `since` is the table's version when the caller's work began, and whoever finds the days
        replaced after it, now or while writing, ends. Runs of different days do not hinder each other.

        Raises:
            InputError: columns or types differ from the definition, a row lies outside `days` or `where`, a row
                violates a constraint of the table, or another run replaced these rows; nothing has been written then.
        """
        if not days:
            raise InputError(f"{self.path(table)}: no days given to replace")
        self._check_types(table, df.schema, "the rows to be written")
        path, mine = self.path(table), Replacement(days=tuple(sorted(set(days))), where=where, began=self._opened)
        predicate = f"{DAY} IN ({', '.join(f'DATE{day.isoformat()!r}' for day in mine.days)})"
        if where is not None:
            predicate = f"{predicate} AND ({where})"
        definition = self.definitions[table]
        writer = (df.select(*definition.columns.names).write.format("delta").mode("overwrite")
                  .option("optimizeWrite", str(definition.optimize_write).lower()))
        with one_writer(self.folder(table)):
            if since is not None:
                self._check_unreplaced(table, mine, since)
            with _refusals(f"{path} as it stands"):
                self._ensure(table)
            with _refusals(f"{path}: rows to replace {predicate}"):
                writer.option("userMetadata", str(mine)).option("replaceWhere", predicate).save(path)
            return self.spark.read.format("delta").load(path).where(predicate).count()

    def _check_unreplaced(self, table: str, mine: Replacement, since: int) -> None:
        for version, other in replacements_after(self.folder(table), since).items():
            if other.overlaps(mine):
                shared = sorted(set(mine.days) & set(other.days))
                raise InputError(f"table {table}: conflict: another run replaced {', '.join(map(str, shared))} "
                                 f"(version {version}) after this run began; this run wrote nothing there. {_RERUN}")

    def _check_types(self, table: str, found: StructType, what: str) -> None:
        expected = self.definitions[table].spark_schema
        types = {column.name: column.dataType for column in found}
        for column in expected:
            if column.name not in types:
                raise InputError(f"table {table}: {what}: column {column.name}: expected "
                                 f"{column.dataType.simpleString()}, found no such column")
            if _nullable(types[column.name]) != _nullable(column.dataType):
                raise InputError(f"table {table}: {what}: column {column.name}: expected "
                                 f"{column.dataType.simpleString()}, found {types[column.name].simpleString()}")
        for name in types:
            if name not in expected.names:
                raise InputError(f"table {table}: {what}: column {name}: expected no such column, found "
                                 f"{types[name].simpleString()}")

    def _ensure(self, table: str) -> None:
        """Create the table where it is absent; give an older one the constraints of today's schema."""
        definition, path = self.definitions[table], self.path(table)
        wanted = {f"delta.constraints.{name.lower()}": sql for name, sql in definition.constraints.items()}
        if not self.exists(table):
            builder = DeltaTable.createIfNotExists(self.spark).location(path).addColumns(definition.spark_schema)
            for name, value in wanted.items():
                builder = builder.property(name, value)
            builder.partitionedBy(DAY).execute()
            return
        self._check_types(table, self.spark.read.format("delta").load(path).schema, f"{path} as it stands")
        row = DeltaTable.forPath(self.spark, path).detail().select("properties").first()
        assert row is not None, "a Delta table has one row of details"
        for name, sql in wanted.items():
            if _plain(row["properties"].get(name, "")) != _plain(sql):
                alter, constraint = f"ALTER TABLE delta.`{path}`", f"`{name.removeprefix('delta.constraints.')}`"
                self.spark.sql(f"{alter} DROP CONSTRAINT IF EXISTS {constraint}")
                self.spark.sql(f"{alter} ADD CONSTRAINT {constraint} CHECK ({sql})")


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Turn Delta's refusal of the rows themselves, or of a commit that another run was faster with, into an InputError;
    every other failure passes."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        conflict = re.search(r"\[(DELTA_(?:CONCURRENT_\w+|METADATA_CHANGED|PROTOCOL_CHANGED)\w*)[\].]", str(error))
        if conflict:
            raise InputError(f"{where}: conflict: another run committed first (Delta: {conflict[1]}); this run wrote "
                             f"nothing there. {_RERUN}") from error
        found = re.findall(r"\[(DELTA_\w+)\] (.*?)(?=\n\[|\n\tat |\Z)", str(error), flags=re.DOTALL)
        kinds = {"DELTA_REPLACE_WHERE_MISMATCH", "DELTA_VIOLATE_CONSTRAINT_WITH_VALUES",
                 "DELTA_NOT_NULL_CONSTRAINT_VIOLATED", "DELTA_NEW_CHECK_CONSTRAINT_VIOLATION"}
        if not found or found[0][0] not in kinds:
            raise
        raise InputError(f"{where}: {' '.join(found[-1][1].split())}") from error


def _day_files(frame: DataFrame) -> list[tuple[date, str]]:
    """(day, name below the table) of a whole table's live files: neither rows nor footers are read."""
    found = (re.search(rf"/({DAY}=(\d{{4}}-\d\d-\d\d)/[^/]*)$", name) for name in frame.inputFiles())
    return [(date.fromisoformat(match[2]), match[1]) for match in found if match]


def _plain(sql: str) -> str:
    return re.sub(r"[\s`]", "", sql)


def _nullable(kind: DataType) -> DataType:
    return ArrayType(_nullable(kind.elementType), True) if isinstance(kind, ArrayType) else kind


def _fields(**types: str) -> list[pa.Field]:
    return [pa.field(name, pa.type_for_alias(kind), nullable=False) for name, kind in types.items()]


def _with_day(columns: list[pa.Field]) -> pa.Schema:
    return pa.schema([pa.field(DAY, pa.date32(), nullable=False), *columns])


def _promotion_fields() -> list[pa.Field]:
    """The fields of `Promotion` and, in a list, of its `CohortEvidence`."""
    numbers = [f"{of}{metric}{part}" for metric in ("auc", "logloss")
               for of, part in (("", ""), ("against_", ""), ("", "_difference"), ("", "_low"), ("", "_high"))]
    evidence = pa.struct([("cohort", pa.string()), ("rows", pa.int64()), ("clicks", pa.int64()),
                          *((name, pa.float64()) for name in numbers)])
    return [*_fields(model_name="string", model_version="string"), pa.field("champion", pa.string()),
            *_fields(decision="string", reason="string", new_users="string"), pa.field("cohorts", pa.list_(evidence)),
            *(pa.field(f"virtual_behavior_gain{part}", pa.float64()) for part in ("", "_low", "_high")),
            *_fields(gain_cohort="string", gain_lost="bool", auc_margin="double", logloss_margin="double",
                     confidence="double"), pa.field("decided_at", _UTC, nullable=False),
            pa.field("rolled_back_to", pa.string()), pa.field("rolled_back_at", _UTC),
            pa.field("rollback_reason", pa.string())]


def _literals(values: Sequence[str | int]) -> str:
    return ", ".join(map(sql_literal, values))


def _value_constraints(raw: RawFile) -> dict[str, str]:
    """The schema's allowed values and bounds; NOT NULL stands with the columns."""
    return {f"{c.name}_allowed": condition for c in raw.columns if (condition := _condition(c))}


def _condition(column: Column) -> str:
    """Empty for a column that may hold anything."""
    allowed = " AND ".join(_conditions(column))
    # Unlike SQL's own, Delta's CHECK fails for a condition that is NULL.
    return f"`{column.name}` IS NULL OR {allowed}" if allowed and column.nulls else allowed


def _conditions(column: Column) -> list[str]:
    if column.separator is not None or column.type == "epoch_seconds":
        return []
    conditions = [f"`{column.name}` IN ({_literals(column.values)})"] if column.values else []
    conditions += [f"`{column.name}` >= {column.minimum!r}"] if column.minimum is not None else []
    return conditions + ([f"`{column.name}` <= {column.maximum!r}"] if column.maximum is not None else [])
