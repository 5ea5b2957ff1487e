"""AUC by the number of behaviours, and calibration bins, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mail_core.evaluation.breakdowns import LENGTHS, auc_by_length, calibration_bins


def test_groups_by_length_cover_every_row_once_and_have_their_own_auc():
    lengths = np.array([0, 0, 0, 1, 1, 3, 4, 70, 100])
    labels = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1])
    scores = np.array([.5, .4, .6, .2, .9, .5, .5, .1, .2])
    groups = auc_by_length(labels, scores, lengths)
    assert [(g.first, g.last, g.rows) for g in groups] == [(0, 0, 3), (1, 1, 2), (2, 4, 2), (5, 9, 0), (10, 19, 0),
                                                          (20, 49, 0), (50, None, 2)]
    assert [g.auc for g in groups] == [0.5, 0.0, None, None, None, None, 1.0]
    assert [g.title for g in groups[:3]] == ["0", "1", "2 to 4"] and groups[-1].title == "50 and more"
    assert LENGTHS[0] == 0


def test_calibration_bins_hold_equally_many_rows_in_the_order_of_predictions():
    bins = calibration_bins(np.array([1, 0, 1, 1]), np.array([.9, .1, .3, .5]), bins=2)
    assert [(b.rows, b.predicted, b.clicked) for b in bins] == [
        (2, pytest.approx(0.2), 0.5), (2, pytest.approx(0.7), 1.0)]
    assert len(calibration_bins(np.array([1]), np.array([.5]))) == 1
    assert calibration_bins(np.empty(0), np.empty(0)) == []
