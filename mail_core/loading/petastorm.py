"""Parquet files -> NumPy blocks by Petastorm: the only file that imports it."""

from __future__ import annotations

import warnings
from datetime import date
from typing import Any, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from petastorm.arrow_reader_worker import ArrowReaderWorker, ArrowReaderWorkerResultsQueueReader
from petastorm.fs_utils import get_filesystem_and_path_or_paths
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.thread_pool import ThreadPool
from pyarrow import ArrowException

from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join, local_path
from mail_core.loading.manifest import ColumnEntry, FileEntry, day_number
from mail_core.schema.definition import DAY

# Petastorm 0.12 uses PyArrow's old Parquet interface, which announces its end on every file. Its reading thread warns
# too, so the filter stands for the process, narrowed to warnings raised about Petastorm's own lines.
for _category in (FutureWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"petastorm\b")

RESULTS_QUEUE = 2
"""Row groups read ahead; Petastorm's own 50 would hold gigabytes."""


def read_files(export_uri: str, files: Sequence[FileEntry], columns: Sequence[ColumnEntry],
               since: date | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The files' rows in exactly this order, one block a file: column -> (rows,) or (rows, width); of a file that is
    to be read in part the rows from the day `since` on.

    One worker thread and no shuffling, since several workers hand row groups over in no fixed order. A file without
    rows gives no block; without any other file Petastorm is not opened: it refuses an empty list.

    Raises:
        InputError: a file that is absent or no whole Parquet file, or whose rows or columns differ from the manifest's.
    """
    _check_whole(export_uri, files)
    files = [entry for entry in files if entry.rows]
    if not files:
        return
    # What make_batch_reader does, with a worker class of ours.
    system, paths = get_filesystem_and_path_or_paths([_url(export_uri, entry) for entry in files])
    reader = Reader(system, paths, schema_fields=[c.name for c in columns], worker_class=_MatrixWorker,
                    reader_pool=ThreadPool(1, RESULTS_QUEUE), shuffle_row_groups=False, num_epochs=1,
                    is_batched_reader=True)
    try:
        for entry in files:
            block = next(reader, None)
            yield _part(entry, _checked(entry, block._asdict() if block is not None else {}, columns), since)
        if next(reader, None) is not None:
            raise InputError(f"{files[-1].path}: more row groups than files; expected one row group a file")
    finally:
        reader.stop()
        reader.join()


class _MatrixQueue(ArrowReaderWorkerResultsQueueReader):
    """Row groups with lists of one length as matrices, seen where Arrow holds their values: Petastorm's own queue makes
    an array of every list and stacks them, half of the time that reading takes."""

    def read_next(self, workers_pool: Any, schema: Any, ngram: None) -> Any:
        """The next row group, a named tuple of arrays (rows,) or (rows, width). Raises StopIteration at the end."""
        try:
            table = workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None
        return schema.make_namedtuple(**{name: _matrix(table.column(name)) for name in table.column_names})


class _MatrixWorker(ArrowReaderWorker):
    @staticmethod
    def new_results_queue_reader() -> _MatrixQueue:
        return _MatrixQueue()


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,), or (rows, width) of lists; lists of several lengths or NULL give objects, which no manifest has."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    lengths = np.concatenate([chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    if not len(lengths) or (lengths != lengths[0]).any():
        return np.empty(len(column), dtype=object)
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return (values[0] if len(values) == 1 else np.concatenate(values)).reshape(len(column), -1)


def _checked(entry: FileEntry, block: dict[str, np.ndarray], columns: Sequence[ColumnEntry]) -> dict[str, np.ndarray]:
    rows = len(next(iter(block.values()))) if block else 0
    if rows != entry.stored:
        raise InputError(f"{entry.path}: {rows} rows in its row group, the manifest says {entry.stored}")
    for column in columns:
        found = block.get(column.name)
        shape = (rows, column.width) if column.width else (rows,)
        if found is None or found.shape != shape or found.dtype != column.dtype:
            was = "absent" if found is None else f"{found.dtype} {found.shape}"
            raise InputError(f"{entry.path}: column {column.name!r} is {was}, the manifest says {column.dtype} {shape}")
    return {column.name: block[column.name] for column in columns}


def _part(entry: FileEntry, block: dict[str, np.ndarray], since: date | None) -> dict[str, np.ndarray]:
    if since is None or entry.rows == entry.stored:
        return block
    read = np.flatnonzero(block[DAY] >= day_number(since))
    if len(read) != entry.rows:
        raise InputError(f"{entry.path}: {len(read)} rows of the days from {since} on, the manifest says {entry.rows}")
    return {name: column.take(read, axis=0) for name, column in block.items()}


def _check_whole(export_uri: str, files: Sequence[FileEntry]) -> None:
    """Read every footer first: Petastorm names no file in its errors."""
    fs, root = filesystem(export_uri)
    for entry in files:
        path = join(root, entry.path)
        try:
            with fs.open_input_file(path) as source:
                rows = pq.read_metadata(source).num_rows
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, though the manifest names it; run export_training again") from None
        except (OSError, ArrowException) as error:
            raise InputError(f"{path}: no whole Parquet file ({error}); run export_training again") from error
        if rows and not entry.rows:
            raise InputError(f"{path}: {rows} rows, the manifest says 0; run export_training again")


def _url(export_uri: str, entry: FileEntry) -> str:
    local = local_path(export_uri)
    path = join(export_uri, entry.path) if local is None else f"{local}/{entry.path}"
    # Petastorm takes its URLs apart without unquoting, so these two can stand in no path.
    if "#" in path or "?" in path:
        raise InputError(f"{path}: Petastorm reads no path with '#' or '?' in it; move the lake")
    return path if local is None else f"file://{path}"
