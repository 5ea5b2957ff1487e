"""Outcomes of trials -> the rows of tables and grids."""

from __future__ import annotations

from typing import Mapping, Sequence

from mail_core.evaluation.breakdowns import LENGTHS
from mail_core.evaluation.grid_tables import Grid
from mail_core.evaluation.method_tables import COHORTS, METRICS, MethodRow
from mail_core.evaluation.page import Table
from mail_core.evaluation.paper_numbers import DATASETS, TABLE_1
from mail_core.evaluation.seeds import Scores
from mail_core.evaluation.tables import UNDEFINED, number
from mail_core.loading.manifest import Manifest
from mail_core.reproduction.measure import AS_IS, PERMUTED, ZEROED, Measured, warm_up_lengths
from mail_core.reproduction.plan import LENGTHS_OF, PLANNED, WARM_UP_OF, PlannedRow, Version
from mail_core.reproduction.trials import Outcome, Results

_STATISTICS = dict(zip(TABLE_1, ("users", "new_users", "items", "user_attributes", "context_features",
                                 "average_behavior_length", "item_features")))
_SHARES = ("old", "new", "new_masked", "new_natural", "unseen")


def method_row(row: PlannedRow, results: Results) -> MethodRow:
    """A planned row with what was measured for it."""
    found = _measured(results, row.version)
    scores = {(cohort, metric): _defined({seed: m.value(row.scores, cohort, metric) for seed, m in found.items()})
              for cohort in COHORTS for metric in METRICS}
    diagnostics: dict[str, Scores] = {}
    if row.scores == AS_IS:
        diagnostics = {
            "r2": _defined({seed: m.fit.get("r2") for seed, m in found.items()}),
            "cosine": _defined({seed: m.fit.get("cosine") for seed, m in found.items()}),
            "permuted": _defined({seed: m.value(PERMUTED, "new", "auc") for seed, m in found.items()}),
            "zeroed": _defined({seed: m.value(ZEROED, "new", "auc") for seed, m in found.items()}),
            "gate": _defined({seed: m.gate for seed, m in found.items()})}
    return MethodRow(name=row.name, kind=row.kind, reference=row.reference, scores=scores,
                     diagnostics=diagnostics if any(diagnostics.values()) else {})


def lengths_grid(results: Results) -> Grid:
    """AUC by the number of behaviours that a row shows."""
    places = range(len(LENGTHS))
    columns = {row.name: [_defined({seed: m.lengths[at].auc for seed, m in _measured(results, row.version).items()})
                          for at in places] for row in _rows_of(LENGTHS_OF, results)}
    any_outcome = next(iter(results.chosen.values()))
    groups = any_outcome.measured.lengths
    return Grid(title="AUC by the number of behaviours", scale="behaviours", columns=columns,
                places=[f"{group.title} ({group.rows:,} rows)" for group in groups])


def warm_up_grid(results: Results, length: int) -> Grid:
    """AUC of masked users' rows after more and more of their hidden behaviours."""
    shown = (0, *warm_up_lengths(length))
    columns = {row.name: [_defined({seed: m.warm_up.get(n) for seed, m in _measured(results, row.version).items()})
                          for n in shown] for row in _rows_of((*WARM_UP_OF, *WARM_UP_OF.values()), results)}
    return Grid(title="Warm-up: AUC of masked users with so many of their latest behaviours", scale="revealed",
                places=[f"{n}" for n in shown], columns=columns, compared=WARM_UP_OF,
                note=f"Rows of masked users with any behaviour to reveal, the same ones in each line; {length} are all "
                     "that a sequence holds.")


def calibration_table(results: Results, names: Sequence[str]) -> Table:
    """ECE and log loss of old and new users, means over seeds."""
    lines = []
    for row in _rows_of(names, results):
        cells = []
        for cohort in COHORTS:
            for metric in ("ece", "logloss"):
                found = _defined({seed: m.value(AS_IS, cohort, metric)
                                  for seed, m in _measured(results, row.version).items()})
                cells.append(number(sum(found.values()) / len(found) if found else None))
        lines.append((row.name, *cells))
    return Table(title="Calibration by cohort", rows=lines, header=(
        "method", *(f"{cohort} users, {metric}" for cohort in COHORTS for metric in ("ECE", "log loss"))))


def settings_table(results: Results, preset: str) -> Table:
    """All that was trained."""
    kept = {outcome.run_id for outcome in results.chosen.values()}
    return Table(title="Settings tried", rows=[
        (outcome.trial.version.label(preset), str(outcome.trial.seed), f"{outcome.trial.learning_rate:g}",
         str(outcome.measured.epochs), number(outcome.validation), "yes" if outcome.run_id in kept else "no",
         outcome.run_id) for outcome in results.tried],
        header=("version", "seed", "learning rate", "epochs", "validation day", "in the tables", "MLflow run"),
        note="Validation day: AUC over all its rows of the best epoch, by which epochs (each training) and learning "
             "rate (each version, first seed) are chosen; -log loss where the day has one class.")


def statistics_tables(manifest: Manifest) -> list[Table]:
    """Table 1 with the paper's columns, and rows and cohorts of the splits."""
    statistics = manifest.statistics
    counted = {line: statistics.get(key) for line, key in _STATISTICS.items()}
    first = Table(title="Table 1: statistics of the data", header=("", "this data", *(f"paper, {d}" for d in DATASETS)),
                  rows=[(line, UNDEFINED if value is None else f"{value:,.1f}" if isinstance(value, float)
                         else f"{value:,}", *TABLE_1[line]) for line, value in counted.items()],
                  note=f"New users: those with a row without behaviour, in the mode {manifest.new_users}.")
    splits = Table(title="Splits", header=("split", "rows", "CTR", *_SHARES), rows=[
        (split, f"{numbers['rows']:,}", f"{numbers['clicks'] / max(numbers['rows'], 1):.2%}",
         *(number(numbers.get("share", {}).get(name), ".1%") for name in _SHARES))
        for split, numbers in statistics["splits"].items()])
    return [first, splits]


def first_outcome(results: Results, version: Version) -> Outcome | None:
    """That of the lowest seed."""
    seeds = sorted(seed for found, seed in results.chosen if found == version)
    return results.chosen[version, seeds[0]] if seeds else None


def calibrated(results: Results, names: Sequence[str], cohort: str) -> Mapping[str, list]:
    """Row -> calibration bins of one cohort, of the lowest seed."""
    outcomes = {row.name: first_outcome(results, row.version) for row in _rows_of(names, results)}
    return {name: outcome.measured.calibration[cohort] for name, outcome in outcomes.items() if outcome is not None}


def _rows_of(names: Sequence[str], results: Results) -> list[PlannedRow]:
    """The named rows of Table 2 that were trained, in the order of the table."""
    trained = {version for version, _ in results.chosen}
    return [row for row in PLANNED[2].rows if row.name in names and row.version in trained]


def _measured(results: Results, version: Version) -> dict[int, Measured]:
    return {seed: outcome.measured for (found, seed), outcome in results.chosen.items() if found == version}


def _defined(values: Mapping[int, float | None]) -> Scores:
    return {seed: value for seed, value in values.items() if value is not None}
