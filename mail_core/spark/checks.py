"""The `checks` table: figures of a day's `features` beside those of the days before it, before it costs a training.

The figures of the days before are counted anew from `features`, so that a day that was mended counts as it stands.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, datetime, timedelta, timezone
from typing import Iterator, Sequence

import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.errors import InputError
from mail_core.evaluation.checks import CheckResult, Figures, check_day
from mail_core.lake.tables import Lake
from mail_core.schema.definition import DAY, LABEL, Feature, Schema, check_figures
from mail_core.spark.new_users import behavior_length

CHECKS = "checks"
_FEATURE, _VALUE = "feature", "value"


def replace_checks(schema: Schema, lake: Lake, day: date) -> list[CheckResult]:
    """Check `features` of `day` and replace what `checks` says of it; broken figures are written like the others.

    Raises:
        InputError: no features of that day, or another run that checked it meanwhile.
    """
    since = lake.versions(CHECKS)[CHECKS]
    span = schema.checks.days
    days = lake.days("features", first=day - timedelta(days=2 * span), last=day)
    if day not in days:
        raise InputError(f"{lake.path('features')}: no rows of {day}; run build_features for it")
    before = [d for d in days if day - timedelta(days=span) <= d < day]
    figures = day_figures(lake.read("features"), schema, [*before, day], days)
    results = check_day(figures[day], [figures[d] for d in before], schema.checks)
    checked_at = datetime.now(timezone.utc)
    rows = [{**asdict(result), DAY: day, "checked_at": checked_at} for result in results]
    table = pa.Table.from_pylist(rows, schema=lake.definitions[CHECKS].columns)
    lake.replace_days(CHECKS, lake.spark.createDataFrame(table), [day], since=since)
    return results


def day_figures(features: DataFrame, schema: Schema, days: Sequence[date],
                known: Sequence[date]) -> dict[date, Figures]:
    """Figures by day, in the order of `check_figures`.

    A value is unknown on a day when none of the `schema.checks.days` days before it has it. The share of unknown values
    is left out where fewer than `least_days` of those days have rows.

    Args:
        features: with the columns of `features_schema`; days outside `known` are not read.
        days: whose figures are wanted, among `known`.
        known: days that have rows, in order, back to the first that can make a value of `days` known.
    """
    own = [f for f in schema.features if not f.derive]
    shares = {"ctr": F.avg(F.col(LABEL).cast("double")),
              "new_users": _share(behavior_length(schema) == 0),
              **{f"null.{f.name}": _share(F.size(f.name) <= 0 if f.kind == "multi" else F.lit(False), F.col(f.name))
                 for f in own}}
    plain = (features.where(F.col(DAY).isin(list(days))).groupBy(DAY)
             .agg(F.count("*").cast("double").alias("rows"), *(share.alias(name) for name, share in shares.items())))
    found: dict[date, dict[str, float]] = {row[DAY]: row.asDict() for row in plain.collect()}
    for day, name, share in _unknown_shares(features, [f for f in own if f.kind != "dense"], schema, days, known):
        found[day][f"unknown.{name}"] = share
    return {day: {name: found[day][name] for name in check_figures(schema.features) if name in found[day]}
            for day in days}


def _share(condition: SparkColumn, nullable: SparkColumn | None = None) -> SparkColumn:
    """Share of rows for which `condition` holds, or `nullable` is NULL."""
    holds = condition if nullable is None else nullable.isNull() | condition
    return F.avg(F.coalesce(holds, F.lit(False)).cast("double"))


def _unknown_shares(features: DataFrame, own: Sequence[Feature], schema: Schema, days: Sequence[date],
                    known: Sequence[date]) -> Iterator[tuple[date, str, float]]:
    """(day, feature, share of its values that the days before do not have).

    One shuffle for all features: (feature, value) with its count on each day, counted on the way.
    """
    span, least = schema.checks.days, schema.checks.least_days
    before = {day: [d for d in known if day - timedelta(days=span) <= d < day] for day in days}
    told = [day for day in days if len(before[day]) >= least]
    if not told:
        return
    needed = sorted({d for day in told for d in (*before[day], day)})
    names = {d: f"n{number}" for number, d in enumerate(needed)}
    values = F.array(*(F.struct(F.lit(f.name).alias(_FEATURE), _texts(f).alias(_VALUE)) for f in own))
    long = (features.where(F.col(DAY).isin(needed)).select(DAY, F.explode(values).alias("entry"))
            .select(DAY, f"entry.{_FEATURE}", F.explode(f"entry.{_VALUE}").alias(_VALUE)))
    by_day = (F.count(F.when(F.col(DAY) == F.lit(d), 1)).alias(name) for d, name in names.items())
    counts = long.where(F.col(_VALUE).isNotNull()).groupBy(_FEATURE, _VALUE).agg(*by_day)
    sums = []
    for day in told:
        count = F.col(names[day])
        is_new = sum((F.col(names[d]) for d in before[day]), F.lit(0)) == 0
        sums += [F.sum(count).alias(f"all_{names[day]}"), F.sum(F.when(is_new, count).otherwise(0)).alias(names[day])]
    for row in counts.groupBy(_FEATURE).agg(*sums).collect():
        for day in told:
            if row[f"all_{names[day]}"]:
                yield day, row[_FEATURE], row[names[day]] / row[f"all_{names[day]}"]


def _texts(feature: Feature) -> SparkColumn:
    """A feature's values as a list of texts."""
    if feature.kind == "multi":
        return F.col(feature.name).cast("array<string>")
    return F.array(F.col(feature.name).cast("string"))
