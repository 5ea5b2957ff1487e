"""What the tables of a lake say of a day, summed up on the workers, and the page of it.

What reaches the driver is bounded: counts by day, reason and cohort, and a few cut lines.
"""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.errors import InputError
from mail_core.evaluation.checks import CheckResult
from mail_core.evaluation.daily_page import (DAYS_BEFORE, SCORE_EDGES, DailyFigures, Evaluated, FeatureDay, Quarantined,
                                             Scored, ScoreGroup, daily_page)
from mail_core.evaluation.metrics import METRICS
from mail_core.evaluation.page import EXCERPT
from mail_core.evaluation.promotion import Promotion
from mail_core.lake.tables import RAW_TABLES, Lake
from mail_core.schema.definition import DAY, LABEL, Schema
from mail_core.spark.new_users import behavior_length
from mail_core.tracking.registry import training_seconds
from mail_core.tracking.runs import configure_tracking

REASONS = 40
"""Reasons of quarantine that are shown, those with most lines."""
_QUANTILES = (0.1, 0.5, 0.9)
_BINS = len(SCORE_EDGES) - 1
_WRITES = {"ingest_logs": (*RAW_TABLES.values(), "quarantine"), "build_features": ("features",),
           "check_features": ("checks",), "evaluate": ("evaluations",), "promote": ("promotions",),
           "score": ("ctr_scores",)}
"""Job -> the tables that it writes."""
_AHEAD = {"score": timedelta(days=1)}

logger = logging.getLogger(__name__)


def write_daily_report(schema: Schema, lake: Lake, day: date, model_name: str, out: Path,
                       tracking_uri: str | None = None) -> DailyFigures:
    """Write the page of `day` to the file `out`.

    Args:
        tracking_uri: as of `configure_tracking`; a store that is not there costs the page the time of training alone.

    Raises:
        InputError: `out` is a folder, or another schema wrote one of the tables.
    """
    if out.is_dir():
        raise InputError(f"{out}: a folder, expected the name of a file to write")
    found = daily_figures(schema, lake, day, model_name)
    training = (None if found.evaluated is None
                else _training_seconds(lake, tracking_uri, model_name, found.evaluated.version))
    if training is not None:
        found = replace(found, seconds={**found.seconds, "train": training})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(daily_page(found), encoding="utf-8")
    return found


def daily_figures(schema: Schema, lake: Lake, day: date, model_name: str) -> DailyFigures:
    """Figures of `day` and of the days before it; None for each table that the lake does not have.

    Raises:
        InputError: another schema wrote one of the tables.
    """
    return DailyFigures(
        schema_name=schema.name, day=day, model_name=model_name,
        raw={table: _rows_by_day(lake, table, day) for table in RAW_TABLES.values()},
        quarantined=_quarantined(lake, day), features=_features(schema, lake, day), checks=_checks(lake, day),
        evaluations=_evaluations(lake, day, model_name), promotions=_promotions(lake, day, model_name),
        scores=_scores(lake, day, model_name), has_scores=lake.exists("ctr_scores"), seconds=_seconds(lake, day))


def _window(lake: Lake, table: str, day: date, days: int = DAYS_BEFORE) -> DataFrame | None:
    """The rows of `day` and of `days` before it; None without the table."""
    if not lake.exists(table):
        return None
    return lake.read(table).where(F.col(DAY).between(F.lit(day - timedelta(days=days)), F.lit(day)))


def _rows_by_day(lake: Lake, table: str, day: date) -> dict[date, int] | None:
    rows = _window(lake, table, day)
    return None if rows is None else {row[DAY]: row["count"] for row in rows.groupBy(DAY).count().collect()}


def _quarantined(lake: Lake, day: date) -> list[Quarantined] | None:
    rows = _window(lake, "quarantine", day, days=0)
    if rows is None:
        return None
    # Cut before anything is compared or shipped: a line may be megabytes. One character more tells that it was cut.
    cut = F.struct(*(F.substring(name, 1, EXCERPT + 1).alias(name) for name in ("file", "line")))
    by_chance = F.xxhash64("file", "line")
    groups = (rows.groupBy("source", "reason")
              .agg(F.count("*").alias("rows"), F.min(cut).alias("first"), F.min_by(cut, by_chance).alias("second"),
                   F.max_by(cut, by_chance).alias("third"))
              .orderBy(F.desc("rows"), "source", "reason").limit(REASONS).collect())
    return [Quarantined(source=row["source"], reason=row["reason"], rows=row["rows"], examples=tuple(
        dict.fromkeys((row[n]["file"], row[n]["line"]) for n in ("first", "second", "third")))) for row in groups]


