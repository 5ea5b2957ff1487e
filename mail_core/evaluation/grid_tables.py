"""One figure of several methods along a scale (behaviours seen, behaviours revealed), over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

from mail_core.evaluation.figures import Curve
from mail_core.evaluation.method_tables import shown_difference, shown_spread
from mail_core.evaluation.page import Table
from mail_core.evaluation.seeds import CONFIDENCE, Scores, paired_difference, spread


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scores by place on the scale and by method."""

    title: str
    scale: str
    """What the places are."""
    places: Sequence[str]
    columns: Mapping[str, Sequence[Scores]]
    """Method -> scores at each of `places`."""
    compared: Mapping[str, str] = field(default_factory=dict)
    """Method -> method that it is compared with, place by place."""
    note: str = ""


def grid_table(grid: Grid) -> Table:
    """A line a place, a column a method, then a column a comparison: the difference with its interval."""
    pairs = [(own, other) for own, other in grid.compared.items() if own in grid.columns and other in grid.columns]
    lines = []
    for at, place in enumerate(grid.places):
        differences = [paired_difference(grid.columns[own][at], grid.columns[other][at]) for own, other in pairs]
        lines.append((place, *(shown_spread(spread(column[at])) for column in grid.columns.values()),
                      *map(shown_difference, differences)))
    return Table(title=grid.title, rows=lines, note=grid.note, header=(
        grid.scale, *grid.columns, *(f"{own} less {other} [{CONFIDENCE:.0%}]" for own, other in pairs)))


def grid_numbers(grid: Grid) -> Table:
    """The means with all their digits, a line a place and method: the CSV beside the table."""
    lines = []
    for method, column in grid.columns.items():
        for place, scores in zip(grid.places, column):
            found = spread(scores)
            values = (found.seeds, found.mean, found.sd) if found else (0, None, None)
            lines.append((method, place, *("" if value is None else repr(value) for value in values)))
    return Table(title=grid.title, header=("method", grid.scale, "seeds", "mean", "sd"), rows=lines)


def grid_curves(grid: Grid) -> dict[str, Curve]:
    """Method -> (number of the place, mean) wherever there is one."""
    curves: dict[str, Curve] = {}
    for method, column in grid.columns.items():
        found = [(float(at), each.mean) for at, scores in enumerate(column) if (each := spread(scores)) is not None]
        if found:
            curves[method] = found
    return curves
