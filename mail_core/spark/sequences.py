"""As-of behaviour sequences: the latest L behaviours strictly before a moment, newest first.

The core (BehaviorIndex) is NumPy and Arrow and knows no engine. Around it: the union of both logs, spread over
partitions by user, read by one `mapInArrow` a partition. Suffixes: N behaviours in time order, U their users, B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.schema.arrow import column_type
from mail_core.schema.definition import BEHAVIOR_PREFIX, TIME, USER, Schema

SLICE_ROWS = 8_192
"""Rows whose sequences are gathered at once: bounds the list columns in memory."""
PARTITION_ROWS = 1_000_000
"""Rows of both logs that one partition holds, about."""
ROW = "row"
"""Struct column of a timeline: an impression's or candidate's own columns, NULL in a behaviour."""
_MICROSECONDS = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Where the sequences of B rows lie among the sorted behaviours: [start, end), oldest first."""

    starts_B: np.ndarray
    ends_B: np.ndarray

    @property
    def lengths_B(self) -> np.ndarray:
        """Behaviours in each sequence, 0 to L."""
        return self.ends_B - self.starts_B


class BehaviorIndex:
    """The behaviours of many users in one total order, searchable by user and time."""

    def __init__(self, users_N: pa.Array, times_N: pa.Array, fields: Mapping[str, pa.Array]):
        """Sort behaviours given in any order.

        Args:
            users_N: keys, integers or strings, never NULL.
            times_N: timestamps in microseconds, never NULL.
            fields: the action's values first, then the item fields', each (N,); NULL is a value like others. They
                order behaviours of one user at one time, so that ties come out the same on every run.
        """
        encoded_N = users_N.dictionary_encode()
        codes_N = encoded_N.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        moments_N = _microseconds(times_N)
        order_N = _total_order(codes_N, moments_N, list(fields.values()))
        self._users_U = encoded_N.dictionary
        self._fields = {name: values_N.take(pa.array(order_N)) for name, values_N in fields.items()}
        self._first, last = (int(moments_N.min()), int(moments_N.max())) if len(moments_N) else (0, 0)
        self._span = last - self._first + 1
        self._ticks: np.ndarray | None = None
        if (len(self._users_U) + 1) * (self._span + 1) >= 2 ** 63:  # too long a time for a combined key: rank the times
            self._ticks = np.unique(moments_N)
            self._span = len(self._ticks)
        self._keys_N = self._key(codes_N[order_N], moments_N[order_N])

    def _key(self, codes: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """User and time as one integer that sorts as the pair does; times before and after the log are clipped."""
        if self._ticks is None:
            clock = np.clip(moments, self._first, self._first + self._span) - self._first
        else:
            clock = np.searchsorted(self._ticks, moments, side="left")
        return codes * (self._span + 1) + clock

    def find(self, users_B: pa.Array, before_B: np.ndarray, since_B: np.ndarray, length: int) -> Spans:
        """The latest `length` behaviours of each user with since <= time < before (both in microseconds).

        A user without behaviours gets an empty span.
        """
        codes_B = pc.fill_null(pc.index_in(users_B, value_set=self._users_U), -1).to_numpy(zero_copy_only=False)
        codes_B = codes_B.astype(np.int64)
        ends_B = np.searchsorted(self._keys_N, self._key(codes_B, before_B), side="left")
        oldest_B = np.searchsorted(self._keys_N, self._key(codes_B, since_B), side="left")
        starts_B = np.minimum(np.maximum(oldest_B, ends_B - length), ends_B)
        known_B = codes_B >= 0
        return Spans(starts_B=np.where(known_B, starts_B, 0), ends_B=np.where(known_B, ends_B, 0))

    def gather(self, spans: Spans) -> dict[str, pa.ListArray]:
        """The sequences of `spans` by field, newest behaviour first, without padding: list arrays (B,)."""
        lengths_B = spans.lengths_B
        offsets = np.concatenate([[0], np.cumsum(lengths_B)])
        places = pa.array(np.repeat(spans.ends_B - 1 + offsets[:-1], lengths_B) - np.arange(offsets[-1]))
        bounds = pa.array(offsets, pa.int32())
        return {name: pa.ListArray.from_arrays(bounds, values_N.take(places))
                for name, values_N in self._fields.items()}


def _microseconds(times: pa.Array) -> np.ndarray:
    return times.cast(_MICROSECONDS).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _total_order(codes_N: np.ndarray, moments_N: np.ndarray, fields: Sequence[pa.Array]) -> np.ndarray:
    """Order by user, time, then the fields in turn; only behaviours that tie in time pay for the fields."""
    order_N = np.lexsort((moments_N, codes_N))
    same = (np.diff(codes_N[order_N]) == 0) & (np.diff(moments_N[order_N]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(order_N) else order_N
    if len(tied):
        rows = order_N[tied]
        ranks = [_ranks(values_N.take(pa.array(rows))) for values_N in fields]
        order_N[tied] = rows[np.lexsort((*reversed(ranks), moments_N[rows], codes_N[rows]))]
    return order_N


def _ranks(values: pa.Array) -> np.ndarray:
    """Place of each value among the distinct values in order, NULL first: a sort key for any type."""
    encoded = values.dictionary_encode()
    rank_of_code = np.full(len(encoded.dictionary) + 1, -1)
    rank_of_code[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(encoded.dictionary))
    codes = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return rank_of_code[codes]


def slices(rows: int, size: int = SLICE_ROWS) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows that cover `rows`."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def behavior_types(schema: Schema) -> dict[str, pa.DataType]:
    """Scalar columns of a timeline that hold one behaviour: the action's first, then the item fields'."""
    return {name: column_type(schema.behaviors.column(name.removeprefix(BEHAVIOR_PREFIX)))
            for name in schema.behavior_vocabularies}


def partition_count(rows: int, parallelism: int) -> int:
    """Partitions for `rows` of both logs: at most about PARTITION_ROWS each, and as many on every core."""
    cores = max(parallelism, 1)
    return max(-(-rows // (PARTITION_ROWS * cores)), 1) * cores


def timeline(schema: Schema, rows: DataFrame, behaviors: DataFrame, partitions: int) -> DataFrame:
    """Union of `rows` and the behaviour log, every user in one partition.

    The number of partitions is given to Spark, so that adaptive execution does not merge them past what fits in memory.

    Args:
        rows: USER, TIME and any columns beside them, a row an impression or a candidate.
        behaviors: raw_behaviors (columns of the schema by name).
    Returns:
        USER, TIME, ROW (struct of the other columns of `rows`; NULL in a behaviour) and the columns of `behavior_types`
        (NULL in a row).
    """
    log = schema.behaviors
    payload = [name for name in rows.columns if name not in (USER, TIME)]
    row_type = rows.select(*payload).schema
    source = {name: name.removeprefix(BEHAVIOR_PREFIX) for name in behavior_types(schema)}
    events = rows.select(USER, TIME, F.struct(*payload).alias(ROW),
                         *(F.lit(None).cast(behaviors.schema[column].dataType).alias(name)
                           for name, column in source.items()))
    history = behaviors.select(F.col(log.user).alias(USER), F.col(log.time).alias(TIME),
                               F.lit(None).cast(row_type).alias(ROW),
                               *(F.col(column).alias(name) for name, column in source.items()))
    return events.unionByName(history).repartition(partitions, USER)


def split(batch: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    """One batch of a timeline -> (its rows with USER, TIME and their own columns, its behaviours)."""
    is_row = batch.column(ROW).is_valid()
    table = pa.Table.from_batches([batch])
    rows = table.filter(is_row).select([USER, TIME, ROW]).combine_chunks()
    own = rows.column(ROW).type
    columns = {USER: rows.column(USER), TIME: rows.column(TIME).cast(_MICROSECONDS)}
    columns |= {field.name: pc.struct_field(rows.column(ROW), [field.name]) for field in own}
    return pa.table(columns), table.filter(pc.invert(is_row)).drop_columns([ROW])


def behavior_index(schema: Schema, behaviors: Iterable[pa.Table]) -> BehaviorIndex:
    """Index of the behaviour parts that `split` gave; of nothing when there are none."""
    users = column_type(schema.behaviors.column(schema.behaviors.user))
    names = behavior_types(schema)
    layout = pa.schema([(USER, users), (TIME, _MICROSECONDS), *names.items()])
    table = pa.concat_tables([layout.empty_table(), *(part.select(layout.names).cast(layout) for part in behaviors)])
    column = {name: _one(table.column(name)) for name in layout.names}
    return BehaviorIndex(column[USER], column[TIME], {name: column[name] for name in names})


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    assert isinstance(whole, pa.Array), "one partition's column exceeds what an Arrow array holds"
    return whole
