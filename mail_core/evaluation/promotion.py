"""Whether a challenger takes the champion's place: the rule, its settings and its record. No engine, no registry.

A challenger is promoted when it is non-inferior: when its interval says that it loses at most the margin, for old and
for new users alike, on a day that neither version has seen. Better is not asked for: a version of today's data is worth
having for its freshness.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Mapping, Sequence

from mail_core.errors import InputError
from mail_core.evaluation.cohorts import COHORTS
from mail_core.evaluation.comparison import NO_DIFFERENCE, BootstrapConfig, PairedDifference
from mail_core.evaluation.metrics import CohortMetrics
from mail_core.evaluation.tables import aligned, number

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""Aliases: the version that scores, the newest one trained, and the champion before this one."""
PROMOTED, KEPT = "promoted", "kept"
"""What can be decided: the challenger becomes champion, or everything stays as it is."""
EVIDENCE_HEADER = ("cohort", "rows", "clicks", "AUC", "against", "difference", "log loss", "against", "difference")


@dataclass(frozen=True, kw_only=True)
class PromotionConfig:
    """What non-inferior means, and when a gain counts as lost."""

    cohorts: tuple[str, ...] = ("old", "new")
    """Each of them must be non-inferior. Old users and new ones apart, because `all` is mostly old users and would hide
    that new users lose."""
    auc_margin: float = 0.005
    """AUC that a challenger may lose. Below what MAIL gains for new users in the paper (0.007 to 0.008), so that a
    version that has lost this gain is not promoted. It takes rows to show so little: where a day has too few, the
    interval is wider than the margin and nothing is promoted; then set a margin that the rows can show."""
    logloss_margin: float = 0.01
    """Share of the champion's log loss by which the challenger's may be higher. AUC sees no calibration; scores that
    rank well at the wrong level still harm whoever multiplies them by a bid."""
    confidence: float = 0.9
    """Of the two-sided interval: only one end matters to the rule, so that 0.9 is a one-sided test at 5 %."""
    resamples: int = 400
    """Draws of users: 20 lie beyond each end at the default confidence. More make the ends steadier and cost time in
    proportion."""
    seed: int = 0
    """Of the draws, so that a rerun decides alike."""
    least_clicks: int = 100
    """A cohort with fewer clicks is not judged, and the reason says so: its interval is as wide as chance, and would
    keep every challenger out for good where few new users come a day."""
    gain_cohort: str = "new"
    """Where the gain of virtual behaviour is looked for: those who get it."""
    least_gain: float = 0.0
    """The gain counts as lost when even the upper end of its interval lies below this: 0 waits until virtual behaviour
    does harm beyond doubt, which a single noisy day rarely shows."""

    def __post_init__(self) -> None:
        for name, cohorts in (("cohorts", self.cohorts), ("gain_cohort", (self.gain_cohort,))):
            unknown = [cohort for cohort in cohorts if cohort not in COHORTS]
            if unknown or not cohorts:
                raise InputError(f"promotion: {name}: {', '.join(unknown) or 'none'} (expected some of "
                                 f"{', '.join(COHORTS)})")
        for name in ("auc_margin", "logloss_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"promotion: {name}: {getattr(self, name)} (expected 0 <= x < 1)")
        if self.least_clicks < 1:
            raise InputError(f"promotion: least_clicks: {self.least_clicks} (expected 1 or more)")
        _ = self.bootstrap  # refuses draws and a confidence that cannot be

    @property
    def bootstrap(self) -> BootstrapConfig:
        """How the intervals are drawn. Raises InputError as it does."""
        return BootstrapConfig(resamples=self.resamples, confidence=self.confidence, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class CohortEvidence:
    """A cohort's figures on the held-out day: of the challenger, of what it is measured against (the champion, or the
    constant CTR), and their paired differences with intervals. None where undefined."""

    cohort: str
    rows: int
    clicks: int
    auc: float | None
    against_auc: float | None
    auc_difference: float | None
    auc_low: float | None
    auc_high: float | None
    logloss: float | None
    against_logloss: float | None
    logloss_difference: float | None
    logloss_low: float | None
    logloss_high: float | None

    @classmethod
    def of(cls, model: CohortMetrics, *, auc: PairedDifference = NO_DIFFERENCE,
           logloss: PairedDifference = NO_DIFFERENCE, against_auc: float | None = None,
           against_logloss: float | None = None) -> CohortEvidence:
        """From the metrics of the challenger and its differences (`challenger - against`)."""
        return cls(cohort=model.cohort, rows=model.rows, clicks=round(model.rows * (model.ctr or 0.0)), auc=model.auc,
                   against_auc=against_auc, auc_difference=auc.difference, auc_low=auc.low, auc_high=auc.high,
                   logloss=model.logloss, against_logloss=against_logloss, logloss_difference=logloss.difference,
                   logloss_low=logloss.low, logloss_high=logloss.high)


@dataclass(frozen=True)
class Decision:
    """What the rule says, and why, in a sentence or two."""

    promoted: bool
    reason: str


def non_inferior(evidence: Sequence[CohortEvidence], config: PromotionConfig) -> Decision:
    """A challenger against the champion: every cohort of the settings that can be judged must be non-inferior.

    Nothing is promoted when no cohort can be judged.
    """
    wanted = [e for e in evidence if e.cohort in config.cohorts]
    judged = [e for e in wanted if e.clicks >= config.least_clicks and e.auc_low is not None]
    aside = "; ".join(f"{e.cohort} not judged: {e.clicks:,} clicks in {e.rows:,} rows"
                      + ("" if e.clicks >= config.least_clicks else f", {config.least_clicks:,} are needed")
                      for e in wanted if e not in judged)
    if not judged:
        return Decision(False, f"no cohort can be judged: {aside or 'none has rows'}")
    failures = [text for e in judged for text in _failures(e, config)]
    shown = [f"{e.cohort} AUC {_interval(e.auc_difference, e.auc_low, e.auc_high)}" for e in judged]
    shown[0] = f"non-inferior (margin {config.auc_margin:g} AUC, {config.logloss_margin:.1%} log loss): {shown[0]}"
    return Decision(not failures, "; ".join([*(failures or shown), *([aside] if aside else [])]))


def beats_constant(everybody: CohortEvidence) -> Decision:
    """A first version, without a champion, against the day's own CTR for everybody: it must rank and predict better."""
    auc, high = everybody.auc, everybody.logloss_high
    loss = _interval(everybody.logloss_difference, everybody.logloss_low, high)
    found = f"AUC {number(auc)}, log loss less the constant CTR's {loss}"
    if auc is None or high is None:
        return Decision(False, f"first version: {everybody.clicks:,} clicks in {everybody.rows:,} rows tell nothing")
    if auc > 0.5 and high < 0:
        return Decision(True, f"first version, better than a constant CTR: {found}")
    return Decision(False, f"first version, not better than a constant CTR: {found} (needed: AUC above 0.5, interval "
                           "below 0)")


def gain_is_lost(gain: PairedDifference, config: PromotionConfig) -> bool:
    """Whether the gain of virtual behaviour is gone beyond doubt; never where none is measured."""
    return gain.high is not None and gain.high < config.least_gain


def _failures(e: CohortEvidence, config: PromotionConfig) -> list[str]:
    assert e.auc_low is not None and e.auc_high is not None
    found = []
    if e.auc_low < -config.auc_margin:
        said = "loses more than" if e.auc_high < -config.auc_margin else "may lose more than"
        found.append(f"{e.cohort} {said} the margin of {config.auc_margin:g} AUC: "
                     f"{_interval(e.auc_difference, e.auc_low, e.auc_high)}")
    if e.logloss_high is not None and e.logloss_low is not None and e.against_logloss is not None:
        most = config.logloss_margin * e.against_logloss
        if e.logloss_high > most:
            said = "is higher by more than" if e.logloss_low > most else "may be higher by more than"
            found.append(f"{e.cohort} log loss {said} the margin of {config.logloss_margin:.1%} ({most:.4f}): "
                         f"{_interval(e.logloss_difference, e.logloss_low, e.logloss_high)}")
    return found


def _interval(difference: float | None, low: float | None, high: float | None) -> str:
    return f"{number(difference, '+.4f')} [{number(low, '+.4f')}, {number(high, '+.4f')}]"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A day's decision on one registered model, as the table `promotions` and the version's tag keep it."""

    day: date
    """The held-out day that decided."""
    model_name: str
    model_version: str
    """The challenger."""
    champion: str | None
    """The champion before the decision; None: there was none, and the constant CTR was the measure."""
    decision: str
    """PROMOTED or KEPT."""
    reason: str
    new_users: str
    """Whose behaviour was removed before scoring."""
    cohorts: tuple[CohortEvidence, ...]
    """Empty where nothing was compared."""
    virtual_behavior_gain: float | None
    """AUC of `gain_cohort` by the challenger less its own ranking tower with virtual behaviour switched off; None for a
    version that makes none."""
    virtual_behavior_gain_low: float | None
    virtual_behavior_gain_high: float | None
    gain_cohort: str
    gain_lost: bool
    """The alarm: see `gain_is_lost`."""
    auc_margin: float
    logloss_margin: float
    confidence: float
    decided_at: datetime
    rolled_back_to: str | None = None
    """The version that `rollback` put in its place later."""
    rolled_back_at: datetime | None = None
    rollback_reason: str | None = None

    @property
    def promoted(self) -> bool:
        """Whether the challenger became champion."""
        return self.decision == PROMOTED

    def to_json(self) -> str:
        """One line; `from_json` gives it back."""
        return json.dumps(asdict(self), default=lambda moment: moment.isoformat())

    @classmethod
    def from_json(cls, text: str) -> Promotion:
        """What `to_json` wrote."""
        document = json.loads(text)
        moments = {name: None if document[name] is None else datetime.fromisoformat(document[name])
                   for name in ("decided_at", "rolled_back_at")}
        return cls.from_row({**document, **moments, "day": date.fromisoformat(document["day"])})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Promotion:
        """From the columns of a row of `promotions`."""
        return cls(**{**row, "cohorts": tuple(CohortEvidence(**cohort) for cohort in row["cohorts"])})


def format_promotion(promotion: Promotion) -> str:
    """The decision and why, a line a cohort, and what virtual behaviour gains."""
    title = f"{promotion.model_name} version {promotion.model_version}, {promotion.day}: {promotion.decision}"
    lines = [title, promotion.reason]
    if promotion.cohorts:
        lines += [measured_against(promotion), aligned([EVIDENCE_HEADER, *evidence_cells(promotion)])]
    return "\n".join([*lines, *afterthoughts(promotion)])


def measured_against(promotion: Promotion) -> str:
    """What the differences of its cohorts are taken from, and how wide their intervals are."""
    against = "the constant CTR" if promotion.champion is None else f"version {promotion.champion}, the champion"
    return f"against {against}, {promotion.confidence:.0%} intervals"


def evidence_cells(promotion: Promotion) -> list[tuple[str, ...]]:
    """A row a cohort, below EVIDENCE_HEADER."""
    return [(e.cohort, f"{e.rows:,}", f"{e.clicks:,}", number(e.auc), number(e.against_auc),
             _interval(e.auc_difference, e.auc_low, e.auc_high), number(e.logloss), number(e.against_logloss),
             _interval(e.logloss_difference, e.logloss_low, e.logloss_high)) for e in promotion.cohorts]


def afterthoughts(promotion: Promotion) -> list[str]:
    """What virtual behaviour gains, where it was measured, and the rollback, where there was one."""
    lines = []
    if promotion.virtual_behavior_gain is not None:
        gain = _interval(promotion.virtual_behavior_gain, promotion.virtual_behavior_gain_low,
                         promotion.virtual_behavior_gain_high)
        lines.append(f"AUC of {promotion.gain_cohort} users less that of its own tower with virtual behaviour switched "
                     f"off: {gain}{', LOST' if promotion.gain_lost else ''}")
    if promotion.rolled_back_to is not None:
        lines.append(f"rolled back to version {promotion.rolled_back_to} on {promotion.rolled_back_at:%Y-%m-%d %H:%M} "
                     f"UTC: {promotion.rollback_reason}")
    return lines
