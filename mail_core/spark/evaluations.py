"""The `evaluations` table: a day's metrics of a model version by cohort, and its comparison with another one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.evaluation.comparison import BootstrapConfig
from mail_core.evaluation.metrics import relative_improvement
from mail_core.evaluation.tables import format_differences, format_table, number
from mail_core.lake.sql import sql_literal
from mail_core.package.store import NEW_USERS, load_package
from mail_core.schema.definition import DAY, Schema
from mail_core.spark.evaluation import Evaluation, EvaluationConfig, check_inputs, evaluate_rows

if TYPE_CHECKING:  # executors need neither Delta nor MLflow
    from mail_core.lake.tables import Lake
    from mail_core.tracking.registry import ResolvedModel

RANKING_METRICS = ("auc", "gauc")
_COMPARED = ("auc", "gauc", "logloss", "ece")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate."""

    day: date
    model: ResolvedModel
    against: ResolvedModel | None = None
    new_users: NewUserMode | None = None
    """None: the mode of the export that the version was trained on."""
    world: Path | None = None
    """Folder of the simulator's world."""
    bootstrap: BootstrapConfig = BootstrapConfig()


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """What was found and written."""

    request: EvaluationRequest
    new_users: NewUserMode
    """As it was applied."""
    evaluation: Evaluation
    path: str
    rows: int
    """Rows of `evaluations` written."""

    @property
    def improvements(self) -> dict[tuple[str, str], float | None]:
        """RI of the version over `against` in per cent, by (cohort, metric)."""
        pairs = zip(self.evaluation.model, self.evaluation.against or [])
        return {(a.cohort, metric): relative_improvement(getattr(a, metric), getattr(m, metric))
                for m, a in pairs for metric in RANKING_METRICS}


def replace_evaluations(schema: Schema, lake: Lake, request: EvaluationRequest) -> EvaluationSummary:
    """Evaluate on `features` of `request.day` and replace what `evaluations` says of that day, version and comparison.

    A second run writes the same rows, `evaluated_at` excepted. Rows of other versions and comparisons stay.

    Raises:
        InputError: no features of that day, a version that was made for other input, or another run that replaced the
            same rows meanwhile.
    """
    since = lake.versions("evaluations")["evaluations"]
    package = load_package(request.model.package_folder)
    new_users = request.new_users or NewUserMode.parse(package.lineage[NEW_USERS])
    features = features_of(lake, request.day)
    if request.against is not None:
        other = load_package(request.against.package_folder)
        check_inputs(features, other)
        if other.lineage[NEW_USERS] != package.lineage[NEW_USERS]:
            logger.warning("%s was trained with new users %s, %s with %s; both are scored with %s", request.model.title,
                           package.lineage[NEW_USERS], request.against.title, other.lineage[NEW_USERS], new_users)
    evaluation = evaluate_rows(features, package, EvaluationConfig(
        package=request.model.package_folder, new_users=new_users, world=request.world, bootstrap=request.bootstrap,
        against=request.against.package_folder if request.against else None))
    summary = EvaluationSummary(request=request, new_users=new_users, evaluation=evaluation, rows=0, path="")
    evaluated_at = datetime.now(timezone.utc)
    model = request.model
    lines = [(request.day, model.name, model.version, against, cohort, metric, value, evaluated_at)
             for against, cohort, metric, value in _lines(summary)]
    frame = lake.spark.createDataFrame(lines, lake.definitions["evaluations"].spark_schema)
    rows = lake.replace_days("evaluations", frame, [request.day], where=_mine(request), since=since)
    return EvaluationSummary(request=request, new_users=new_users, evaluation=evaluation, rows=rows,
                             path=lake.path("evaluations"))


