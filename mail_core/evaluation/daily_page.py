"""A day of the pipeline on one self-contained page, for the people who answer for it: figures in, HTML out.

What a lake does not have yet is said in its section. Texts from logs and from people are cut and escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Iterable, Mapping, Sequence

from mail_core.evaluation import figures
from mail_core.evaluation.checks import CHECK_HEADER, CheckResult, broken_lines, check_cells
from mail_core.evaluation.cohorts import COHORTS
from mail_core.evaluation.page import Table, excerpt, heading, html, page, paragraph, picture, preformatted
from mail_core.evaluation.promotion import EVIDENCE_HEADER, Promotion, afterthoughts, evidence_cells, measured_against
from mail_core.evaluation.tables import UNDEFINED, number

DAYS_BEFORE = 14
"""Days before the reported one that its figures are shown beside."""
SCORE_EDGES = tuple(10 ** (place / 5 - 4) for place in range(21))
"""Of the bins of predicted CTR: five a decade, 0.0001 to 1; what is below belongs to the first bin."""
SECTIONS = ("In short", "Read", "Quarantined and dropped", "Features", "Cohorts and metrics", "Calibration by cohort",
            "Promotion", "Scores", "Slowest steps")
"""Headings of the page, in order."""
_DRAWN = ("old", "new", "all")
_METRICS = (("auc", "AUC"), ("gauc", "GAUC"), ("logloss", "log loss"), ("ece", "ECE"))
_ALWAYS_SHOWN = ("rows", "ctr", "new_users")
_WIDTH_REM = 46
_REASON = 600
"""Characters that are shown of a decision's reason."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """The day's lines that were set aside for one reason."""

    source: str
    """impressions, behaviors, users or items."""
    reason: str
    rows: int
    examples: tuple[tuple[str, str], ...]
    """(file, line) of a few of them, as they arrived."""


@dataclass(frozen=True, kw_only=True)
class FeatureDay:
    """One day of `features`."""

    rows: int
    ctr: float
    new_users: float
    """Share of rows without behaviour, before any masking."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The latest evaluation of a day."""

    version: str
    values: Mapping[tuple[str, str], float | None]
    """(cohort, metric) -> value."""

    def value(self, cohort: str, metric: str) -> float | None:
        """None where undefined or absent."""
        return self.values.get((cohort, metric))


