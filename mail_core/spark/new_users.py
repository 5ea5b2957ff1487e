"""Who counts as new: `features` rows with the behaviour of masked users taken away."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.encoding.masking import NewUserMode
from mail_core.schema.definition import MASKED, USER, Schema


def with_new_users(rows: DataFrame, schema: Schema, mode: NewUserMode) -> DataFrame:
    """Rows of `features`, in which masked users have empty behaviour lists, and int column `masked` (0, 1) at the end.

    The same users are masked on every day and by every engine (`NewUserMode.is_masked`); `natural` masks nobody.
    """
    marked = marked_rows(rows, mode)
    if not mode.fraction:
        return marked
    return marked.withColumns({
        column: F.when(F.col(MASKED) == 1, F.array().cast(rows.schema[column].dataType)).otherwise(F.col(column))
        for column in schema.behavior_vocabularies})


def behavior_length(schema: Schema) -> SparkColumn:
    """Behaviours in a row's sequence; 0 for NULL. A row is new where there are none (Eq. 9)."""
    return F.coalesce(F.size(schema.action_column), F.lit(0))


def marked_rows(rows: DataFrame, mode: NewUserMode) -> DataFrame:
    """`rows` as they are, and int column `masked` at the end: whose behaviour the mode removes."""
    if not mode.fraction:
        return rows.withColumn(MASKED, F.lit(0))

    @F.pandas_udf("int")  # type: ignore[call-overload]
    def masked(users: pd.Series) -> pd.Series:
        return pd.Series(mode.is_masked(pa.Array.from_pandas(users)).astype("int32"))

    # The user column alone goes through Python; the lists stay in the JVM.
    return rows.withColumn(MASKED, masked(F.col(USER)))