def features_of(lake: Lake, day: date) -> DataFrame:
    """The day's rows of `features`. Raises InputError where it has none."""
    days = lake.days("features")
    if day not in days:
        raise InputError(f"{lake.path('features')}: no rows of {day}; "
                         + (f"its days are {days[0]} to {days[-1]}" if days else "it is empty"))
    return lake.read("features").where(F.col(DAY) == F.lit(day))


def format_summary(summary: EvaluationSummary) -> str:
    """The cohort tables, then what virtual behaviour predicts, what was attainable, and the comparison."""
    request, evaluation = summary.request, summary.evaluation
    where = f"{request.day}, new users {summary.new_users}"
    blocks = {f"{request.model.title}, {where}": evaluation.model}
    if request.against and evaluation.against:
        blocks[f"{request.against.title}, {where}"] = evaluation.against
    parts = [format_table(blocks)]
    if evaluation.fit is not None:
        parts.append(f"virtual behaviour against masked users' own ({evaluation.fit.rows:,} rows): "
                     f"R2 {number(evaluation.fit.r2)}, cosine {number(evaluation.fit.cosine)}\n"
                     f"{evaluation.fit.reading}")
    if evaluation.conversions:
        lines = [f"{cohort:12}  {number(found['ctcvr_auc'])}  {number(found['cvr_auc'])}"
                 for cohort, found in evaluation.conversions.items()]
        parts.append("\n".join(["AUC of conversions (CTCVR over all rows; CVR over clicked ones)", *lines]))
    if evaluation.attainable:
        lines = [f"{cohort:12}  {number(best.truth)}  {number(best.attributes)}"
                 for cohort, best in evaluation.attainable.items()]
        title = "best attainable AUC in the simulated world (of the true probability; of attributes alone)"
        parts.append("\n".join([title, *lines]))
    if request.against:
        bootstrap = request.bootstrap
        title = f"{request.model.title} less {request.against.title}, paired, {bootstrap.resamples} draws of users"
        parts.append(format_differences(title, evaluation.differences, summary.improvements, bootstrap.confidence))
    return "\n\n".join(parts)


def _lines(summary: EvaluationSummary) -> list[tuple[str | None, str, str, float | None]]:
    """(against, cohort, metric, value): the version's own figures with no `against`, the comparison's with it."""
    evaluation = summary.evaluation
    lines: list[tuple[str | None, str, str, float | None]] = [
        (None, metrics.cohort, metric, value) for metrics in evaluation.model for metric, value in metrics.items()]
    if evaluation.fit is not None:
        lines += [(None, "new_masked", "behavior_r2", evaluation.fit.r2),
                  (None, "new_masked", "behavior_cosine", evaluation.fit.cosine)]
    lines += [(None, cohort, name, value) for cohort, found in evaluation.conversions.items()
              for name, value in found.items()]
    for cohort, best in evaluation.attainable.items():
        lines += [(None, cohort, "attainable_auc", best.truth),
                  (None, cohort, "attainable_attribute_auc", best.attributes)]
    against = _title(summary.request.against)
    for metrics in evaluation.against or []:
        lines += [(against, metrics.cohort, f"against_{m}", v) for m, v in metrics.items() if m in _COMPARED]
    for d in evaluation.differences:
        lines += [(against, d.cohort, f"{d.metric}_difference", d.difference),
                  (against, d.cohort, f"{d.metric}_difference_low", d.low),
                  (against, d.cohort, f"{d.metric}_difference_high", d.high),
                  (against, d.cohort, f"{d.metric}_ri", summary.improvements[d.cohort, d.metric])]
    return lines


def _mine(request: EvaluationRequest) -> str:
    """SQL for the rows of the day that this evaluation replaces."""
    against = f" OR against = {sql_literal(_title(request.against))}" if request.against else ""
    return (f"model_name = {sql_literal(request.model.name)} AND model_version = {sql_literal(request.model.version)} "
            f"AND (against IS NULL{against})")


def _title(model: ResolvedModel | None) -> str:
    return f"{model.name}/{model.version}" if model else ""
