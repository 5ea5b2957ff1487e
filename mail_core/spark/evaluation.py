"""Metrics of a model version, or of two on the same rows, over a day's `features`: scored and summed up on the workers.

What reaches the driver is a few figures a cohort. A cohort's labels, probabilities and user keys meet in one worker,
some tens of bytes a row, because AUC and its bootstrap need them in one order.

B rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from mail_core.encoding.hashing import stable_hash
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.evaluation.behavior_fit import BehaviorFit
from mail_core.evaluation.cohorts import COHORTS, cohort_masks
from mail_core.evaluation.comparison import BootstrapConfig, PairedDifference, loss_difference, paired_differences
from mail_core.evaluation.metrics import METRICS, CohortMetrics, auc, conversion_aucs, metrics_of
from mail_core.package.scoring import Package
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import CONVERSION, ITEM, LABEL, MASKED, UNKNOWN, USER
from mail_core.simulation.world import World
from mail_core.spark.new_users import behavior_length, with_new_users
from mail_core.spark.packages import FolderHandle, PackageHandle, ship_folder, ship_package

_SCORED = ("label int, user_key long, is_new boolean, masked boolean, unseen boolean, model double, against double, "
           "truth double, attributes double, virtual_off double, conversion int, cvr double")
_SUMMARY = "cohort string, source string, metric string, value double, low double, high double"
_FIT = "rows long, real array<double>, real_squares double, error_squares double, cosines double"
_MODEL, _AGAINST, _DIFFERENCE, _TRUTH, _ATTRIBUTES = "model", "against", "difference", "truth", "attributes"
_VIRTUAL_OFF, _CONSTANT, _CONVERSIONS = "virtual_off", "constant", "conversions"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated, beside the day."""

    package: Path
    """Folder of the version."""
    new_users: NewUserMode
    """Whose behaviour is removed before scoring."""
    against: Path | None = None
    """Folder of the version that it is compared with, on the same rows."""
    world: Path | None = None
    """Folder of the simulator's world, for the best attainable AUC."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    promotion: bool = False
    """Also what a promotion asks for: `Evaluation.losses`, `constant` and `virtual_off`."""


@dataclass(frozen=True, kw_only=True)
class Attainable:
    """AUC of the world's own probabilities in one cohort."""

    truth: float | None
    attributes: float | None
    """Of the best predictor that sees attributes, context and item, and no behaviour."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one day."""

    model: list[CohortMetrics]
    """A cohort each, in the order of COHORTS; likewise `against`."""
    fit: BehaviorFit | None
    """Virtual against real behaviour of masked users' rows; None where the version makes none, or without such rows."""
    against: list[CohortMetrics] | None
    differences: list[PairedDifference]
    """model - against."""
    attainable: dict[str, Attainable]
    """By cohort; empty without a world."""
    conversions: dict[str, dict[str, float | None]]
    """Cohort -> the figures of `conversion_aucs`; empty for a version without the head `esmm`."""
    losses: dict[str, PairedDifference]
    """Cohort -> log loss, model - against; like the two below it is there for a promotion alone."""
    constant: PairedDifference
    """Log loss over all rows, model - the day's own CTR, which no constant beats."""
    virtual_off: dict[str, PairedDifference]
    """Cohort -> AUC, model - its own ranking tower with virtual behaviour switched off; none for a version that makes
    no virtual behaviour."""


def evaluate_rows(features: DataFrame, package: Package, config: EvaluationConfig) -> Evaluation:
    """Score `features` (columns of `features_schema`) and sum up by cohort.

    Args:
        package: `config.package` as the driver loaded it.

    Raises:
        InputError: `features` lacks a column that the version takes, or has it with another type.
    """
    check_inputs(features, package)
    spark = features.sparkSession
    model = ship_package(spark, config.package)
    against = ship_package(spark, config.against) if config.against else None
    world = ship_folder(spark, config.world) if config.world else None
    rows = with_new_users(features, package.schema, config.new_users)
    scored = rows.mapInArrow(
        _score(model, against, world, config.promotion and package.model.makes_behavior), _SCORED)
    cohorts = F.array(*(F.when(condition, F.lit(name)) for name, condition in _conditions().items()))
    lines = (scored.withColumn("cohort", F.explode(F.array_compact(cohorts)))
             .groupBy("cohort").applyInArrow(_summarise(config), _SUMMARY).collect())
    return _evaluation(lines, config, _behavior_fit(features, model, package, config))


