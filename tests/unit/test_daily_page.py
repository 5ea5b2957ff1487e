"""The page of a day: every section has its figures or says what is missing, and nothing from a log becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest
from test_page import read

from mail_core.evaluation.checks import CheckResult
from mail_core.evaluation.cohorts import COHORTS
from mail_core.evaluation.daily_page import (SCORE_EDGES, SECTIONS, DailyFigures, Evaluated, FeatureDay, Quarantined,
                                             Scored, ScoreGroup, alarms, daily_page)
from mail_core.evaluation.page import EXCERPT, excerpt
from mail_core.evaluation.promotion import CohortEvidence, Promotion

DAY = date(2017, 5, 13)
BEFORE = [DAY - timedelta(days=back) for back in (2, 1)]
HOSTILE = '</pre><script src="https://evil.example/x.js"></script>\x00\x1b[2J\u202e\n<img src=x onerror=alert(1)>'
NOTHING = DailyFigures(
    schema_name="alimama", day=DAY, model_name="alimama-mail", raw={"raw_impressions": None, "users": None},
    quarantined=None, features=None, checks=None, evaluations=None, promotions=None, scores=None, has_scores=False,
    seconds={})


def evaluated(version: str, auc: float, ece: float) -> Evaluated:
    values = {"rows": 250.0, "ctr": 0.05, "auc": auc, "gauc": None, "logloss": 0.2, "ece": ece}
    return Evaluated(version=version, values={
        (cohort, metric): 1000.0 if (cohort, metric) == ("all", "rows") else value
        for cohort in COHORTS for metric, value in values.items()})


def promotion(**changes) -> Promotion:
    nothing = {f"{of}{metric}{part}": None for metric in ("auc", "logloss")
               for of, part in (("", ""), ("against_", ""), ("", "_difference"), ("", "_low"), ("", "_high"))}
    evidence = CohortEvidence(cohort="old", rows=750, clicks=40, **{**nothing, "auc": 0.6123, "auc_difference": 0.0012})
    stands = Promotion(
        day=DAY, model_name="alimama-mail", model_version="8", champion="7", decision="kept",
        reason="old may lose more than the margin", new_users="natural", cohorts=(evidence,),
        virtual_behavior_gain=0.0031, virtual_behavior_gain_low=-0.001, virtual_behavior_gain_high=0.006,
        gain_cohort="new", gain_lost=False, auc_margin=0.005, logloss_margin=0.01, confidence=0.9,
        decided_at=datetime(2017, 5, 14, 3, tzinfo=timezone.utc))
    return replace(stands, **changes)


def check(figure: str, value: float, low: float | None, high: float) -> CheckResult:
    return CheckResult(figure=figure, value=value, low=low, high=high, history=(0.05,) * 3, broken=False, note=None)


def group(is_new: bool) -> ScoreGroup:
    counts = [0] * (len(SCORE_EDGES) - 1)
    counts[12] = 40
    return ScoreGroup(is_new=is_new, rows=40, mean=0.0517, quantiles=(0.01, 0.04, 0.09), counts=tuple(counts))


def full(**changes) -> DailyFigures:
    days = [*BEFORE, DAY]
    figures = replace(
        NOTHING, raw={"raw_impressions": dict(zip(days, (900, 1100, 1000))), "users": {DAY: 77}},
        quarantined=[Quarantined(source="impressions", reason="bad_user", rows=12_345, examples=(
            ("raw_sample.csv", HOSTILE), ("raw_sample.csv", "x" * 1_000_000)))],
        features={d: FeatureDay(rows=rows, ctr=0.05, new_users=0.3) for d, rows in zip(days, (900, 1100, 1000))},
        checks=[check("rows", 1000, 500, 2000), check("null.brand", 0.1, None, 0.4)],
        evaluations={d: evaluated(str(6 + n), 0.6 + n / 100, 0.004) for n, d in enumerate(days)},
        promotions={DAY: promotion()}, has_scores=True, seconds={"score": 7.25, "train": 1234.5},
        scores=Scored(day=DAY + timedelta(days=1), versions=("7",), groups=(group(False), group(True))))
    return replace(figures, **changes)


def sections(text: str) -> dict[str, str]:
    """Heading -> what stands below it."""
    pieces = re.split(r"<h2>(.*?)</h2>", text)
    return dict(zip(pieces[1::2], pieces[2::2]))


def cells(text: str) -> list[list[str]]:
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>.*?</tr>", text)]


def test_every_section_shows_its_figures_beside_the_days_before():
    text = daily_page(full())
    found = sections(text)
    assert tuple(found) == SECTIONS and "has not run" not in text and not read(text).open
    assert ["raw_impressions", "1,000", "1,000"] in cells(found["Read"])  # the median of 900 and 1,100
    assert ["users", "77", "-"] in cells(found["Read"])
    assert ["bad_user", "impressions", "12,345"] in cells(found["Quarantined and dropped"])
    assert ["CTR", "0.0500", "0.0500"] in cells(found["Features"])
    assert ["rows", "1,000", "500 to 2,000", "passed"] in cells(found["Features"])
    assert "1 other figures passed, 0 of them without limits" in found["Features"]
    metrics = cells(found["Cohorts and metrics"])
    assert ["new", "250", "25.0%", "0.0500", "0.6200", "-", "0.2000", "0.0040"] in metrics
    assert ["new", "+0.0150", "-", "+0.0000", "+0.0000"] in metrics  # 0.62 less the median of 0.60 and 0.61
    assert ["unseen", "0.0500", "0.0040"] in cells(found["Calibration by cohort"])
    assert "Version 8: kept. old may lose more than the margin" in found["Promotion"]
    assert "+0.0031 [-0.0010, +0.0060]" in found["Promotion"]
    assert ["new", "40", "50.0%", "0.0517", "0.0100", "0.0400", "0.0900"] in cells(found["Scores"])
    assert cells(found["Slowest steps"])[1:] == [["train", "1,234.5"], ["score", "7.2"]]
    assert "2017-05-14, version 7" in found["Scores"] and "No alarm in what" in found["In short"]
    pictures = [attributes for tag, attributes in read(text).tags if tag == "img"]
    assert len(pictures) == 6 and all(picture["alt"] for picture in pictures)


@pytest.mark.parametrize("day", [NOTHING, full(), full(quarantined=[], checks=[], evaluations={}, promotions={},
                                                       scores=None, features={})])
def test_the_page_loads_nothing_and_is_narrow(day):
    text = daily_page(day)
    tags = read(text).tags
    plain = "html head meta title style body h1 h2 p div table caption thead tbody tr th td pre figure img figcaption"
    assert {tag for tag, _ in tags} <= set(plain.split())
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img")
    assert not re.search(r"url\(|@import", text)
    assert "max-width: 46rem" in text and ("meta", {"name": "viewport",
                                                    "content": "width=device-width, initial-scale=1"}) in tags


def test_a_hostile_line_is_text_and_a_long_one_is_cut():
    found = sections(daily_page(full()))["Quarantined and dropped"]
    assert "&lt;script" in found and "<script" not in found and "<img" not in found
    assert r"\x00\x1b[2J\u202e\n&lt;img" in found
    assert not [c for c in found if not c.isprintable() and c != "\n"]
    assert "x" * EXCERPT + "..." in found and "x" * (EXCERPT + 1) not in found


def test_an_excerpt_can_be_written_whatever_the_text_is():
    assert excerpt("a\ud800b").encode() == rb"a\ud800b"
    assert excerpt("é" * EXCERPT) == "é" * EXCERPT


def test_what_a_lake_does_not_have_is_said_in_its_section():
    found = sections(daily_page(NOTHING))
    assert tuple(found) == SECTIONS
    for section, table, job in (("Read", "raw_impressions", "ingest_logs"), ("Read", "users", "ingest_logs"),
                                ("Quarantined and dropped", "quarantine", "ingest_logs"),
                                ("Features", "features", "build_features"), ("Features", "checks", "check_features"),
                                ("Cohorts and metrics", "evaluations", "evaluate"),
                                ("Calibration by cohort", "evaluations", "evaluate"),
                                ("Promotion", "promotions", "promote"), ("Scores", "ctr_scores", "score")):
        assert f"The lake has no table {table} yet: {job} has not run." in found[section]


def test_a_day_that_a_job_has_left_out_is_said_beside_the_days_that_it_has():
    text = daily_page(full(day=DAY + timedelta(days=1), checks=[], quarantined=[], scores=None))
    found = sections(text)
    for section, table in (("Features", "features"), ("Features", "checks"), ("Cohorts and metrics", "evaluations"),
                           ("Calibration by cohort", "evaluations"), ("Promotion", "promotions")):
        assert f"{table} has no rows of 2017-05-14" in found[section]
    assert "No line was quarantined." in found["Quarantined and dropped"]
    assert "<img" in found["Cohorts and metrics"] and "2017-05-13" in found["Promotion"]
    assert "alimama-mail has scored neither 2017-05-14 nor the day after." in found["Scores"]


def test_alarms_stand_on_top():
    assert alarms(full()) == alarms(NOTHING) == []
    broken = replace(check("ctr", 0.5, 0.02, 0.1), broken=True)
    undone = promotion(decision="promoted", gain_lost=True, rolled_back_to="7", rollback_reason="<b>CTR</b> fell\x07",
                       rolled_back_at=datetime(2017, 5, 14, 9, tzinfo=timezone.utc))
    day = full(checks=[broken], promotions={DAY: undone}, raw={"raw_impressions": {DAY: 1200}})
    said = alarms(day)
    assert len(said) == 4 and "features has 1,000 rows, raw_impressions 1,200" in said[0] and ": ctr." in said[1]
    assert "gain of virtual behaviour is lost" in said[2] and "rolled back" in said[3]
    found = sections(daily_page(day))
    assert found["In short"].count("ALARM: ") == 4 and "No alarm" not in found["In short"]
    assert "ctr is 0.5000, expected 0.0200 to 0.1000" in found["Features"]
    assert r"&lt;b&gt;CTR&lt;/b&gt; fell\x07" in found["Promotion"] and "LOST" in found["Promotion"]
