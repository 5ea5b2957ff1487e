"""Methods over seeds as tables, with the paper's own figures beside them (the paper's Tables 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

from mail_core.evaluation.page import Table
from mail_core.evaluation.paper_numbers import DATASETS, PaperFigures, PaperTable
from mail_core.evaluation.seeds import (CONFIDENCE, Scores, SeedDifference, Spread, closed_share, paired_difference,
                                        spread)
from mail_core.evaluation.tables import UNDEFINED, number

COHORTS = ("new", "old")
METRICS = ("auc", "gauc")
DIAGNOSTICS = {"r2": "R²", "cosine": "cosine", "permuted": "new AUC, permuted", "zeroed": "new AUC, zeroed",
               "gate": "gate g"}
"""Of virtual behaviour: against masked users' own; and new users' AUC with it exchanged between them, or zero."""


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One line of a table."""

    name: str
    kind: str
    """What the row is for: the paper's, a reference, ours."""
    reference: str
    """Row that RI and difference are over; its own name where it is one that others are compared with."""
    scores: Mapping[tuple[str, str], Scores]
    """(cohort, metric) -> seeds."""
    diagnostics: Mapping[str, Scores] = field(default_factory=dict)
    """A key of DIAGNOSTICS -> seeds; empty where the row makes no behaviour."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A method between its tower alone and that tower's oracle: names of rows."""

    method: str
    alone: str
    oracle: str


def cohort_table(title: str, rows: Sequence[MethodRow], cohort: str, paper: PaperTable) -> Table:
    """AUC and GAUC of one cohort: mean ± standard deviation, RI, difference with its interval, the paper's figures."""
    by_name = {row.name: row for row in rows}
    interval = f"difference [{CONFIDENCE:.0%}]"
    header = ("method", "row", "over", "seeds",
              *(word for metric in METRICS for word in (metric.upper(), f"{metric.upper()} RI %", interval)),
              *(f"paper {metric.upper()}, {dataset} (RI %)" for dataset in DATASETS for metric in METRICS))
    lines = []
    for row in rows:
        line = [row.name, row.kind, row.reference if row.reference != row.name else UNDEFINED,
                str(len(row.scores.get((cohort, "auc"), {})))]
        for metric in METRICS:
            difference = _difference(row, by_name, cohort, metric)
            line += [shown_spread(spread(row.scores.get((cohort, metric), {}))),
                     number(difference.ri if difference else None, "+.2f"), shown_difference(difference)]
        line += [_printed(_paper(paper, row.name, dataset, cohort), metric) for dataset in DATASETS
                 for metric in METRICS]
        lines.append(tuple(line))
    return Table(title=title, header=header, rows=lines,
                 note="Mean ± standard deviation over seeds. RI and differences: over the row named, paired by seed; "
                      f"the interval is the mean's t-interval at {CONFIDENCE:.0%}.")


def diagnostics_table(title: str, rows: Sequence[MethodRow]) -> Table:
    """What virtual behaviour carries, for the rows that make any."""
    lines = [(row.name, *(shown_spread(spread(row.diagnostics.get(name, {}))) for name in DIAGNOSTICS))
             for row in rows if row.diagnostics]
    return Table(title=title, header=("method", *DIAGNOSTICS.values()), rows=lines,
                 note="R² and cosine: pooled virtual behaviour against masked users' own. Permuted: exchanged between "
                      "new users. Where R² is not above 0, attributes do not tell behaviour.")


