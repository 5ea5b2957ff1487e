"""Raw rows -> arrays of codes: the one function that export, evaluation, the model package and scoring all call.

Shapes: B rows, M `max_values` of a multi-valued feature, L `sequence_length` of the schema.
"""

from __future__ import annotations

from typing import Mapping, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_core.encoding.encoders import Encoders
from mail_core.errors import InputError
from mail_core.schema.arrow import feature_type, vocabulary_type
from mail_core.schema.definition import MISSING, PADDING, Feature, Schema

Rows: TypeAlias = pa.Table | pa.RecordBatch


def encode(rows: Rows, encoders: Encoders) -> dict[str, np.ndarray]:
    """Encode the columns of `input_schema(schema)` that `rows` has (any others are left alone).

    Returns:
        categorical int32 (B,); multi int32 (B, M), padded with 0, its first slot 2 where the list is empty or NULL;
        dense float32 (B,), transformed and standardised, 0.0 where missing or outside the transform's domain;
        each behaviour list column int32 (B, L), newest first, padding at the end, the first L of a longer list.

    Raises:
        InputError: a column whose values do not fit the schema's type, or behaviour lists of unequal lengths.
    """
    schema = encoders.schema
    encoded: dict[str, np.ndarray] = {}
    for feature in schema.features:
        if feature.name not in rows.schema.names:
            continue
        values = raw_column(rows, feature.name, feature_type(schema, feature))
        if feature.kind == "dense":
            statistics = encoders.dense[feature.name]
            standard = (transformed(values, feature) - statistics.mean) / statistics.std
            encoded[feature.name] = np.nan_to_num(standard, nan=0.0).astype(np.float32)
        elif feature.kind == "multi":
            codes_BM = _padded_codes(values, feature.name, feature.max_values, encoders)
            codes_BM[codes_BM[:, 0] == PADDING, 0] = MISSING
            encoded[feature.name] = codes_BM
        else:
            encoded[feature.name] = encoders.codes(feature.name, values)
    lengths: dict[str, np.ndarray] = {}
    for column, vocabulary in schema.behavior_vocabularies.items():
        if column in rows.schema.names:
            values = raw_column(rows, column, pa.list_(vocabulary_type(schema, vocabulary)))
            lengths[column] = list_lengths(values)
            encoded[column] = _padded_codes(values, vocabulary, schema.sequence_length, encoders)
    _check_aligned(lengths)
    return encoded


def encoded_schema(schema: Schema) -> pa.Schema:
    """Arrow schema of `encode`'s arrays for complete rows, in the order of `input_schema`."""
    kinds = {"categorical": pa.int32(), "multi": pa.list_(pa.int32()), "dense": pa.float32()}
    fields = [pa.field(f.name, kinds[f.kind]) for f in schema.features]
    return pa.schema(fields + [pa.field(name, pa.list_(pa.int32())) for name in schema.behavior_vocabularies])


def encoded_widths(schema: Schema) -> dict[str, int]:
    """Column of `encoded_schema` -> width of its fixed-width lists (M or L), 0 for a scalar column."""
    widths = {f.name: f.max_values if f.kind == "multi" else 0 for f in schema.features}
    return {**widths, **{column: schema.sequence_length for column in schema.behavior_vocabularies}}


def to_arrow(arrays: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    """Arrays (B,) or (B, W) -> Arrow columns, (B, W) as lists of W values."""
    columns = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = pa.array(array)
        else:
            offsets = np.arange(0, array.size + 1, array.shape[1], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(array.reshape(-1)))
    return pa.RecordBatch.from_pydict(columns)


def raw_column(rows: Rows, name: str, kind: pa.DataType) -> pa.Array:
    """Column `name` as one array of type `kind`. Raises InputError where its values do not fit."""
    column = rows.column(name)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"column {name!r}: {array.type} does not fit {kind}: {error}") from error


def transformed(values: pa.Array, feature: Feature) -> np.ndarray:
    """A dense feature before standardisation: float64 (B,), NaN where NULL or not finite after the transform."""
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if feature.transform == "log1p":
        with np.errstate(divide="ignore", invalid="ignore"):
            numbers = np.log1p(numbers)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def list_lengths(values: pa.Array) -> np.ndarray:
    """int64 (B,): length of each list, 0 for NULL."""
    return pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def kept_values(values: pa.Array, most: int) -> tuple[pa.Array, np.ndarray]:
    """The first `most` values of each list, flattened, and how many each row keeps (B,)."""
    lengths = list_lengths(values)
    flat, kept = values.flatten(), np.minimum(lengths, most)
    if (lengths > most).any():
        flat = flat.take(pa.array(np.repeat(np.cumsum(lengths) - lengths, kept) + _positions(kept)))
    return flat, kept


def _padded_codes(values: pa.Array, vocabulary: str, width: int, encoders: Encoders) -> np.ndarray:
    flat, kept = kept_values(values, width)
    codes = np.full((len(values), width), PADDING, dtype=np.int32)
    codes[np.repeat(np.arange(len(values)), kept), _positions(kept)] = encoders.codes(vocabulary, flat)
    return codes


def _positions(kept: np.ndarray) -> np.ndarray:
    """Counts (B,) -> 0, 1, .. within each row, flattened."""
    return np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)


def _check_aligned(lengths: Mapping[str, np.ndarray]) -> None:
    """The list columns are one sequence: entry i of each belongs to the same behaviour."""
    columns = list(lengths)
    for column in columns[1:]:
        unequal = np.flatnonzero(lengths[column] != lengths[columns[0]])
        if len(unequal):
            row = int(unequal[0])
            raise InputError(f"row {row}: {column!r} has {lengths[column][row]} behaviours, {columns[0]!r} "
                             f"{lengths[columns[0]][row]}; expected lists of equal length")
