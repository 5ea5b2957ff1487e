"""Figures over seeds, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from mail_core.evaluation.seeds import closed_share, paired_difference, spread


def test_the_spread_is_the_mean_and_the_sample_standard_deviation():
    found = spread({1: 0.60, 2: 0.62, 3: 0.64})
    assert (found.seeds, found.mean, found.sd) == (3, pytest.approx(0.62), pytest.approx(0.02))
    assert spread({4: 0.5}).sd is None and spread({}) is None


def test_a_paired_difference_has_the_t_interval_of_the_seeds_differences():
    # Differences .01, .02, .03: mean .02, standard deviation .01; t of 2 degrees of freedom at 97.5 % is 4.302653.
    found = paired_difference({1: 0.61, 2: 0.64, 3: 0.67}, {1: 0.60, 2: 0.62, 3: 0.64})
    half = 4.302653 * 0.01 / 3 ** 0.5
    assert found.mean == pytest.approx(0.02) and found.seeds == 3
    assert (found.low, found.high) == (pytest.approx(0.02 - half, abs=1e-7), pytest.approx(0.02 + half, abs=1e-7))
    assert found.ri == pytest.approx(100 * 0.02 / 0.62)


def test_only_common_seeds_are_compared():
    found = paired_difference({1: 0.7, 2: 0.9}, {2: 0.8, 3: 0.1})
    assert (found.seeds, found.mean, found.low, found.high) == (1, pytest.approx(0.1), None, None)
    assert found.ri == pytest.approx(12.5)
    assert paired_difference({1: 0.7}, {2: 0.7}) is None


def test_the_closed_share_divides_the_gain_by_the_gap():
    method, alone, oracle = {1: 0.62, 2: 0.64}, {1: 0.60, 2: 0.60}, {1: 0.70, 2: 0.70}
    found = closed_share(method, alone, oracle)
    # Gains .02 and .04 of gaps of .1; t of 1 degree of freedom at 97.5 % is 12.706205, the error .01.
    assert found.share == pytest.approx(0.3) and found.seeds == 2
    assert (found.low, found.high) == (pytest.approx(0.3 - 1.2706205), pytest.approx(0.3 + 1.2706205))


def test_a_share_is_undefined_where_the_oracle_is_no_better_or_no_seed_has_all_three():
    assert closed_share({1: 0.62}, {1: 0.60}, {1: 0.60}).share is None
    assert closed_share({1: 0.62}, {1: 0.60}, {2: 0.70}) is None
