"""Figures as PNG bytes, drawn without a display.

Shapes: N points, D dimensions of what they stand for.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from datetime import date
from typing import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mail_core.evaluation.breakdowns import CalibrationBin

COLOURS = ("#e0a100", "#6a3d9a")
"""Of a pair of clouds: yellow and purple, as in the paper."""
_PERPLEXITY = 30.0
_DPI = 110
_DAY = "datetime64[D]"
_DAY_TICKS = 7
"""Days that are named below an axis, at most."""

Curve = Sequence[tuple[float, float]]
"""(x, y) in the order of x."""


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """Two sets of vectors to be seen in one plane."""

    title: str
    names: tuple[str, str]
    vectors: tuple[np.ndarray, np.ndarray]
    """(N, D) each, as many columns in both."""


def loss_curves(curves: Mapping[str, Curve]) -> bytes:
    """Figure 4: a panel a loss, by step."""
    figure, panels = _panels(len(curves))
    for axes, (name, points) in zip(panels, curves.items()):
        axes.plot(*_xy(points), color=COLOURS[1], linewidth=1, marker="." if len(points) == 1 else None)
        _titled(axes, name, "step", "")
    return _png(figure)


def planes(clouds: Sequence[Clouds], seed: int) -> bytes:
    """Figures 5 and 6: a panel a pair of clouds, laid out by t-SNE from `seed`."""
    figure, panels = _panels(len(clouds))
    for axes, pair in zip(panels, clouds):
        places = in_the_plane(np.concatenate(pair.vectors), seed)
        first = len(pair.vectors[0])
        for part, name, colour in zip((places[:first], places[first:]), pair.names, COLOURS):
            axes.scatter(part[:, 0], part[:, 1], s=6, alpha=0.6, color=colour, label=f"{name} ({len(part):,})")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(fontsize=7)
        axes.set_title(pair.title, fontsize=9)
    return _png(figure)


def in_the_plane(vectors_ND: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE: (N, D) -> (N, 2); fewer than five points are laid out by their first two dimensions."""
    vectors_ND = np.asarray(vectors_ND, dtype=np.float64)
    if len(vectors_ND) < 5:
        return np.pad(vectors_ND[:, :2], ((0, 0), (0, max(0, 2 - vectors_ND.shape[1]))))
    from sklearn.manifold import TSNE  # seconds of imports, and the daily page has no such figure

    return TSNE(n_components=2, init="pca" if vectors_ND.shape[1] > 1 else "random", random_state=seed,
                perplexity=min(_PERPLEXITY, (len(vectors_ND) - 1) / 3)).fit_transform(vectors_ND)


def lines(curves: Mapping[str, Curve], x: str, y: str, ticks: Sequence[str] | None = None) -> bytes:
    """Named lines in one panel; `ticks` are the names of x = 0, 1, ..., of one line or more."""
    figure, [axes] = _panels(1, width=7.0)
    for name, points in curves.items():
        axes.plot(*_xy(points), marker="o", markersize=3, linewidth=1.2, label=name)
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.legend(fontsize=8)
    _titled(axes, "", x, y)
    return _png(figure)


def by_day(curves: Mapping[str, Mapping[date, float]], y: str) -> bytes:
    """Named lines over days, in one narrow panel that stays legible on a phone."""
    figure, [axes] = _panels(1)
    for name, values in curves.items():
        days = sorted(values)
        axes.plot(np.array(days, dtype=_DAY), [values[day] for day in days], marker="o", markersize=3, linewidth=1.2,
                  label=name)
    shown = sorted({day for values in curves.values() for day in values})
    apart = max(1, math.ceil(len(shown) / _DAY_TICKS))
    ticks = shown[::-1][::apart]  # from the last day back, which is so always named
    axes.set_xticks(np.array(ticks, dtype=_DAY), [f"{day:%m-%d}" for day in ticks])
    axes.legend(fontsize=7)
    _titled(axes, "", "", y)
    return _png(figure)


def outlines(shares: Mapping[str, Sequence[float]], edges: Sequence[float], x: str, y: str) -> bytes:
    """Named histograms over the same bins, on a logarithmic x: the bins' heights, and their edges, one more."""
    figure, [axes] = _panels(1)
    for name, heights in shares.items():
        axes.stairs(heights, edges, label=name, linewidth=1.2)
    axes.set_xscale("log")
    axes.legend(fontsize=7)
    _titled(axes, "", x, y)
    return _png(figure)


def calibration(panels: Mapping[str, Mapping[str, Sequence[CalibrationBin]]]) -> bytes:
    """A panel a cohort: clicks a row against the mean prediction of each bin, a line a method."""
    figure, drawn = _panels(len(panels))
    for axes, (cohort, methods) in zip(drawn, panels.items()):
        for name, bins in methods.items():
            axes.plot([b.predicted for b in bins], [b.clicked for b in bins], marker="o", markersize=3, linewidth=1,
                      label=name)
        top = max([b.predicted for bins in methods.values() for b in bins] or [1.0])
        axes.plot([0, top], [0, top], color="#8c959f", linestyle="--", linewidth=0.8, label="calibrated")
        axes.legend(fontsize=7)
        _titled(axes, cohort, "predicted CTR", "clicks an impression")
    return _png(figure)


def _panels(count: int, width: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * max(count, 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _titled(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)


def _xy(points: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    # Without the version of matplotlib in it: equal data give equal bytes.
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    return sink.getvalue()
