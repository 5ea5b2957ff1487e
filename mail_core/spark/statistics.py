"""What an export holds, counted: Table 1 of the paper, and rows, CTR and cohorts of each split."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Mapping

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.loading.manifest import SPLITS
from mail_core.schema.definition import CONVERSION, ITEM, LABEL, MASKED, UNSEEN, USER, Schema
from mail_core.spark.new_users import behavior_length

SPLIT, LENGTH = "split", "length"


class UserRows:
    """The narrow columns that the counts need (split, user, item, outcomes, length of the sequence, masked), kept while
    they are used: several counts read them.
    """

    def __init__(self, rows: DataFrame, schema: Schema, split_column: str):
        self._frame = rows.select(F.col(split_column).alias(SPLIT), USER, ITEM, *schema.outcomes,
                                  behavior_length(schema).alias(LENGTH), MASKED)

    def __enter__(self) -> DataFrame:
        return self._frame.persist(StorageLevel.MEMORY_AND_DISK)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._frame.unpersist()


def unseen_users(light: DataFrame, test_split: str) -> DataFrame:
    """Users of the test split that no other split has: USER and `unseen`, 1."""
    users = {test: light.where((F.col(SPLIT) == test_split) == test).select(USER).distinct() for test in (True, False)}
    return users[True].join(users[False], USER, "left_anti").withColumn(UNSEEN, F.lit(1))


def export_statistics(light: DataFrame, newcomers: DataFrame, schema: Schema) -> dict[str, Any]:
    """Table 1 under its own keys, and `splits`: split -> rows, clicks, ctr, the share of rows of each cohort, and
    conversions where the schema names them."""
    new = F.col(LENGTH) == 0
    totals = {n: column for n, column in (("clicks", LABEL), ("conversions", CONVERSION)) if column in schema.outcomes}
    marks = {"old": ~new, "new": new, "new_masked": new & (F.col(MASKED) == 1),
             "new_natural": new & (F.col(MASKED) == 0), "unseen": F.col(UNSEEN).isNotNull()}
    by_split = light.join(newcomers, USER, "left").groupBy(SPLIT).agg(
        F.count("*").alias("rows"), F.sum(LENGTH).alias("behaviors"),
        *(F.sum(column).alias(name) for name, column in totals.items()),
        *(F.count(F.when(condition, 1)).alias(name) for name, condition in marks.items())).collect()
    users = light.groupBy(USER).agg(F.max(new.cast("int")).alias("new")).agg(
        F.count("*").alias("users"), F.coalesce(F.sum("new"), F.lit(0)).alias("new")).first()
    items = light.agg(F.countDistinct(ITEM).alias("items")).first()
    assert users is not None and items is not None, "an aggregate without keys has one row"
    old_rows = sum(row["old"] for row in by_split)
    counted = {row[SPLIT]: row for row in by_split}
    return {
        "users": users["users"], "new_users": users["new"], "items": items["items"],
        "user_attributes": len(schema.group("user")), "context_features": len(schema.group("context")),
        "average_behavior_length": sum(row["behaviors"] for row in by_split) / old_rows if old_rows else 0.0,
        "item_features": len(schema.group("item")),
        "splits": {split: {"rows": counted[split]["rows"], **{name: counted[split][name] for name in totals},
                           "ctr": counted[split]["clicks"] / counted[split]["rows"],
                           "share": {name: counted[split][name] / counted[split]["rows"] for name in marks}}
                   for split in SPLITS if split in counted},
    }


def format_statistics(statistics: Mapping[str, Any]) -> str:
    """Table 1 of the paper for the data at hand, then a line a split."""
    table = [("# All users", f"{statistics['users']:,}"),
             ("# New users (a row without behaviour)", f"{statistics['new_users']:,}"),
             ("# Items", f"{statistics['items']:,}"), ("# User attributes", f"{statistics['user_attributes']}"),
             ("# Context features", f"{statistics['context_features']}"),
             ("Avg. length of behavior sequence (where there is one)", f"{statistics['average_behavior_length']:.1f}"),
             ("# Item features", f"{statistics['item_features']}")]
    lines = [f"{name:<54}{value:>14}" for name, value in table]
    cohorts = ("old", "new", "new_masked", "new_natural", "unseen")
    lines += ["", f"{'split':<12}{'rows':>12}{'CTR':>9}" + "".join(f"{name:>13}" for name in cohorts)]
    lines += [f"{split:<12}{numbers['rows']:>12,}{numbers['ctr']:>9.2%}"
              + "".join(f"{numbers['share'][name]:>13.2%}" for name in cohorts)
              for split, numbers in statistics["splits"].items()]
    return "\n".join(lines)
