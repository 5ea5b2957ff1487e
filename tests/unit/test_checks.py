"""A day's figures beside the days before it, by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from mail_core.evaluation.checks import broken_lines, check_day, format_checks
from mail_core.schema.definition import Checks, check_figures

USUAL = {"rows": 1000.0, "ctr": 0.05, "new_users": 0.3, "unknown.userid": 0.4, "null.brand": 0.1}
WEEK = [USUAL] * 6 + [{name: 3 * value for name, value in USUAL.items()}]  # one odd day moves no median


def broken(changes, before=WEEK, limits=Checks()):
    results = check_day({**USUAL, **changes}, before, limits)
    assert [r.figure for r in results] == list(USUAL)
    return {r.figure for r in results if r.broken}


@pytest.mark.parametrize("changes, found", [
    ({}, set()), ({"rows": 500}, set()), ({"rows": 499}, {"rows"}), ({"rows": 2001}, {"rows"}), ({"ctr": 0.0}, {"ctr"}),
    ({"ctr": 0.101}, {"ctr"}), ({"new_users": 0.51}, {"new_users"}), ({"new_users": 0.09}, {"new_users"}),
    ({"unknown.userid": 0.59}, set()), ({"unknown.userid": 0.61}, {"unknown.userid"}), ({"unknown.userid": 0.0}, set()),
    ({"null.brand": 0.21, "rows": 1}, {"null.brand", "rows"})])
def test_figures_outside_the_limits_are_broken(changes, found):
    assert broken(changes) == found


def test_limits_are_settings():
    assert broken({"rows": 400, "unknown.userid": 1.0}, limits=Checks(rows=(0.3, 2.0), unknown_rise=0.7)) == set()
    assert broken({"rows": 900}, limits=Checks(rows=(0.95, 1.0))) == {"rows"}
    assert broken({"rows": 1, "ctr": 1.0}, limits=Checks(ignored=("rows",))) == {"ctr"}


def test_a_day_with_too_little_history_passes_and_says_why():
    results = check_day({**USUAL, "rows": 1.0}, WEEK[:2], Checks())
    assert not any(r.broken for r in results)
    assert {(r.low, r.high, r.note) for r in results} == {(None, None, "too little history: 2 of 3 days have it")}
    assert broken({"rows": 1.0}, WEEK[:2], Checks(least_days=2)) == {"rows"}
    without = [{name: value for name, value in USUAL.items() if name != "ctr"}] * 7
    assert broken({"rows": 1.0, "ctr": 1.0}, without) == {"rows"}


def test_a_broken_figure_is_told_with_its_limits_and_the_days_before():
    results = check_day({**USUAL, "rows": 1234567, "null.brand": 0.5}, WEEK[4:], Checks(ignored=("ctr",)))
    assert broken_lines(results) == [
        "rows is 1,234,567, expected 500 to 2,000 (the days before: 1,000, 1,000, 3,000)",
        "null.brand is 0.5000, expected at most 0.2000 (the days before: 0.1000, 0.1000, 0.3000)"]
    lines = [line.split() for line in format_checks(date(2017, 5, 13), results).splitlines()]
    assert lines[0] == ["features", "of", "2017-05-13"]
    assert lines[2] == ["rows", "1,234,567", "500", "to", "2,000", "BROKEN"]
    assert lines[3] == ["ctr", "0.0500", "-", "ignored", "by", "the", "schema"]


def test_what_is_checked_of_a_schema(alimama, movielens):
    names = check_figures(alimama.features)
    assert names[:5] == ("rows", "ctr", "new_users", "unknown.userid", "unknown.cms_segid")
    assert {"unknown.pid", "null.price"} <= set(names)
    assert not {"unknown.price", "unknown.hour", "null.hour"} & set(names)
    assert "unknown.genres" in check_figures(movielens.features)


def test_limits_are_no_part_of_the_fingerprint(alimama):
    assert replace(alimama, checks=Checks(days=3)).fingerprint == alimama.fingerprint
