"""What clean-up removes and keeps, by hand and by what must hold of every plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_core.errors import InputError
from mail_core.lake.retention import (Folder, LiveVersion, RetentionConfig, Standing, StandingRun, StandingTable,
                                      StandingVersion, plan)

NOW = datetime(2026, 5, 20, 12, tzinfo=timezone.utc)
TODAY = NOW.date()
CONFIG = RetentionConfig(export_days=14, checkpoint_days=7, run_days=90, version_days=30)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def live(uri="models:/m/1", run_id="r1", export="2026-03-01-8d-natural", version=5) -> LiveVersion:
    last = date.fromisoformat(export[:10])
    return LiveVersion(uri=uri, run_id=run_id, export=export, first_day=last - timedelta(days=7), last_day=last,
                       delta_versions={"features": version})


def planned(standing: Standing, versions=(), retention=None) -> dict[str, tuple[bool, str]]:
    return {f"{step.kind} {step.name}": (step.removed, step.why)
            for step in plan(standing, list(versions), CONFIG, NOW, retention or {}, TODAY)}


def test_exports_go_by_age_but_not_what_a_live_version_was_trained_on_nor_its_copies():
    found = planned(Standing(exports=[
        Folder(uri="exports/2026-03-01-8d-natural", name="2026-03-01-8d-natural", changed=ago(80)),
        Folder(uri="exports-as-of/2026-03-01-8d-natural-v5", name="2026-03-01-8d-natural", changed=ago(80)),
        Folder(uri="exports/2026-03-02-8d-natural", name="2026-03-02-8d-natural", changed=ago(14.1)),
        Folder(uri="exports/2026-03-03-8d-natural", name="2026-03-03-8d-natural", changed=ago(13.9))]), [live()])
    assert [removed for removed, _ in found.values()] == [False, False, True, False]
    assert found["export exports/2026-03-01-8d-natural"] == (False, "models:/m/1 was trained on it")
    assert found["export exports/2026-03-02-8d-natural"] == (True, "14.1 days old, 14 are kept")


def test_checkpoints_go_by_age_but_not_those_of_a_live_versions_run():
    found = planned(Standing(checkpoints=[
        Folder(uri="m/a", name="a", changed=ago(8)), Folder(uri="m/b", name="b", changed=ago(8), run_id="r1"),
        Folder(uri="m/c", name="c", changed=ago(6))]), [live()])
    assert {name[-1]: removed for name, (removed, _) in found.items()} == {"a": True, "b": False, "c": False}


def test_runs_stay_with_the_versions_that_stay_and_under_them_and_while_they_run():
    found = planned(Standing(
        versions=[StandingVersion(uri="models:/m/1", run_id="r1", created=ago(200), aliases=("champion",)),
                  StandingVersion(uri="models:/m/2", run_id="r2", created=ago(200), aliases=()),
                  StandingVersion(uri="models:/m/3", run_id="r3", created=ago(10), aliases=())],
        runs=[StandingRun(run_id=name, name="m", ended=ended, parent=parent) for name, ended, parent in (
            ("r1", ago(200), "above"), ("r2", ago(200), None), ("r3", ago(95), None), ("above", ago(200), "top"),
            ("top", ago(200), None), ("runs", None, None), ("alone", ago(91), None), ("young", ago(89), None))]),
        [live()])
    assert found["model version models:/m/1"] == (False, "alias champion")
    gone = {name.split()[-2] if name.startswith("run") else name for name, (removed, _) in found.items() if removed}
    assert gone == {"model version models:/m/2", "r2", "alone"}
    assert list(found)[:3] == [f"model version models:/m/{n}" for n in (1, 2, 3)], "versions go before their runs"


def test_rows_go_by_the_schema_but_not_days_of_a_live_version_nor_the_newest():
    days = tuple(date(2026, 2, 20) + timedelta(days=n) for n in range(12))
    tables = [StandingTable(name=name, days=days, committed={}) for name in ("features", "quarantine", "items")]
    steps = {step.name: step for step in plan(Standing(tables=tables), [live()], CONFIG, NOW,
                                              {"features": 60, "quarantine": 60}, TODAY) if step.kind == "rows"}
    assert steps["features"].days == (date(2026, 2, 20), date(2026, 2, 21), date(2026, 3, 2))
    assert "models:/m/1 was trained on them" in steps["features"].why
    assert steps["quarantine"].days == days[:-1]
    assert not steps["items"].removed and not steps["items"].days


def test_the_version_that_a_live_one_was_started_from_stays_with_its_run():
    standing = Standing(
        versions=[StandingVersion(uri=f"models:/m/{n}", run_id=f"r{n}", created=ago(200), aliases=()) for n in (1, 2)],
        runs=[StandingRun(run_id=f"r{n}", name="m", ended=ago(200), parent=None) for n in (1, 2)])
    found = planned(standing, [replace(live(uri="models:/m/3", run_id="r3"), started_from="models:/m/2")])
    assert found["model version models:/m/2"] == (False, "models:/m/3 was started from it")
    assert [removed for removed, _ in found.values()] == [True, False, True, False]


@given(st.dictionaries(st.integers(0, 30), st.floats(0, 400), min_size=1), st.lists(st.integers(0, 30), max_size=4))
def test_no_file_goes_that_was_in_a_version_which_a_live_model_read(ages, read):
    """Version n's files leave the table when a later one is made, so after n was made."""
    versions = [live(uri=f"models:/m/{n}", version=number) for n, number in enumerate(read)]
    table = StandingTable(name="features", days=(), committed={n: ago(age) for n, age in ages.items()})
    [step] = [s for s in plan(Standing(tables=[table]), versions, CONFIG, NOW, {}, TODAY) if s.kind != "rows"]
    assert step.hours >= 24 * CONFIG.version_days
    for number in set(read) & set(ages):
        assert NOW - timedelta(hours=step.hours) < ago(ages[number]) or ages[number] <= CONFIG.version_days


@pytest.mark.parametrize("setting", [{"version_days": 6}, {"export_days": 0}, {"run_days": -1}])
def test_settings_that_would_remove_what_is_in_use_are_refused(setting):
    with pytest.raises(InputError, match=f"retention: {next(iter(setting))}: "):
        RetentionConfig(**setting)