def _features(schema: Schema, lake: Lake, day: date) -> dict[date, FeatureDay] | None:
    rows = _window(lake, "features", day)
    if rows is None:
        return None
    is_new = behavior_length(schema) == 0
    summed = rows.groupBy(DAY).agg(F.count("*").alias("rows"), F.avg(LABEL).alias("ctr"),
                                   F.avg(is_new.cast("double")).alias("new_users"))
    return {row[DAY]: FeatureDay(rows=row["rows"], ctr=row["ctr"], new_users=row["new_users"])
            for row in summed.orderBy(DAY).collect()}


def _checks(lake: Lake, day: date) -> list[CheckResult] | None:
    rows = _window(lake, "checks", day, days=0)
    if rows is None:
        return None
    names = [field.name for field in fields(CheckResult)]
    return [CheckResult(**{**row.asDict(), "history": tuple(row["history"] or ())})
            for row in rows.select(*names).orderBy("figure").collect()]


def _evaluations(lake: Lake, day: date, model_name: str) -> dict[date, Evaluated] | None:
    """The version's own metrics; of several evaluations of a day the one made last."""
    rows = _window(lake, "evaluations", day)
    if rows is None:
        return None
    own = rows.where((F.col("model_name") == F.lit(model_name)) & F.col("against").isNull()
                     & F.col("metric").isin(*METRICS))  # every evaluation has all of these, so none mixes with another
    latest = F.max_by(F.struct("model_version", "value"), "evaluated_at").alias("latest")
    found: dict[date, dict[tuple[str, str], float | None]] = {}
    versions = {}
    for row in own.groupBy(DAY, "cohort", "metric").agg(latest).collect():
        found.setdefault(row[DAY], {})[row["cohort"], row["metric"]] = row["latest"]["value"]
        versions[row[DAY]] = row["latest"]["model_version"]
    return {d: Evaluated(version=versions[d], values=values) for d, values in sorted(found.items())}


def _promotions(lake: Lake, day: date, model_name: str) -> dict[date, Promotion] | None:
    rows = _window(lake, "promotions", day)
    if rows is None:
        return None
    found = rows.where(F.col("model_name") == F.lit(model_name)).toArrow().to_pylist()
    return {row[DAY]: Promotion.from_row(row) for row in found}


def _seconds(lake: Lake, day: date) -> dict[str, float]:
    """Job -> how long its last run took, by the last of its tables; candidates are scored for the day after."""
    found = {job: [s for table in tables if (s := lake.seconds(table, day + _AHEAD.get(job, timedelta(0)))) is not None]
             for job, tables in _WRITES.items()}
    return {job: max(seconds) for job, seconds in found.items() if seconds}


def _training_seconds(lake: Lake, tracking_uri: str | None, model_name: str, version: str) -> float | None:
    try:
        configure_tracking(tracking_uri, lake.uri)
    except InputError as error:
        logger.warning("how long the training took is not known: %s", error)
        return None
    return training_seconds(model_name, version)


def _bin() -> SparkColumn:
    """Number of the bin of SCORE_EDGES that `ctr` falls into; what lies below them falls into the first."""
    low, high = SCORE_EDGES[0], SCORE_EDGES[-1]
    place = F.log10(F.greatest("ctr", F.lit(low)) / low) / math.log10(high / low) * _BINS
    return F.least(F.floor(place), F.lit(_BINS - 1))


def _scores(lake: Lake, day: date, model_name: str) -> Scored | None:
    """Scores are made in the morning, of the day before: those of the day after come first."""
    if not lake.exists("ctr_scores"):
        return None
    days = (day + timedelta(days=1), day)
    rows = lake.read("ctr_scores").where(F.col(DAY).isin(*days) & (F.col("model_name") == F.lit(model_name)))
    points = F.percentile_approx("ctr", list(_QUANTILES), 10_000).alias("quantiles")
    groups = (rows.groupBy(DAY, "is_new_user")
              .agg(F.count("*").alias("rows"), F.avg("ctr").alias("mean"), points,
                   F.array_sort(F.collect_set("model_version")).alias("versions"),
                   *(F.count(F.when(_bin() == place, 1)).alias(f"bin{place}") for place in range(_BINS)))
              .orderBy(F.desc(DAY), "is_new_user").collect())
    if not groups:
        return None
    shown = [row for row in groups if row[DAY] == groups[0][DAY]]
    return Scored(day=groups[0][DAY], versions=tuple(sorted({v for row in shown for v in row["versions"]})),
                  groups=tuple(ScoreGroup(is_new=row["is_new_user"], rows=row["rows"], mean=row["mean"],
                                          quantiles=tuple(row["quantiles"]),
                                          counts=tuple(row[f"bin{place}"] for place in range(_BINS))) for row in shown))
