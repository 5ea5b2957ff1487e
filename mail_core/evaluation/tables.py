"""Cohort metrics as text for a terminal."""

from __future__ import annotations

from typing import Mapping, Sequence

from mail_core.evaluation.comparison import PairedDifference
from mail_core.evaluation.lift import Lift
from mail_core.evaluation.metrics import CohortMetrics

UNDEFINED = "-"
_HEADER = ("cohort", "rows", "CTR", "AUC", "GAUC", "logloss", "ECE")


def format_table(blocks: Mapping[str, Sequence[CohortMetrics]]) -> str:
    """A block a model: its title, then a line a cohort. Undefined values print as "-"."""
    return "\n\n".join(f"{title}\n{aligned([_HEADER, *map(_metrics_line, rows)])}" for title, rows in blocks.items())


def format_differences(title: str, differences: Sequence[PairedDifference],
                       improvements: Mapping[tuple[str, str], float | None], confidence: float) -> str:
    """A line a cohort and metric: difference with its interval, and RI of (cohort, metric) in per cent."""
    header = ("cohort", "metric", "difference", f"{confidence:.0%} interval", "RI %")
    lines = [(d.cohort, d.metric, number(d.difference, "+.4f"), f"[{number(d.low, '+.4f')}, {number(d.high, '+.4f')}]",
              number(improvements[d.cohort, d.metric], "+.2f")) for d in differences]
    return f"{title}\n{aligned([header, *lines], left=2)}"


def format_lifts(title: str, lifts: Sequence[Lift], confidence: float) -> str:
    """A line a cohort and metric: users and rate of each arm, the lift in per cent with its interval."""
    header = ("cohort", "metric", "users", "users against", "rate", "rate against", "lift %",
              f"{confidence:.0%} interval")
    lines = [(x.cohort, x.metric, f"{x.model_users:,}", f"{x.against_users:,}", number(x.model, ".5f"),
              number(x.against, ".5f"), number(x.lift, "+.2f"), f"[{number(x.low, '+.2f')}, {number(x.high, '+.2f')}]")
             for x in lifts]
    return f"{title}\n{aligned([header, *lines], left=2)}"


def number(value: float | None, form: str = ".4f") -> str:
    """`value` in the format `form`, "-" where it is undefined."""
    return UNDEFINED if value is None else format(value, form)


def _metrics_line(metrics: CohortMetrics) -> tuple[str, ...]:
    values = (metrics.ctr, metrics.auc, metrics.gauc, metrics.logloss, metrics.ece)
    return metrics.cohort, f"{metrics.rows:,}", *(number(v) for v in values)


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """The first `left` columns to the left, the others to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) if i < left else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines)