def headline_table(rows: Sequence[MethodRow], gaps: Sequence[Gap], paper: PaperTable) -> Table:
    """New users' AUC: the share of the gap between the tower alone and its oracle that each method closes."""
    scores = {row.name: row.scores.get(("new", "auc"), {}) for row in rows}
    lines = []
    for gap in gaps:
        if not {gap.method, gap.alone, gap.oracle} <= set(scores):
            continue
        own, alone, oracle = (scores[name] for name in (gap.method, gap.alone, gap.oracle))
        share, gain = closed_share(own, alone, oracle), paired_difference(own, alone)
        printed = [_paper(paper, gap.method, dataset, "new") for dataset in DATASETS]
        lines.append((gap.method, gap.alone, str(share.seeds if share else 0),
                      *(shown_spread(spread(each)) for each in (alone, own, oracle)),
                      _percent(share.share if share else None),
                      f"[{_percent(share.low)}, {_percent(share.high)}]" if share else UNDEFINED,
                      number(gain.ri if gain else None, "+.2f"),
                      *(number(each.auc_ri if each else None, "+.2f") for each in printed)))
    return Table(
        title="Share of the gap that is closed on new users", rows=lines,
        header=("method", "tower alone", "seeds", "AUC alone", "AUC", "AUC oracle", "gap closed",
                f"{CONFIDENCE:.0%} interval", "RI %", *(f"paper RI %, {dataset}" for dataset in DATASETS)),
        note="(method - alone) / (oracle - alone); the oracle is the tower alone with new users' hidden behaviour "
             "given at evaluation. The interval is that of (method - alone), the gap taken as known. Undefined where "
             "the oracle is no better.")


def numbers_table(rows: Sequence[MethodRow], paper: PaperTable) -> Table:
    """Every figure with all its digits, a line a row, cohort and metric: the CSV beside a table."""
    by_name = {row.name: row for row in rows}
    lines = []
    for row in rows:
        for cohort in COHORTS:
            for metric in METRICS:
                found = spread(row.scores.get((cohort, metric), {}))
                difference = _difference(row, by_name, cohort, metric)
                figures = [_paper(paper, row.name, dataset, cohort) for dataset in DATASETS]
                lines.append((row.name, row.kind, cohort, metric, *_digits(*_three(found)), row.reference, *_digits(
                    *((difference.mean, difference.low, difference.high, difference.ri) if difference else [None] * 4),
                    *(getattr(each, name) if each else None for each in figures for name in (metric, f"{metric}_ri")))))
        for name, values in row.diagnostics.items():
            lines.append((row.name, row.kind, "new", name, *_digits(*_three(spread(values))), "", *[""] * 8))
    return Table(title="figures", rows=lines, header=(
        "row", "kind", "cohort", "metric", "seeds", "mean", "sd", "over", "difference", "low", "high", "ri_percent",
        *(f"paper_{dataset}{end}" for dataset in DATASETS for end in ("", "_ri_percent"))))


def _difference(row: MethodRow, by_name: Mapping[str, MethodRow], cohort: str, metric: str) -> SeedDifference | None:
    if row.reference == row.name or row.reference not in by_name:
        return None
    return paired_difference(row.scores.get((cohort, metric), {}),
                             by_name[row.reference].scores.get((cohort, metric), {}))


def _paper(paper: PaperTable, name: str, dataset: str, cohort: str) -> PaperFigures | None:
    return paper[name][dataset][cohort] if name in paper else None


def _printed(figures: PaperFigures | None, metric: str) -> str:
    value, ri = (getattr(figures, metric), getattr(figures, f"{metric}_ri")) if figures else (None, None)
    return UNDEFINED if value is None else f"{number(value)} ({number(ri, '+.2f')})"


def shown_spread(found: Spread | None) -> str:
    """`mean ± standard deviation`; the mean alone for one seed."""
    if found is None:
        return UNDEFINED
    return number(found.mean) if found.sd is None else f"{number(found.mean)} ± {number(found.sd)}"


def _three(found: Spread | None) -> tuple[float | None, ...]:
    return (None, None, None) if found is None else (found.seeds, found.mean, found.sd)


def shown_difference(difference: SeedDifference | None) -> str:
    """`mean [low, high]`, signed."""
    if difference is None:
        return UNDEFINED
    low, high = (number(end, "+.4f") for end in (difference.low, difference.high))
    return f"{number(difference.mean, '+.4f')} [{low}, {high}]"


def _percent(share: float | None) -> str:
    return number(share, ".0%")


def _digits(*values: float | None) -> list[str]:
    return ["" if value is None else repr(value) for value in values]