@dataclass(frozen=True, kw_only=True)
class ScoreGroup:
    """Scored candidates of old or of new users."""

    is_new: bool
    rows: int
    mean: float
    quantiles: tuple[float, ...]
    """The 10 %, 50 % and 90 % points of the CTR."""
    counts: tuple[int, ...]
    """Candidates in each bin of SCORE_EDGES."""

    @property
    def name(self) -> str:
        """Of its cohort."""
        return "new" if self.is_new else "old"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One scored day."""

    day: date
    versions: tuple[str, ...]
    groups: tuple[ScoreGroup, ...]


@dataclass(frozen=True, kw_only=True)
class DailyFigures:
    """All that a page shows. None: the lake has no such table yet."""

    schema_name: str
    day: date
    model_name: str
    raw: Mapping[str, Mapping[date, int] | None]
    """Raw table -> rows by day, up to DAYS_BEFORE days back; so for the mappings by day below."""
    quarantined: Sequence[Quarantined] | None
    """The reasons with most rows first."""
    features: Mapping[date, FeatureDay] | None
    checks: Sequence[CheckResult] | None
    evaluations: Mapping[date, Evaluated] | None
    promotions: Mapping[date, Promotion] | None
    scores: Scored | None
    """Of the morning after the day, else of the day itself; None where the model has scored neither."""
    has_scores: bool
    """Whether the lake has the table at all."""
    seconds: Mapping[str, float]
    """Job -> how long its last run for the day took, of those that tell it."""

    @property
    def evaluated(self) -> Evaluated | None:
        """Of the reported day."""
        return (self.evaluations or {}).get(self.day)

    @property
    def promotion(self) -> Promotion | None:
        """Of the reported day."""
        return (self.promotions or {}).get(self.day)


def daily_page(day: DailyFigures) -> str:
    """The page: HTML that loads nothing."""
    made = (_in_short, _read, _quarantined, _features, _cohorts, _calibration, _promotion, _scores,
            _slowest_steps)
    parts = [part for title, section in zip(SECTIONS, made, strict=True) for part in (heading(title), *section(day))]
    return page(f"{day.schema_name}, {day.day}: {day.model_name}", parts, width_rem=_WIDTH_REM)


def alarms(day: DailyFigures) -> list[str]:
    """What somebody has to look at, a sentence each."""
    found = []
    raw, features = (day.raw.get("raw_impressions") or {}).get(day.day), (day.features or {}).get(day.day)
    if raw is not None and features is not None and raw != features.rows:
        found.append(f"features has {features.rows:,} rows, raw_impressions {raw:,}: build_features has not seen the "
                     "day as it stands.")
    broken = [check for check in day.checks or () if check.broken]
    if broken:
        found.append(f"{len(broken)} of {len(day.checks or ())} checks of the features are broken: "
                     f"{', '.join(check.figure for check in broken)}.")
    if day.promotion is not None and day.promotion.gain_lost:
        found.append("The gain of virtual behaviour is lost: its interval lies below what is asked for.")
    if day.promotion is not None and day.promotion.rolled_back_to is not None:
        found.append(f"Version {day.promotion.model_version} was promoted and rolled back since.")
    return found


def _in_short(day: DailyFigures) -> list[str]:
    set_aside = UNDEFINED if day.quarantined is None else f"{sum(q.rows for q in day.quarantined):,}"
    said = [f"{_rows(day.raw.get('raw_impressions'), day.day)} impressions stand, {set_aside} lines of all files are "
            "quarantined."]
    if day.evaluated is not None:
        aucs = ", ".join(f"{cohort} {number(day.evaluated.value(cohort, 'auc'))}" for cohort in _DRAWN)
        said.append(f"AUC of version {day.evaluated.version}: {aucs}.")
    if day.promotion is not None:
        said.append(f"Version {day.promotion.model_version} was {day.promotion.decision}.")
    if day.scores is not None:
        said.append(f"{sum(group.rows for group in day.scores.groups):,} candidates are scored for {day.scores.day}.")
    found = alarms(day)
    return [paragraph(" ".join(said)), *(paragraph(f"ALARM: {alarm}") for alarm in found),
            *([] if found else [paragraph("No alarm in what the tables hold.")])]


def _read(day: DailyFigures) -> list[str]:
    rows = [(name, _rows(by_day, day.day), _usual((by_day or {}).items(), day.day, ",.0f"))
            for name, by_day in day.raw.items()]
    missing = [name for name, by_day in day.raw.items() if by_day is None]
    note = "Rows that stand, by their own local day; users and items: the snapshot that came that day."
    return [html(Table(title="Rows", header=("table", f"{day.day}", "usually"), rows=rows, note=note)),
            *(_absent(name, "ingest_logs") for name in missing)]


def _quarantined(day: DailyFigures) -> list[str]:
    dropped = paragraph("Exact copies of an impression, a user or an item are dropped at ingestion: ingest_logs prints "
                        "how many, no table keeps the number.", note=True)
    if day.quarantined is None:
        return [_absent("quarantine", "ingest_logs"), dropped]
    if not day.quarantined:
        return [paragraph("No line was quarantined."), dropped]
    cells = [(excerpt(q.reason), excerpt(q.source), f"{q.rows:,}") for q in day.quarantined]
    parts = [html(Table(title="Lines by reason", header=("reason", "file of", "lines"), rows=cells)), dropped]
    for q in day.quarantined:
        examples = "\n".join(f"{excerpt(file)}: {excerpt(line)}" for file, line in q.examples)
        parts += [paragraph(f"{excerpt(q.source)}, {excerpt(q.reason)}, for example:"), preformatted(examples)]
    return parts


def _features(day: DailyFigures) -> list[str]:
    if day.features is None:
        return [_absent("features", "build_features"), *_checks(day)]
    own, parts = day.features.get(day.day), []
    if own is None:
        parts.append(_none_of(day.day, "features", "build_features"))
    else:
        history = {name: [(d, getattr(f, name)) for d, f in day.features.items()] for name in _ALWAYS_SHOWN}
        rows = [("impressions", f"{own.rows:,}", _usual(history["rows"], day.day, ",.0f")),
                ("CTR", number(own.ctr), _usual(history["ctr"], day.day)),
                ("share without behaviour", number(own.new_users), _usual(history["new_users"], day.day))]
        parts.append(html(Table(title="Impressions", header=("", f"{day.day}", "usually"), rows=rows)))
    if day.features:
        for name, title in (("ctr", "CTR"), ("new_users", "share without behaviour")):
            curve = {d: getattr(of_day, name) for d, of_day in day.features.items()}
            parts.append(picture(figures.by_day({title: curve}, title), f"Impressions: {title} by day."))
    return parts + _checks(day)


def _checks(day: DailyFigures) -> list[str]:
    if not day.checks:
        return [_absent("checks", "check_features") if day.checks is None
                else _none_of(day.day, "checks", "check_features")]
    shown = sorted((check for check in day.checks if check.broken or check.figure in _ALWAYS_SHOWN),
                   key=lambda check: not check.broken)
    rest = [check for check in day.checks if check not in shown]
    without = sum(check.note is not None for check in rest)
    note = f"{len(rest)} other figures passed, {without} of them without limits." if rest else ""
    return [html(Table(title="Checks before training", header=CHECK_HEADER, rows=check_cells(shown), note=note)),
            *map(paragraph, broken_lines(day.checks))]


def _cohorts(day: DailyFigures) -> list[str]:
    if day.evaluations is None:
        return [_absent("evaluations", "evaluate")]
    own, before = day.evaluated, [e for d, e in sorted(day.evaluations.items()) if d < day.day]
    parts = []
    if own is None:
        parts.append(_none_of(day.day, "evaluations", "evaluate"))
    else:
        parts += [html(_metrics_table(own)), html(_changes_table(own, before)) if before else paragraph(
            f"No evaluation of the {DAYS_BEFORE} days before.")]
    for metric, title in (("auc", "AUC"), ("logloss", "log loss")):
        parts += _by_day(day.evaluations, metric, title)
    return parts


def _metrics_table(own: Evaluated) -> Table:
    everybody = own.value("all", "rows")
    rows = []
    for cohort in COHORTS:
        count = own.value(cohort, "rows") or 0.0
        rows.append((cohort, f"{count:,.0f}", f"{count / everybody:.1%}" if everybody else UNDEFINED,
                     number(own.value(cohort, "ctr")), *(number(own.value(cohort, name)) for name, _ in _METRICS)))
    return Table(title=f"Version {own.version}", rows=rows,
                 header=("cohort", "rows", "share", "CTR", *(title for _, title in _METRICS)),
                 note="A row may be in several cohorts: new is new_masked and new_natural together.")


def _changes_table(own: Evaluated, before: Sequence[Evaluated]) -> Table:
    rows = []
    for cohort in COHORTS:
        cells = []
        for metric, _ in _METRICS:
            value = own.value(cohort, metric)
            values = [v for e in before if (v := e.value(cohort, metric)) is not None]
            cells.append(number(None if value is None or not values else value - median(values), "+.4f"))
        rows.append((cohort, *cells))
    return Table(title=f"Less the median of the {len(before)} evaluated days before", rows=rows,
                 header=("cohort", *(title for _, title in _METRICS)))


def _calibration(day: DailyFigures) -> list[str]:
    if day.evaluations is None:
        return [_absent("evaluations", "evaluate")]
    own, drawn = day.evaluated, _by_day(day.evaluations, "ece", "ECE")
    if own is None:
        return [_none_of(day.day, "evaluations", "evaluate"), *drawn]
    rows = [(cohort, number(own.value(cohort, "ctr")), number(own.value(cohort, "ece"))) for cohort in COHORTS]
    note = "Expected calibration error: how far predicted CTR lies from clicks an impression, on average over bins."
    return [html(Table(title="Calibration error", header=("cohort", "CTR", "ECE"), rows=rows, note=note)), *drawn]


def _promotion(day: DailyFigures) -> list[str]:
    if day.promotions is None:
        return [_absent("promotions", "promote")]
    parts, own = [], day.promotion
    if own is None:
        parts.append(_none_of(day.day, "promotions", "promote"))
    else:
        parts.append(paragraph(f"Version {own.model_version}: {own.decision}. {excerpt(own.reason, _REASON)}"))
        if own.cohorts:
            parts.append(html(Table(title=f"Version {own.model_version} {measured_against(own)}",
                                    header=EVIDENCE_HEADER, rows=evidence_cells(own))))
        parts += [paragraph(excerpt(text, _REASON)) for text in afterthoughts(own)]
    if day.promotions:
        rows = [(f"{d}", p.model_version, p.champion or UNDEFINED, p.decision, number(p.virtual_behavior_gain, "+.4f"))
                for d, p in sorted(day.promotions.items(), reverse=True)]
        parts.append(html(Table(title="Decisions", rows=rows, header=("day", "version", "champion before", "decision",
                                                                      "gain of virtual behaviour, AUC"))))
    return parts


def _scores(day: DailyFigures) -> list[str]:
    if day.scores is None:
        return [paragraph(f"{day.model_name} has scored neither {day.day} nor the day after.") if day.has_scores
                else _absent("ctr_scores", "score")]
    total, groups = sum(group.rows for group in day.scores.groups), day.scores.groups
    rows = [(group.name, f"{group.rows:,}", f"{group.rows / total:.1%}", number(group.mean),
             *(number(point) for point in group.quantiles)) for group in groups]
    table = Table(title=f"CTR of the candidates of {day.scores.day}, version {', '.join(day.scores.versions)}",
                  header=("users", "candidates", "share", "mean", "10 %", "50 %", "90 %"), rows=rows)
    drawn = figures.outlines({group.name: [count / group.rows for count in group.counts] for group in groups},
                             SCORE_EDGES, "predicted CTR", "share of the users' candidates")
    return [html(table), picture(drawn, "Distribution of predicted CTR, of old and of new users.")]


def _slowest_steps(day: DailyFigures) -> list[str]:
    if not day.seconds:
        return [paragraph("No step has told how long it took.")]
    rows = [(job, number(seconds, ",.1f")) for job, seconds in sorted(day.seconds.items(), key=lambda step: -step[1])]
    return [html(Table(title="Slowest first", header=("job", "seconds"), rows=rows, note=(
        "Of each job's last run for the day: from its opening of the lake to its last commit, for train its run in "
        "MLflow. A run for several days counts as a whole.")))]


def _by_day(evaluations: Mapping[date, Evaluated], metric: str, title: str) -> list[str]:
    """A picture of the metric of _DRAWN; none where it is defined on no day."""
    curves = {cohort: {d: value for d, e in evaluations.items() if (value := e.value(cohort, metric)) is not None}
              for cohort in _DRAWN}
    curves = {cohort: values for cohort, values in curves.items() if values}
    return [picture(figures.by_day(curves, title), f"{title} by day and cohort.")] if curves else []


def _usual(history: Iterable[tuple[date, float]], day: date, form: str = ".4f") -> str:
    """The median of the days before."""
    before = [value for other, value in history if other < day]
    return number(median(before) if before else None, form)


def _rows(by_day: Mapping[date, int] | None, day: date) -> str:
    return f"{by_day[day]:,}" if by_day and day in by_day else UNDEFINED


def _absent(table: str, job: str) -> str:
    return paragraph(f"The lake has no table {table} yet: {job} has not run.")


def _none_of(day: date, table: str, job: str) -> str:
    return paragraph(f"{table} has no rows of {day}: {job} has not run for it.")
