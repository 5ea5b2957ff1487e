"""`features` -> encoders and encoded Parquet with a manifest: what training reads, and all that it can see."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from mail_core.encoding.encode import encode, encoded_schema, to_arrow
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import TALLY, TALLY_KEYS, TALLY_SUMS, fit, merge, tally
from mail_core.encoding.hashing import stable_hash
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.lake.concurrency import one_writer
from mail_core.lake.files import filesystem, join, spark_uri
from mail_core.lake.tables import RAW_TABLES, Lake
from mail_core.loading.manifest import (TEST, TRAIN, VALIDATION, FileEntry, Manifest, day_of, export_columns,
                                        export_uri, manifest_text)
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import DAY, ITEM, MASKED, TIME, UNSEEN, USER, USER_KEY, Schema
from mail_core.spark.new_users import with_new_users
from mail_core.spark.statistics import UserRows, export_statistics, unseen_users

ROWS_PER_FILE = 32_768
"""At most; also one row group."""
_AIM = 30_000  # on average: rows fall into files by hash, and 32,768 lies 15 standard deviations above
_LEAST_FILES = 8
"""Aimed at for small splits, so that several ranks have work."""
_ROW_GROUP_BYTES = 512 * 2 ** 20
_ORDER_SEED = 20_220_814
_OVERTAKEN = ("conflict: another export of these days finished after this run began, and stands; run this one again if "
              "its rows are wanted")
_SPLIT, _FILE, _ORDER = "_split", "_file", "_order"  # a feature's name never begins with an underscore
_TALLY_ROWS = 500_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportWindow:
    """Which days: n days up to `end_date`; 1..n-2 train, n-1 validation, n test; encoders see 1..n-1."""

    end_date: date
    days: int = 8

    def present(self, found: list[date]) -> list[date]:
        """The window's days in order.

        Raises:
            InputError: fewer than three days asked for, or some that are not among `found`, which are named.
        """
        wanted = self.wanted()
        missing = [day.isoformat() for day in wanted if day not in found]
        if missing:
            there = f"it has {len(found)} days, {min(found)} to {max(found)}" if found else "it is empty"
            raise InputError(f"features has no rows for {', '.join(missing)} ({there}); run build_features for them")
        return wanted

    def wanted(self) -> list[date]:
        """The window's days in order. Raises InputError on fewer than three."""
        if self.days < 3:
            raise InputError(f"--days {self.days}: expected 3 or more (train, validation and test)")
        return [self.end_date - timedelta(days=back) for back in reversed(range(self.days))]

    def split(self) -> SparkColumn:
        """The split of a row by its day."""
        return (F.when(F.col(DAY) == F.lit(self.end_date), TEST)
                .when(F.col(DAY) == F.lit(self.end_date - timedelta(days=1)), VALIDATION).otherwise(TRAIN))

    def with_split(self, rows: DataFrame) -> DataFrame:
        """`rows` with their split in the column in which `write_encoded` looks for it."""
        return rows.withColumn(_SPLIT, self.split())


def export_training(schema: Schema, lake: Lake, window: ExportWindow, mode: NewUserMode,
                    past: Mapping[str, int] | None = None) -> tuple[str, Manifest]:
    """Write the export of `window` below the lake; its URI and manifest.

    The manifest comes last, so a crash leaves the export before as it was; older data go when it is there.
    Equal `features` give equal rows in equal order. Of two runs at once the first to finish wins, the other ends.

    Args:
        past: the `delta_versions` of an earlier export, to make that one again, with a root of its own; None: of the
            tables as they stand.

    Raises:
        InputError: days are missing, the table does not fit the schema, or it or the export changed meanwhile; with
            `past`, also a version that cannot be read any more.
    """
    root = export_uri(lake.uri, window.end_date, window.days, mode, None if past is None else past["features"])
    before, older = manifest_text(root), data_folders(root)
    try:
        manifest = _write_data(schema, lake, window, mode, root, past)
    except Exception as error:
        if manifest_text(root) != before:  # whose run then removed this one's data
            raise InputError(f"{root}: {_OVERTAKEN}") from error
        raise
    with one_writer(root):
        overtaken = manifest_text(root) != before
        if not overtaken:
            manifest.write(root)
        remove_data(root, [manifest.data] if overtaken else older)
    if overtaken:
        raise InputError(f"{root}: {_OVERTAKEN}")
    return root, manifest


