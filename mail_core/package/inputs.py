"""A caller's rows -> the exact Arrow types of `input_schema`, or an InputError that names the column.

Callers send Arrow from Spark, or pandas frames whose integer columns have become floats (NaN for NULL) and whose list
columns are Python objects. Only casts that lose nothing are made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mail_core.errors import InputError

_EXACT_FLOAT = 2 ** 53
"""From here on a float64 no longer tells neighbouring integers apart."""


def table_from_pandas(frame: pd.DataFrame, wanted: pa.Schema) -> pa.Table:
    """The columns of `wanted` out of a pandas frame; None, NaN and NaT are NULL.

    Raises:
        InputError: a column is missing or has values that Arrow cannot hold or `conform` refuses.
    """
    return conform({name: _from_series(name, frame[name]) for name in wanted.names if name in frame.columns}, wanted)


def conform(rows: pa.Table | pa.RecordBatch | dict[str, Any], wanted: pa.Schema) -> pa.Table:
    """`rows` with the columns of `wanted` in its order and types.

    Raises:
        InputError: a column is missing, or its values do not fit its type without loss.
    """
    names = set(rows) if isinstance(rows, dict) else set(rows.schema.names)
    columns = {name: rows[name] for name in wanted.names if name in names}
    missing = [name for name in wanted.names if name not in columns]
    if missing:
        raise InputError(f"input rows: column {missing[0]!r} is missing (all missing: {', '.join(missing)}; "
                         f"expected: {', '.join(wanted.names)})")
    return pa.table({f.name: _column(columns[f.name], f) for f in wanted},
                    schema=pa.schema([pa.field(f.name, f.type) for f in wanted]))


def _from_series(name: str, series: pd.Series) -> pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise InputError(f"input rows: column {name!r}: {error}") from error


def _column(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array:
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):  # no chunks at all stay chunked
        values = pa.array([], values.type)
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if pa.types.is_list(field.type):
        return _list(values, field)
    return _scalar(values, field.type, field)


def _list(values: pa.Array, field: pa.Field) -> pa.Array:
    if pa.types.is_null(values.type):
        values = values.cast(pa.list_(pa.null()))
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(values.type) for test in is_list):
        raise _refused(field, values)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # flatten() leaves NULL lists out, whatever lies under them; a NULL offset makes its list NULL again.
    absent = np.append(pc.is_null(values).to_numpy(zero_copy_only=False), False)
    flat = _scalar(values.flatten(), field.type.value_type, field)
    return pa.ListArray.from_arrays(pa.array(offsets, mask=absent), flat).cast(field.type)


def _scalar(values: pa.Array, kind: pa.DataType, field: pa.Field) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    if values.type.equals(kind):
        return values
    numeric = _is_number(values.type) and _is_number(kind)
    text = pa.types.is_large_string(values.type) and pa.types.is_string(kind)
    if not (numeric or text or pa.types.is_null(values.type)):
        raise _refused(field, values)
    if pa.types.is_floating(values.type) and pa.types.is_integer(kind):
        largest = pc.max(pc.abs(values)).as_py()
        if largest is not None and largest >= _EXACT_FLOAT:
            raise InputError(f"input rows: column {field.name!r}: {largest:.0f} came as a floating-point number, too "
                             f"large to be exact; send {kind} (in pandas: dtype Int64)")
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise InputError(f"input rows: column {field.name!r}: expected {kind}: {error}") from error


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _refused(field: pa.Field, values: pa.Array) -> InputError:
    example = next((v.as_py() for v in values if v.is_valid), None)
    return InputError(f"input rows: column {field.name!r}: expected {field.type}, found {values.type} "
                      f"(such as {example!r})")
