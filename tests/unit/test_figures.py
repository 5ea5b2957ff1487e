"""Figures are PNG bytes, the same for the same data."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from mail_core.evaluation import figures
from mail_core.evaluation.breakdowns import CalibrationBin

PNG = b"\x89PNG\r\n\x1a\n"


def clouds(count: int) -> figures.Clouds:
    draw = np.random.default_rng(0)
    return figures.Clouds(title="t", names=("a", "b"), vectors=(draw.normal(size=(count, 6)),
                                                               draw.normal(5, size=(count + 3, 6))))


@pytest.mark.parametrize("draw", [
    lambda: figures.loss_curves({"L_rt": [(20, 0.5), (40, 0.4)], "L_a": []}),
    lambda: figures.planes([clouds(12), clouds(1)], seed=3),
    lambda: figures.lines({"m": [(0.0, 0.5), (1.0, 0.6)]}, "x", "y", ["0", "1 to 4"]),
    lambda: figures.by_day({"old": {date(2017, 5, day): 0.6 for day in range(1, 16)}, "new": {}}, "AUC"),
    lambda: figures.by_day({"all": {date(2017, 5, 13): 0.6}}, "AUC"),
    lambda: figures.outlines({"old": [0.25, 0.75], "new": [0.0, 1.0]}, [0.001, 0.01, 0.1], "x", "y"),
    lambda: figures.calibration({"old": {"m": [CalibrationBin(rows=2, predicted=0.2, clicked=0.1)]}, "new": {}})])
def test_a_figure_is_a_png_and_repeats(draw):
    first = draw()
    assert first.startswith(PNG) and len(first) > 2000
    assert draw() == first


def test_t_sne_keeps_apart_what_is_apart_and_follows_its_seed():
    vectors = np.concatenate(clouds(20).vectors)
    places = figures.in_the_plane(vectors, seed=1)
    assert places.shape == (43, 2)
    own, other = places[:20], places[20:]
    assert np.linalg.norm(own.mean(0) - other.mean(0)) > max(own.std(0).max(), other.std(0).max())
    np.testing.assert_array_equal(places, figures.in_the_plane(vectors, seed=1))
    assert figures.in_the_plane(vectors[:3, :1], seed=1).shape == (3, 2)