def _write_data(schema: Schema, lake: Lake, window: ExportWindow, mode: NewUserMode, root: str,
                past: Mapping[str, int] | None) -> Manifest:
    """Encoders and encoded rows in a folder of their own below `root`, and the manifest that will make them an export.
    """
    data = f"data-{uuid.uuid4().hex[:12]}"
    if past is None:
        days = window.present(lake.days("features"))
        versions = {table: lake.version(table) for table in ("features", *RAW_TABLES.values()) if lake.exists(table)}
        features = lake.read("features").where(F.col(DAY).isin(days))
    else:
        days, versions = window.wanted(), dict(past)
        features = lake.read_days("features", days, versions["features"])
    rows = window.with_split(with_new_users(features, schema, mode))

    encoders = fit_encoders_by_spark(rows.where(F.col(_SPLIT) != TEST), schema, join(root, data, "tallies"))
    encoders.save(join(root, data, "encoders"))
    logger.info("encoders of %s..%s: %s codes", days[0], days[-2], f"{sum(encoders.vocabulary_sizes.values()):,}")
    with UserRows(rows, schema, _SPLIT) as light:
        newcomers = unseen_users(light, TEST)
        statistics = export_statistics(light, newcomers, schema)
        counts = {split: numbers["rows"] for split, numbers in statistics["splits"].items()}
        write_encoded(rows.join(newcomers, USER, "left"), schema, counts, join(root, data))
    splits = gather_files(root, data, counts)
    if past is None and lake.version("features") != versions["features"]:
        raise InputError(f"{lake.path('features')}: changed from version {versions['features']} while it was exported; "
                         "run the export again")
    return Manifest(schema_name=schema.name, schema_fingerprint=schema.fingerprint, new_users=str(mode), data=data,
                    encoder_fingerprint=encoders.fingerprint, end_date=window.end_date, days=window.days,
                    delta_versions=versions, sequence_length=schema.sequence_length, columns=export_columns(schema),
                    splits=splits, statistics=statistics)


def fit_encoders_by_spark(training: DataFrame, schema: Schema, folder: str) -> Encoders:
    """Encoders of the rows of `training` (columns of `input_schema`): counted by the workers, merged by a groupBy.

    The counts come back as Parquet below `folder`, which is removed again: nothing large passes the driver's JVM.
    """
    tallies = training.select(*input_schema(schema).names).mapInArrow(_tally_batches(schema), from_arrow_schema(TALLY))
    merged = tallies.groupBy(*TALLY_KEYS).agg(*(F.sum(name).alias(name) for name in TALLY_SUMS))
    merged.write.parquet(spark_uri(folder))
    fs, path = filesystem(folder)
    encoders = fit(pq.read_table(path, filesystem=fs, columns=TALLY.names).cast(TALLY), schema)
    fs.delete_dir(path)
    return encoders


