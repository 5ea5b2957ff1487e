"""Fitting encoders in partial sums that any engine can merge: whatever the batches and their order, the same encoders.

A tally is a small table of counts. Vocabulary values are counted by their text; the sum and sum of squares of a dense
feature are kept exactly, as integers an exponent, because floating-point sums depend on their order and a repeated
export must not.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_core.encoding.encode import Rows, kept_values, raw_column, transformed
from mail_core.encoding.encoders import DenseStatistics, Encoders, hash_buckets, ordered_vocabulary, vocabulary_names
from mail_core.schema.arrow import feature_type, vocabulary_type
from mail_core.schema.definition import Schema

TALLY_KEYS = ("name", "power", "value")
TALLY_SUMS = ("count", "high", "low")
TALLY = pa.schema([
    ("name", pa.string()),      # vocabulary, or dense feature
    ("power", pa.int32()),      # 0: count of a value; 1, 2: dense sum of x, of x squared
    ("value", pa.string()),     # the value's text; for sums the binary exponent
    ("count", pa.int64()),
    ("high", pa.int64()),       # for sums: mantissas times 2^53, upper and lower part, added up
    ("low", pa.int64()),
])
_LOW_BITS = 26


def tally(rows: Rows, schema: Schema) -> pa.Table:
    """Count what `encode` would look up in `rows`, which has every column of `input_schema(schema)` -> TALLY table."""
    parts = [TALLY.empty_table()]
    for feature in schema.features:
        values = raw_column(rows, feature.name, feature_type(schema, feature))
        if feature.kind == "dense":
            numbers = transformed(values, feature)
            numbers = numbers[~np.isnan(numbers)]
            parts += [_exact_sum(feature.name, 1, numbers), _exact_sum(feature.name, 2, np.square(numbers))]
        elif not feature.hash_buckets:
            flat = kept_values(values, feature.max_values)[0] if feature.kind == "multi" else values
            parts.append(_value_counts(feature.name, flat))
    for column, vocabulary in schema.behavior_vocabularies.items():
        if not hash_buckets(schema, vocabulary):
            values = raw_column(rows, column, pa.list_(vocabulary_type(schema, vocabulary)))
            parts.append(_value_counts(vocabulary, kept_values(values, schema.sequence_length)[0]))
    return pa.concat_tables(parts)


def merge(tallies: pa.Table) -> pa.Table:
    """Add up a TALLY table by its keys -> TALLY table."""
    summed = tallies.group_by(list(TALLY_KEYS)).aggregate([(name, "sum") for name in TALLY_SUMS])
    return summed.select([*TALLY_KEYS, *(f"{name}_sum" for name in TALLY_SUMS)]).rename_columns(TALLY.names).cast(TALLY)


def fit(tallies: pa.Table, schema: Schema) -> Encoders:
    """A merged TALLY table of the training days -> encoders."""
    vocabularies = {}
    for name in vocabulary_names(schema):
        if not hash_buckets(schema, name):
            least = 1 if name == schema.action_column else schema.feature(name).min_count
            found = _of(tallies, name, 0)
            found = found.filter(pc.greater_equal(found["count"], least))
            values = found["value"].combine_chunks().cast(vocabulary_type(schema, name))
            vocabularies[name] = ordered_vocabulary(values, found["count"].combine_chunks())
    dense = {f.name: _statistics(tallies, f.name) for f in schema.features if f.kind == "dense"}
    return Encoders(schema, vocabularies, dense)


def fit_encoders(rows: Rows, schema: Schema) -> Encoders:
    """Encoders of rows that fit in memory."""
    return fit(merge(tally(rows, schema)), schema)


def _value_counts(name: str, values: pa.Array) -> pa.Table:
    counted = pc.value_counts(values.drop_null())
    size = len(counted)
    return pa.table([pa.repeat(pa.scalar(name), size), pa.repeat(pa.scalar(0, pa.int32()), size),
                     counted.field("values").cast(pa.string()), counted.field("counts"),
                     pa.repeat(pa.scalar(0), size), pa.repeat(pa.scalar(0), size)], schema=TALLY)


def _exact_sum(name: str, power: int, numbers: np.ndarray) -> pa.Table:
    """The sum of float64 `numbers` as whole numbers an exponent: sum = sum over e of (high 2^26 + low) 2^(e - 53)."""
    mantissas, exponents = np.frexp(numbers[np.isfinite(numbers)])
    whole = (mantissas * 2.0 ** 53).astype(np.int64)
    distinct, group = np.unique(exponents, return_inverse=True)
    counts, high, low = (np.zeros(len(distinct), dtype=np.int64) for _ in range(3))
    np.add.at(counts, group, 1)
    np.add.at(high, group, whole >> _LOW_BITS)
    np.add.at(low, group, whole & ((1 << _LOW_BITS) - 1))
    size = len(distinct)
    return pa.table([pa.repeat(pa.scalar(name), size), pa.repeat(pa.scalar(power, pa.int32()), size),
                     pa.array(distinct.astype(np.int64)).cast(pa.string()), pa.array(counts), pa.array(high),
                     pa.array(low)], schema=TALLY)


def _of(tallies: pa.Table, name: str, power: int) -> pa.Table:
    return tallies.filter(pc.and_(pc.equal(tallies["name"], name), pc.equal(tallies["power"], power)))


def _statistics(tallies: pa.Table, name: str) -> DenseStatistics:
    """Mean and population standard deviation, exact up to the last rounding."""
    moments = []
    for power in (1, 2):
        rows = _of(tallies, name, power).to_pylist()
        count = sum(row["count"] for row in rows)
        total = sum(((row["high"] << _LOW_BITS) + row["low"]) * Fraction(2) ** (int(row["value"]) - 53) for row in rows)
        moments.append(Fraction(total) / count if count else Fraction(0))
    variance = max(moments[1] - moments[0] ** 2, Fraction(0))
    std = math.sqrt(variance)
    # A spread below float64's resolution of the squares is rounding, not signal.
    constant = variance <= moments[1] * Fraction(2) ** -48
    return DenseStatistics(mean=float(moments[0]), std=1.0 if constant else std)
