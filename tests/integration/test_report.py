"""`jobs/report.py` on real Spark and Delta: figures against plain Python, and lakes that have little or nothing."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from browser import WIDTH, opened, requested
from raw_tables import LAST_DAY as DAY
from raw_tables import call_job, random_rows, write
from small_package import feature_rows

from mail_core.evaluation.checks import CheckResult
from mail_core.evaluation.cohorts import COHORTS
from mail_core.evaluation.daily_page import SCORE_EDGES
from mail_core.evaluation.metrics import METRICS
from mail_core.evaluation.promotion import Promotion
from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.spark.daily_report import daily_figures

NAME, OTHER = "alimama-mail", "alimama-din"
YESTERDAY, NEXT, LONG_AGO = DAY - timedelta(days=1), DAY + timedelta(days=1), DAY - timedelta(days=15)
EARLY, LATE = (datetime(2017, 5, 14, hour, tzinfo=timezone.utc) for hour in (3, 5))
HOSTILE = "<script>alert(1)</script>\x00"
CHECK = CheckResult(figure="ctr", value=0.5, low=0.1, high=0.4, history=(0.2, 0.2, 0.2), broken=True, note=None)
PROMOTION = Promotion(
    day=DAY, model_name=NAME, model_version="2", champion="1", decision="kept", reason="no cohort can be judged",
    new_users="natural", cohorts=(), virtual_behavior_gain=None, virtual_behavior_gain_low=None,
    virtual_behavior_gain_high=None, gain_cohort="new", gain_lost=False, auc_margin=0.005, logloss_margin=0.01,
    confidence=0.9, decided_at=EARLY)


def fill(lake, table, rows):
    """Rows by column name; one commit."""
    frame = lake.spark.createDataFrame(pa.Table.from_pylist(rows, schema=lake.definitions[table].columns))
    lake.replace_days(table, frame, sorted({row["day"] for row in rows}))


def metrics(day, version, against, value, at, name=NAME):
    return [{"day": day, "model_name": name, "model_version": version, "against": against, "cohort": cohort,
             "metric": metric, "value": value, "evaluated_at": at} for cohort in COHORTS for metric in METRICS]


@pytest.fixture(scope="module")
def scores():
    """(is new, CTR) of candidates, two of them below the lowest bin."""
    draw = np.random.default_rng(0)
    return [(bool(new), float(ctr)) for new, ctr in zip(draw.random(300) < 0.3, 10 ** draw.uniform(-3.9, 0, 300))] + [
        (True, 0.0), (False, 1.0)]


@pytest.fixture(scope="module")
def features(alimama):
    return {day: feature_rows(alimama, day, count, seed=count) for day, count in ((YESTERDAY, 40), (DAY, 60))}


@pytest.fixture(scope="module")
def impressions():
    return random_rows(seed=0)["impressions"]


@pytest.fixture(scope="module")
def lake(spark, alimama, features, impressions, scores, tmp_path_factory):
    """All tables but behaviours, users and items."""
    result = Lake(spark, str(tmp_path_factory.mktemp("report") / "lake"), alimama)
    write(result, alimama, "impressions", impressions)
    lines = [HOSTILE, "y" * 2_000_000, *(f"line {n}" for n in range(20))]
    fill(result, "quarantine", [{"day": DAY, "source": "impressions", "file": "raw_sample.csv", "line": line,
                                 "reason": "columns"} for line in lines[:2]] + [
        {"day": DAY, "source": "users", "file": "user_profile.csv", "line": line, "reason": "bad_userid"}
        for line in lines[2:]] + [{"day": YESTERDAY, "source": "items", "file": "f", "line": "x", "reason": "columns"}])
    result.replace_days("features", spark.createDataFrame(pa.concat_tables(features.values())), list(features))
    fill(result, "checks", [{**asdict(CHECK), "day": DAY, "checked_at": EARLY}])
    fill(result, "evaluations", [*metrics(YESTERDAY, "1", None, 0.6, EARLY), *metrics(DAY, "1", None, 0.7, EARLY),
                                 *metrics(DAY, "2", None, 0.8, LATE), *metrics(DAY, "2", f"{OTHER}/1", 0.1, LATE),
                                 *metrics(DAY, "9", None, 0.2, LATE, OTHER), *metrics(LONG_AGO, "1", None, 0.3, EARLY)])
    fill(result, "promotions", [{**asdict(PROMOTION), "cohorts": []},
                                {**asdict(PROMOTION), "cohorts": [], "model_name": OTHER, "decision": "promoted"}])
    fill(result, "ctr_scores", [
        {"day": NEXT, "user": number, "item": 1, "ctr": ctr, "is_new_user": new, "model_name": NAME,
         "model_version": "1", "scored_at": LATE} for number, (new, ctr) in enumerate(scores)])
    return result


def report(lake, day, out):
    return call_job("report", "--schema", "alimama", "--lake", lake.uri, "--date", str(day), "--model", NAME,
                    "--out", str(out))


def test_the_figures_of_a_day_are_those_of_plain_python(alimama, lake, features, impressions, scores):
    found = daily_figures(alimama, lake, DAY, NAME)
    assert sum(found.raw["raw_impressions"].values()) == len(impressions) and max(found.raw["raw_impressions"]) == DAY
    assert [found.raw[name] for name in ("raw_behaviors", "users", "items")] == [None] * 3
    users, columns = found.quarantined
    assert (users.source, users.reason, users.rows, columns.rows) == ("users", "bad_userid", 20, 2)
    assert 1 <= len(users.examples) <= 3 and all(file == "user_profile.csv" for file, _ in users.examples)
    assert sorted(line for _, line in columns.examples) == [HOSTILE, "y" * 201]
    for day, rows in features.items():
        assert found.features[day].rows == rows.num_rows
        assert found.features[day].ctr == pytest.approx(np.mean(rows.column("label").to_pylist()))
        assert found.features[day].new_users == pytest.approx(
            np.mean([not actions for actions in rows.column(alimama.action_column).to_pylist()]))
    assert list(found.checks) == [CHECK]
    assert {day: (e.version, set(e.values.values())) for day, e in found.evaluations.items()} == {
        YESTERDAY: ("1", {0.6}), DAY: ("2", {0.8})}
    assert found.promotions == {DAY: PROMOTION}
    assert (found.scores.day, found.scores.versions) == (NEXT, ("1",))
    # This lake was opened once and filled table by table, so that each job took longer than the one before.
    assert list(sorted(found.seconds, key=found.seconds.get)) == [
        "ingest_logs", "build_features", "check_features", "evaluate", "promote", "score"]
    for group in found.scores.groups:
        ctrs = [max(ctr, SCORE_EDGES[0]) for new, ctr in scores if new == group.is_new]
        assert group.counts == tuple(np.histogram(ctrs, SCORE_EDGES)[0]) and group.rows == len(ctrs)


def test_the_job_writes_one_page_and_its_alarms(lake, tmp_path, capsys):
    out = tmp_path / "below" / "page.html"
    assert report(lake, DAY, out) == DONE
    text, printed = out.read_text(), capsys.readouterr().out
    assert "ALARM: 1 of 1 checks of the features are broken: ctr." in printed and printed.endswith(f"{out}\n")
    assert "The lake has no table users yet: ingest_logs has not run." in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x00" in text and "<script" not in text and len(text) < 2_000_000
    assert "Version 2: kept. no cohort can be judged" in text and "<td>0.8000</td>" in text
    assert report(lake, DAY, tmp_path) == BAD_INPUT


def test_a_phone_shows_the_page_without_scrolling_sideways_or_loading_anything(lake, tmp_path):
    out = tmp_path / "page.html"
    assert report(lake, DAY, out) == DONE
    with opened(out) as driver:
        assert driver.execute_script("return window.innerWidth") == WIDTH
        assert driver.execute_script("return document.documentElement.scrollWidth") <= WIDTH
        shown = driver.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
        assert shown and all(0 < width <= WIDTH < natural for natural, width in shown)
        sizes = driver.execute_script("return [...document.querySelectorAll('h1, h2, p, td, th, caption, pre')]"
                                      ".map(e => parseFloat(getComputedStyle(e).fontSize))")
        assert min(sizes) >= 12
        assert str(DAY) in driver.title and "Version 2: kept." in driver.find_element("tag name", "body").text
        assert [url for url in requested(driver) if not url.startswith("data:")] == [out.as_uri()]
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_lake_without_tables_gets_a_page_that_says_so(spark, alimama, tmp_path):
    out = tmp_path / "page.html"
    assert report(Lake(spark, str(tmp_path / "lake"), alimama), DAY, out) == DONE
    assert out.read_text().count("The lake has no table ") == 11  # evaluations for metrics and for calibration
