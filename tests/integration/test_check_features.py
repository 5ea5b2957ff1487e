"""`jobs/check_features.py` on real Spark and Delta: figures against plain Python, and a broken day."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from raw_tables import call_job
from small_package import feature_rows

from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.schema.definition import Schema, check_figures
from mail_core.spark.checks import day_figures

LAST = date(2017, 5, 13)
DAYS = [LAST - timedelta(days=back) for back in reversed(range(10))]
GAP = DAYS[4]
"""A day without rows."""


def broken_day(schema: Schema) -> pa.Table:
    """A third of the rows, users under other IDs, no behaviour and no brand."""
    rows = feature_rows(schema, LAST, 20, seed=77)
    changes = {"userid": pa.array([9000 + n for n in range(20)], pa.int64()), "brand": pa.nulls(20, pa.int64()),
               **{name: pa.array([[]] * 20, rows.schema.field(name).type) for name in schema.behavior_vocabularies}}
    for name, values in changes.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), values)
    return rows


@pytest.fixture(scope="module")
def tables(alimama):
    return {day: feature_rows(alimama, day, 60, seed=number, users=300)
            for number, day in enumerate(DAYS) if day != GAP}


@pytest.fixture
def lake(spark, alimama, tables, tmp_path):
    result = Lake(spark, str(tmp_path / "lake"), alimama)
    result.replace_days("features", spark.createDataFrame(pa.concat_tables(tables.values())), list(tables))
    return result


def check(lake, day):
    return call_job("check_features", "--schema", "alimama", "--lake", lake.uri, "--date", str(day))


def written(lake, day):
    rows = lake.read("checks").where(F.col("day") == F.lit(day)).drop("checked_at", "day").toArrow().to_pylist()
    return {row.pop("figure"): row for row in rows}


def expected(schema, tables, day):
    """The figures of a day by plain Python."""
    rows, before = tables[day].to_pylist(), [tables[d] for d in tables if day - timedelta(days=7) <= d < day]
    found = {"rows": len(rows), "ctr": np.mean([r["label"] for r in rows]),
             "new_users": np.mean([not r[schema.action_column] for r in rows])}
    for feature in schema.features:
        values = [r[feature.name] for r in rows]
        cells = [v for value in values for v in (value if isinstance(value, list) else [value]) if v is not None]
        seen = {v for table in before for value in table.column(feature.name).to_pylist()
                for v in (value if isinstance(value, list) else [value])}
        found[f"unknown.{feature.name}"] = np.mean([v not in seen for v in cells]) if len(before) >= 3 else None
        found[f"null.{feature.name}"] = np.mean([value is None or value == [] for value in values])
    return {name: found[name] for name in check_figures(schema.features) if found[name] is not None}


def test_an_ordinary_day_passes_and_its_figures_are_those_of_plain_python(alimama, lake, tables, capsys):
    assert check(lake, LAST) == DONE
    found, wanted = written(lake, LAST), expected(alimama, tables, LAST)
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(wanted)
    assert 0 < wanted["unknown.adgroup_id"] < 0.6 and 0.2 < wanted["new_users"] < 0.6 and wanted["null.brand"] > 0
    before = [d for d in DAYS if LAST - timedelta(days=7) <= d < LAST and d != GAP]
    assert len(before) == 6
    for name in ("ctr", "null.brand", "unknown.adgroup_id"):
        history = [figures[name] for figures in (expected(alimama, tables, d) for d in before) if name in figures]
        assert found[name]["history"] == pytest.approx(history) and len(history) == (5 if "unknown" in name else 6)
    assert (found["rows"]["low"], found["rows"]["high"], found["rows"]["broken"]) == (30, 120, False)
    assert ["rows", "60", "30", "to", "120", "passed"] in [line.split() for line in capsys.readouterr().out.split("\n")]
    again = check(lake, LAST), written(lake, LAST)
    assert again == (DONE, found)


def test_a_broken_day_ends_with_exit_code_2_and_a_line_a_figure(spark, alimama, lake, caplog):
    lake.replace_days("features", spark.createDataFrame(broken_day(alimama)), [LAST])
    assert check(lake, LAST) == BAD_INPUT
    broken = {name for name, row in written(lake, LAST).items() if row["broken"]}
    assert {"rows", "new_users", "unknown.userid", "null.brand"} <= broken and "null.userid" not in broken
    lines = caplog.text.split("\n")
    assert f"features of 2017-05-13: {len(broken)} of {len(written(lake, LAST))} checks are broken" in caplog.text
    assert "  rows is 20, expected 30 to 120 (the days before: 60, 60, 60, 60, 60, 60)" in lines
    assert any(line.startswith("  unknown.userid is 1.0000, expected at most 0.") for line in lines)
    # Mended, the day passes; a broken day among those before moves no median.
    assert check(lake, LAST - timedelta(days=1)) == DONE


def test_the_first_days_pass_with_a_reason_and_a_day_without_rows_is_refused(lake, capsys, caplog):
    assert check(lake, DAYS[2]) == DONE
    assert {row["note"] for row in written(lake, DAYS[2]).values()} == {"too little history: 2 of 3 days have it"}
    assert "too little history: 2 of 3 days have it" in capsys.readouterr().out
    assert check(lake, GAP) == BAD_INPUT and f"no rows of {GAP}; run build_features for it" in caplog.text


def test_every_value_of_a_multi_valued_feature_counts(spark, movielens):
    days = DAYS[:4]
    tables = {day: feature_rows(movielens, day, 40, seed=number) for number, day in enumerate(days)}
    frame = spark.createDataFrame(pa.concat_tables(tables.values()))
    [last] = day_figures(frame, movielens, days[-1:], days).values()
    assert last == pytest.approx(expected(movielens, tables, days[-1]))
    genres = Counter(g for row in tables[days[-1]].column("genres").to_pylist() for g in row or [])
    assert sum(genres.values()) > 40 and last["null.genres"] > 0 and list(last) == list(check_figures(
        movielens.features))
