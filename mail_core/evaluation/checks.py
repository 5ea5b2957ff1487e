"""A day's figures beside those of the days before it: what is usual, what is broken, and what cannot be told yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Mapping, Sequence

from mail_core.evaluation.tables import aligned
from mail_core.schema.definition import Checks

CHECK_HEADER = ("figure", "value", "limits", "result")
Figures = Mapping[str, float]
"""Name of a figure (`check_figures`) -> its value on a day; what a day cannot tell is not in it."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One figure of the checked day."""

    figure: str
    value: float
    low: float | None
    """The least that passes; None: no lower limit."""
    high: float | None
    """The most that passes; None: no upper limit."""
    history: tuple[float, ...]
    """The figure on the days before, oldest first."""
    broken: bool
    note: str | None
    """Why it passes without limits."""


def check_day(today: Figures, before: Sequence[Figures], limits: Checks) -> list[CheckResult]:
    """Every figure of `today` beside the days `before` it, oldest first; the limits lie round the median of those.

    The median, because a broken day among them should not move what is usual.
    """
    return [_result(name, value, tuple(day[name] for day in before if name in day), limits)
            for name, value in today.items()]


def _result(name: str, value: float, history: tuple[float, ...], limits: Checks) -> CheckResult:
    note = None
    if name in limits.ignored:
        note = "ignored by the schema"
    elif len(history) < limits.least_days:
        note = f"too little history: {len(history)} of {limits.least_days} days have it"
    low, high = (None, None) if note else _limits(name, median(history), limits)
    broken = (low is not None and value < low) or (high is not None and value > high)
    return CheckResult(figure=name, value=value, low=low, high=high, history=history, broken=broken, note=note)


def _limits(name: str, usual: float, limits: Checks) -> tuple[float | None, float | None]:
    if name in ("rows", "ctr"):
        least, most = getattr(limits, name)
        return least * usual, most * usual
    if name == "new_users":
        return usual - limits.new_users_change, usual + limits.new_users_change
    return None, usual + (limits.unknown_rise if name.startswith("unknown.") else limits.null_rise)


def format_checks(day: date, results: Sequence[CheckResult]) -> str:
    """A line a figure."""
    return f"features of {day}\n{aligned([CHECK_HEADER, *check_cells(results)])}"


def check_cells(results: Sequence[CheckResult]) -> list[tuple[str, ...]]:
    """A row a figure, below CHECK_HEADER."""
    return [(r.figure, _shown(r.figure, r.value), _range(r), "BROKEN" if r.broken else r.note or "passed")
            for r in results]


def broken_lines(results: Sequence[CheckResult]) -> list[str]:
    """A line a broken figure: its value, the limits and the days before."""
    return [f"{r.figure} is {_shown(r.figure, r.value)}, expected {_range(r)} (the days before: "
            f"{', '.join(_shown(r.figure, value) for value in r.history)})" for r in results if r.broken]


def _range(result: CheckResult) -> str:
    low, high = (None if x is None else _shown(result.figure, x) for x in (result.low, result.high))
    if low is None and high is None:
        return "-"
    return f"at most {high}" if low is None else f"{low} to {high}"


def _shown(figure: str, value: float) -> str:
    return f"{value:,.0f}" if figure == "rows" else f"{value:.4f}"
