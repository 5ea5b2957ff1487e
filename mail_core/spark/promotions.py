"""The `promotions` table: a day's decision on a registered model, made here, carried out in the registry, written last.

The row is there once all is done, and a run that finds it changes nothing; one that finds a decision without a row
carries it out.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone

import pyarrow as pa
from pyspark.sql import functions as F

from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.evaluation.comparison import NO_DIFFERENCE
from mail_core.evaluation.promotion import (CHALLENGER, CHAMPION, KEPT, PROMOTED, CohortEvidence, Decision, Promotion,
                                            PromotionConfig, beats_constant, gain_is_lost, non_inferior)
from mail_core.lake.sql import sql_literal
from mail_core.lake.tables import Lake
from mail_core.package.scoring import Package
from mail_core.package.store import NEW_USERS, load_package
from mail_core.schema.definition import DAY
from mail_core.spark.evaluation import Evaluation, EvaluationConfig, check_inputs, evaluate_rows
from mail_core.spark.evaluations import features_of
from mail_core.tracking import promotions as registry
from mail_core.tracking.promotions import Rollback
from mail_core.tracking.registry import ResolvedModel, resolve_model

PROMOTIONS = "promotions"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """What is to be decided."""

    day: date
    """The held-out day: a test day, or one after it, of challenger and champion."""
    name: str
    """Of the registered model; its alias `challenger` says which version."""
    config: PromotionConfig = PromotionConfig()
    new_users: NewUserMode | None = None
    """None: the mode of the export that the challenger was trained on."""


def promote(lake: Lake, request: PromotionRequest) -> Promotion:
    """Decide on the challenger and carry it out; the day's decision as it stands where it was made before.

    Raises:
        InputError: no such model or no challenger, one that was trained on the day, no features of the day or features
            that a version cannot read, a rollback that was not finished, or another run of the day at once.
    """
    since = lake.versions(PROMOTIONS)[PROMOTIONS]
    aliases = registry.aliases(request.name)
    if CHALLENGER not in aliases:
        raise InputError(f"model {request.name!r}: no version has the alias {CHALLENGER}; train one first")
    if registry.unfinished_rollback(request.name) is not None:
        raise InputError(f"model {request.name!r}: a rollback was not finished; run jobs/rollback.py once more first")
    version, standing = aliases[CHALLENGER], _standing(lake, request.day, request.name)
    if standing is not None and standing.model_version == version:
        logger.info("%s version %s: the decision of %s stands", request.name, version, request.day)
        return standing
    promotion = registry.recorded(request.name, version, request.day)
    if promotion is None or not registry.can_carry_out(promotion):
        challenger = _loaded(request.name, version)
        if challenger.package.test_day > request.day:
            if standing is not None:
                return standing
            raise InputError(f"{challenger.model.title} was trained on the days before {challenger.package.test_day}: "
                             f"{request.day} is no held-out day for it")
        champion = _loaded(request.name, aliases[CHAMPION]) if CHAMPION in aliases else None
        promotion = _decided(lake, request, challenger, champion)
        registry.record(promotion)
    if promotion.gain_lost:
        logger.warning("%s version %s: virtual behaviour gains nothing any more: AUC of %s users less that of its own "
                       "tower with virtual behaviour switched off is %+.4f", request.name, version,
                       promotion.gain_cohort, promotion.virtual_behavior_gain)
    registry.carry_out(promotion)
    _write(lake, promotion, since)
    return promotion


def roll_back(lake: Lake, name: str, reason: str) -> tuple[Rollback, Promotion | None]:
    """Put the version before the champion back, mark the withdrawn one, and write it into the row of its promotion.

    Returns the promotion that is undone, too; None where none is recorded.

    Raises:
        InputError: no such model, or no version to go back to.
    """
    rollback = registry.begin_rollback(name, reason, datetime.now(timezone.utc))
    undone, standing_again = registry.swap(rollback)
    if undone is None:
        logger.warning("%s version %s: no promotion of it is recorded; the rollback stands in its tags alone", name,
                       rollback.withdrawn)
    elif _is_about(_standing(lake, undone.day, name), undone.model_version, absent=True):
        _write(lake, undone)
    if standing_again is not None and _is_about(_standing(lake, standing_again.day, name),
                                                standing_again.model_version, absent=False):
        _write(lake, standing_again)
    registry.end_rollback(rollback)
    return rollback, undone


def _is_about(row: Promotion | None, version: str, absent: bool) -> bool:
    """Whether a day's row may be replaced by one of `version`: a day that was trained again has another version's."""
    return absent if row is None else row.model_version == version


@dataclass(frozen=True)
class _Loaded:
    model: ResolvedModel
    package: Package


def _loaded(name: str, version: str) -> _Loaded:
    model = resolve_model(f"models:/{name}/{version}")
    return _Loaded(model, load_package(model.package_folder))


def _decided(lake: Lake, request: PromotionRequest, challenger: _Loaded, champion: _Loaded | None) -> Promotion:
    """The decision, with the figures that it rests on."""
    model, config = challenger.model, request.config
    mode = request.new_users or NewUserMode.parse(challenger.package.lineage[NEW_USERS])
    features = features_of(lake, request.day)
    kept = _kept_without_comparison(request.day, model, champion)
    against = None if champion is None or kept is not None else champion
    if against is not None:
        check_inputs(features, against.package)
    evaluation = evaluate_rows(features, challenger.package, EvaluationConfig(
        package=model.package_folder, new_users=mode, bootstrap=config.bootstrap, promotion=True,
        against=None if against is None else against.model.package_folder))
    cohorts = () if kept is not None else _evidence(evaluation)
    decision = kept or (beats_constant(cohorts[0]) if champion is None else non_inferior(cohorts, config))
    gain = evaluation.virtual_off.get(config.gain_cohort, NO_DIFFERENCE)
    return Promotion(
        day=request.day, model_name=model.name, model_version=model.version,
        champion=None if champion is None else champion.model.version,
        decision=PROMOTED if decision.promoted else KEPT, reason=decision.reason, new_users=str(mode), cohorts=cohorts,
        virtual_behavior_gain=gain.difference, virtual_behavior_gain_low=gain.low, virtual_behavior_gain_high=gain.high,
        gain_cohort=config.gain_cohort, gain_lost=gain_is_lost(gain, config), auc_margin=config.auc_margin,
        logloss_margin=config.logloss_margin, confidence=config.confidence, decided_at=datetime.now(timezone.utc))


def _kept_without_comparison(day: date, model: ResolvedModel, champion: _Loaded | None) -> Decision | None:
    """Why there is nothing to compare, where that is so."""
    if registry.is_rolled_back(model.name, model.version):
        return Decision(False, f"version {model.version} was rolled back; only another rollback brings it back")
    if champion is None:
        return None
    if champion.model.version == model.version:
        return Decision(False, f"version {model.version} is the champion already")
    held_out = champion.package.test_day
    if held_out > day:
        return Decision(False, f"the champion, version {champion.model.version}, was trained on the days before "
                               f"{held_out}: {day} is no held-out day for it, and a challenger of older days does not "
                               "replace it")
    return None


def _evidence(evaluation: Evaluation) -> tuple[CohortEvidence, ...]:
    """Every cohort against the champion; without one, everybody against the constant CTR."""
    if evaluation.against is None:
        everybody = next(metrics for metrics in evaluation.model if metrics.cohort == "all")
        loss = evaluation.constant
        assert everybody.logloss is not None and loss.difference is not None, "the day has rows"
        return (CohortEvidence.of(everybody, logloss=loss, against_auc=0.5,
                                  against_logloss=everybody.logloss - loss.difference),)
    aucs = {d.cohort: d for d in evaluation.differences if d.metric == "auc"}
    return tuple(CohortEvidence.of(model, auc=aucs[model.cohort], logloss=evaluation.losses[model.cohort],
                                   against_auc=against.auc, against_logloss=against.logloss)
                 for model, against in zip(evaluation.model, evaluation.against))


def _standing(lake: Lake, day: date, name: str) -> Promotion | None:
    """The day's row of the model, if there is one."""
    if not lake.exists(PROMOTIONS):
        return None
    rows = lake.read(PROMOTIONS).where((F.col(DAY) == F.lit(day)) & (F.col("model_name") == F.lit(name)))
    found = rows.toArrow().to_pylist()
    return Promotion.from_row(found[0]) if found else None


def _write(lake: Lake, promotion: Promotion, since: int | None = None) -> None:
    row = {**asdict(promotion), "cohorts": [asdict(evidence) for evidence in promotion.cohorts]}
    table = pa.Table.from_pylist([row], schema=lake.definitions[PROMOTIONS].columns)
    lake.replace_days(PROMOTIONS, lake.spark.createDataFrame(table), [promotion.day],
                      where=f"model_name = {sql_literal(promotion.model_name)}", since=since)