def check_inputs(features: DataFrame, package: Package) -> None:
    """Raise InputError unless `features` has the version's raw inputs with their types."""
    found = {field.name: field.dataType.simpleString() for field in features.schema}
    for field in from_arrow_schema(input_schema(package.schema)):
        if found.get(field.name) != field.dataType.simpleString():
            raise InputError(f"table features: column {field.name}: the model version (schema {package.schema.name}) "
                             f"takes {field.dataType.simpleString()}, found {found.get(field.name, 'no such column')}")


def unseen_users(rows: pa.Table, package: Package) -> np.ndarray:
    """bool (B,): the user's ID is not in the version's vocabulary; all False where IDs are not among its inputs."""
    feature = package.schema.user_id_feature
    if feature is None:
        return np.zeros(rows.num_rows, dtype=bool)
    return package.encoders.codes(feature, rows.column(feature).combine_chunks()) == UNKNOWN


def _conditions() -> dict[str, Column]:
    """The cohorts of `cohort_masks`, as Spark columns (its flags, one table of eight combinations)."""
    flags = np.array(np.meshgrid([False, True], [False, True], [False, True], indexing="ij")).reshape(3, -1)
    masks = cohort_masks(*flags)
    code = F.col("is_new").cast("int") * 4 + F.col("masked").cast("int") * 2 + F.col("unseen").cast("int")
    return {cohort: code.isin([int(i) for i in np.flatnonzero(mask)]) for cohort, mask in masks.items()}


def _score(model: PackageHandle, against: PackageHandle | None, world: FolderHandle | None,
           virtual_off: bool) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        package = model.load()
        truth = World.load(str(world.path())) if world else None
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            users = rows.column(USER).combine_chunks()
            lengths = rows.column(package.schema.action_column).combine_chunks().value_lengths().fill_null(0)
            ids = users.to_numpy(zero_copy_only=False), rows.column(ITEM).to_numpy()
            nothing, scores = pa.nulls(rows.num_rows, pa.float64()), package.score(rows)
            converted = rows.column(CONVERSION).combine_chunks() if CONVERSION in rows.column_names else None
            yield pa.RecordBatch.from_pydict({
                "label": rows.column(LABEL).combine_chunks(), "user_key": stable_hash(users).view(np.int64),
                "is_new": lengths.to_numpy() == 0, "masked": rows.column(MASKED).to_numpy() == 1,
                "unseen": unseen_users(rows, package),
                "model": scores.ctr, "against": against.load().predict(rows) if against else nothing,
                "truth": truth.click_probability(*ids) if truth else nothing,
                "attributes": truth.attribute_only_probability(*ids) if truth else nothing,
                "virtual_off": package.predict(rows, virtual_behavior=False) if virtual_off else nothing,
                "conversion": pa.nulls(rows.num_rows, pa.int32()) if converted is None else converted,
                "cvr": nothing if scores.cvr is None else pa.array(scores.cvr)})

    return score


def _summarise(config: EvaluationConfig) -> Callable[..., pa.Table]:
    compare, attainable, bootstrap = config.against is not None, config.world is not None, config.bootstrap

    def summarise(key: tuple[pa.Scalar, ...], group: pa.Table) -> pa.Table:
        cohort = key[0].as_py()
        # Sorted, so that sums and resamples do not depend on the order in which the rows arrived.
        group = group.sort_by([("user_key", "ascending"), ("model", "ascending"), ("label", "ascending")])
        column = {name: group.column(name).to_numpy() for name in group.schema.names if name != "cohort"}
        labels, users = column["label"], column["user_key"]
        lines: list[tuple] = [(_MODEL, *item, None, None)
                              for item in metrics_of(cohort, labels, column["model"], users).items()]
        if compare:
            lines += [(_AGAINST, *item, None, None)
                      for item in metrics_of(cohort, labels, column["against"], users).items()]
            lines += [(_DIFFERENCE, d.metric, d.difference, d.low, d.high) for d in
                      paired_differences(cohort, labels, column["model"], column["against"], users, bootstrap)]
        if not np.isnan(column["cvr"]).any():
            found = conversion_aucs(labels, column["conversion"], column["model"], column["cvr"])
            lines += [(_CONVERSIONS, *item, None, None) for item in found.items()]
        if attainable:
            lines += [(source, "auc", auc(labels, column[source]), None, None) for source in (_TRUTH, _ATTRIBUTES)]
        if config.promotion:
            lines += [(source, d.metric, d.difference, d.low, d.high)
                      for source, d in _promotion_differences(cohort, column, bootstrap)]
        source, metric, *values = zip(*lines)
        return pa.table([pa.array([cohort] * len(lines)), pa.array(source), pa.array(metric),
                         *(pa.array(v, pa.float64()) for v in values)],
                        names=["cohort", "source", "metric", "value", "low", "high"])

    return summarise