def _tally_batches(schema: Schema) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def tallies(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Merged here as far as memory allows: far fewer rows for the JVM to hash.
        held = TALLY.empty_table()
        for batch in batches:
            held = pa.concat_tables([held, tally(batch, schema)])
            if len(held) > _TALLY_ROWS:
                held = merge(held)
            if len(held) > _TALLY_ROWS:
                yield from held.combine_chunks().to_batches()
                held = TALLY.empty_table()
        yield from merge(held).combine_chunks().to_batches()
    return tallies


def write_encoded(rows: DataFrame, schema: Schema, counts: Mapping[str, int], folder: str) -> None:
    """Encode `rows` with the encoders in `folder` and write `folder`/staging/_split=S/_file=N/, in hash-random order.

    `rows` has the columns of `features`, _split, masked and unseen (NULL: no). A row's file and its place there follow
    from `row_order`, so they depend on no other row but for the number of files.
    """
    files = {split: -(-rows_ // min(_AIM, -(-rows_ // _LEAST_FILES))) for split, rows_ in counts.items() if rows_}
    number = F.pmod(F.col(_ORDER), F.element_at(F.create_map(*(F.lit(v) for pair in files.items() for v in pair)),
                                                F.col(_SPLIT)))
    inputs = rows.withColumn(_ORDER, row_order(schema)).withColumn(_FILE, number.cast("int")).select(
        _SPLIT, _FILE, _ORDER, USER, *schema.outcomes, MASKED, F.coalesce(F.col(UNSEEN), F.lit(0)).alias(UNSEEN),
        F.unix_date(DAY).alias(DAY), *input_schema(schema).names)
    encoded = inputs.mapInArrow(_encode_batches(schema, join(folder, "encoders")), from_arrow_schema(_staged(schema)))
    # Encoded before the shuffle: a sort is the last thing before the writer, which keeps its order.
    (encoded.repartition(sum(files.values()), _SPLIT, _FILE).sortWithinPartitions(_SPLIT, _FILE, _ORDER, USER_KEY)
     .drop(_ORDER).write.partitionBy(_SPLIT, _FILE).option("maxRecordsPerFile", ROWS_PER_FILE)
     .option("parquet.block.size", _ROW_GROUP_BYTES).parquet(spark_uri(join(folder, "staging"))))


def row_order(schema: Schema) -> SparkColumn:
    """A hash of what tells impressions apart: user, item, time, outcome and the context that the log brings."""
    context = [f.name for f in schema.logged_context]
    return F.xxhash64(F.lit(_ORDER_SEED), USER, ITEM, F.unix_micros(TIME), *schema.outcomes, *context)


def _staged(schema: Schema) -> pa.Schema:
    marks = [*(pa.field(name, pa.int32()) for name in schema.outcomes), pa.field(USER_KEY, pa.int64()),
             *(pa.field(name, pa.int32()) for name in (MASKED, UNSEEN, DAY))]
    head = [pa.field(_SPLIT, pa.string()), pa.field(_FILE, pa.int32()), pa.field(_ORDER, pa.int64())]
    return pa.schema([*head, *encoded_schema(schema), *marks])


def _encode_batches(schema: Schema, folder: str) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    names = _staged(schema).names

    def encoded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        encoders = _loaded_encoders(folder, schema)
        for batch in batches:
            codes = to_arrow(encode(batch, encoders))
            columns = dict(zip(codes.schema.names, codes.columns))
            columns[USER_KEY] = pa.array(stable_hash(batch.column(USER)).view("int64"))
            for name in (_SPLIT, _FILE, _ORDER, *schema.outcomes, MASKED, UNSEEN, DAY):
                columns[name] = batch.column(name)
            yield pa.RecordBatch.from_arrays([columns[name] for name in names], schema=_staged(schema))
    return encoded


_cache: dict[str, Encoders] = {}


def _loaded_encoders(folder: str, schema: Schema) -> Encoders:
    """The encoders in `folder`, read once a Python worker: a run's folder has a name of its own and does not change."""
    if folder not in _cache:
        _cache.clear()
        _cache[folder] = Encoders.load(folder, schema)
    return _cache[folder]


def gather_files(root: str, data: str, counts: Mapping[str, int]) -> dict[str, tuple[FileEntry, ...]]:
    """Move the staged files to `<data>/<split>/part-00000.parquet`, ... in the order of their numbers.

    Returns:
        The manifest's entries.

    Raises:
        RuntimeError: a file has not one row group, or a split has other than `counts` rows.
    """
    fs, base = filesystem(root)
    splits: dict[str, tuple[FileEntry, ...]] = {}
    for split in (TRAIN, VALIDATION, TEST):
        folder = join(base, data, "staging", f"{_SPLIT}={split}")
        staged = fs.get_file_info(arrow_fs.FileSelector(folder, recursive=True, allow_not_found=True))
        parts = sorted((int(info.path.split(f"/{_FILE}=")[1].split("/")[0]), info.base_name, info.path)
                       for info in staged if info.base_name.endswith(".parquet"))
        fs.create_dir(join(base, data, split), recursive=True)
        entries = []
        for number, (_, _, path) in enumerate(parts):
            entry = _entry(fs, path, f"{data}/{split}/part-{number:05}.parquet")
            fs.move(path, join(base, entry.path))
            entries.append(entry)
        if sum(entry.rows for entry in entries) != counts.get(split, 0):
            raise RuntimeError(f"{split}: wrote {sum(e.rows for e in entries)} rows of {counts.get(split, 0)}")
        splits[split] = tuple(entries)
    fs.delete_dir(join(base, data, "staging"))
    return splits


def _entry(fs: arrow_fs.FileSystem, staged: str, path: str) -> FileEntry:
    """The manifest's entry of a staged file that will lie at `path`."""
    with fs.open_input_file(staged) as source:
        file = pq.ParquetFile(source)
        days, counts = np.unique(file.read(columns=[DAY]).column(DAY).to_numpy(), return_counts=True)
    if file.num_row_groups != 1:
        raise RuntimeError(f"{staged}: {file.num_row_groups} row groups, expected one (more executor memory a core?)")
    return FileEntry(path=path, rows=int(counts.sum()),
                     days={day_of(int(day)).isoformat(): int(count) for day, count in zip(days, counts)})


def data_folders(root: str) -> list[str]:
    """Names of the data folders below `root`: of the present export, and of runs that broke off or still write."""
    fs, base = filesystem(root)
    return [info.base_name for info in fs.get_file_info(arrow_fs.FileSelector(base, allow_not_found=True))
            if info.type == arrow_fs.FileType.Directory and info.base_name.startswith("data-")]


def remove_data(root: str, folders: list[str]) -> None:
    """Delete data folders below `root`."""
    fs, base = filesystem(root)
    for folder in folders:
        try:
            fs.delete_dir(join(base, folder))
        except FileNotFoundError:
            logger.debug("%s: another run has removed it", folder)