def _promotion_differences(cohort: str, column: dict[str, np.ndarray],
                           bootstrap: BootstrapConfig) -> Iterator[tuple[str, PairedDifference]]:
    """(source, difference) of the columns that a promotion adds; a column that was not scored is NaN."""
    labels, model, users = column["label"], column["model"], column["user_key"]
    if not np.isnan(column["against"]).any():
        yield _DIFFERENCE, loss_difference(cohort, labels, model, column["against"], users, bootstrap)
    if cohort == "all":
        constant = np.full(len(labels), labels.mean())
        yield _CONSTANT, loss_difference(cohort, labels, model, constant, users, bootstrap)
    if not np.isnan(column["virtual_off"]).any():
        for d in paired_differences(cohort, labels, model, column["virtual_off"], users, bootstrap):
            yield _VIRTUAL_OFF, d


def _behavior_fit(features: DataFrame, model: PackageHandle, package: Package,
                  config: EvaluationConfig) -> BehaviorFit | None:
    """Partial sums over the masked users' rows that have behaviour to compare with, one line a partition."""
    if not package.model.makes_behavior or not config.new_users.fraction:
        return None
    mode = config.new_users

    def fit(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        loaded, parts = model.load(), []
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(pa.array(mode.is_masked(rows.column(USER).combine_chunks())))
            pooled = loaded.pooled_behavior(rows)
            assert pooled is not None
            parts.append(BehaviorFit.of(*pooled))
        if parts:
            total = reduce(add, parts)
            yield pa.RecordBatch.from_pylist([{"rows": total.rows, "real": total.real_D.tolist(),
                                               "real_squares": total.real_squares, "error_squares": total.error_squares,
                                               "cosines": total.cosines}])

    with_behavior = features.where(behavior_length(package.schema) > 0)
    parts = [BehaviorFit(row["rows"], np.array(row["real"]), row["real_squares"], row["error_squares"], row["cosines"])
             for row in with_behavior.mapInArrow(fit, _FIT).collect()]
    return reduce(add, parts) if parts else None


def _evaluation(rows: list[Row], config: EvaluationConfig, fit: BehaviorFit | None) -> Evaluation:
    found = {(row["source"], row["cohort"], row["metric"]): row for row in rows}
    against = [_metrics(found, _AGAINST, cohort) for cohort in COHORTS] if config.against else None
    differences = [_paired(found, _DIFFERENCE, cohort, metric)
                   for cohort in COHORTS for metric in ("auc", "gauc")] if config.against else []
    attainable = {cohort: Attainable(truth=_value(found, _TRUTH, cohort, "auc"),
                                     attributes=_value(found, _ATTRIBUTES, cohort, "auc"))
                  for cohort in COHORTS} if config.world else {}
    losses = {cohort: _paired(found, _DIFFERENCE, cohort, "logloss")
              for cohort in COHORTS} if config.promotion and config.against else {}
    conversions: dict[str, dict[str, float | None]] = {}
    for source, cohort, metric in found:
        if source == _CONVERSIONS:
            conversions.setdefault(cohort, {})[metric] = _value(found, source, cohort, metric)
    virtual_off = {cohort: _paired(found, _VIRTUAL_OFF, cohort, "auc")
                   for cohort in COHORTS} if any(source == _VIRTUAL_OFF for source, *_ in found) else {}
    return Evaluation(model=[_metrics(found, _MODEL, cohort) for cohort in COHORTS], fit=fit, against=against,
                      differences=differences, attainable=attainable, losses=losses, virtual_off=virtual_off,
                      conversions={c: conversions[c] for c in COHORTS if c in conversions},
                      constant=_paired(found, _CONSTANT, "all", "logloss"))


def _metrics(found: dict[tuple[str, str, str], Row], source: str, cohort: str) -> CohortMetrics:
    values = {metric: _value(found, source, cohort, metric) for metric in METRICS}
    return CohortMetrics(cohort=cohort, rows=int(values["rows"] or 0), users=int(values["users"] or 0),
                         ctr=values["ctr"], auc=values["auc"], gauc=values["gauc"], logloss=values["logloss"],
                         ece=values["ece"])


def _value(found: dict[tuple[str, str, str], Row], source: str, cohort: str, metric: str) -> float | None:
    row = found.get((source, cohort, metric))  # a cohort without rows has no line
    return row["value"] if row else None


def _paired(found: dict[tuple[str, str, str], Row], source: str, cohort: str, metric: str) -> PairedDifference:
    row = found.get((source, cohort, metric))
    columns = (("difference", "value"), ("low", "low"), ("high", "high"))
    return PairedDifference(cohort=cohort, metric=metric, **{name: row[column] if row else None
                                                             for name, column in columns})
