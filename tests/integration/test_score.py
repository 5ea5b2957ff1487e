"""`ctr_scores` on real Spark, Delta and MLflow, against the package on rows worked out in plain Python."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from raw_tables import LAST_DAY, ZONE, call_job, local, random_rows, write
from small_package import small_package

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.package.store import load_package
from mail_core.schema.arrow import input_schema
from mail_core.spark.scoring import ScoreRequest, replace_scores
from mail_core.tracking.registry import register_package
from mail_core.tracking.runs import configure_tracking

DAY = LAST_DAY + timedelta(days=1)
COLUMNS = ("day", "user", "item", "ctr", "is_new_user", "model_name", "model_version")


@pytest.fixture(scope="module")
def rows():
    return random_rows(seed=5)


@pytest.fixture(scope="module")
def folder(alimama, tmp_path_factory):
    return small_package(tmp_path_factory.mktemp("package") / "version", alimama)


@pytest.fixture(scope="module")
def lake(spark, alimama, rows, tmp_path_factory):
    result = Lake(spark, str(tmp_path_factory.mktemp("root") / "lake"), alimama)
    for role, some in rows.items():
        write(result, alimama, role, some)
    # On the first moment of the scored day, which is not before it. User 44 has nothing else.
    write(result, alimama, "behaviors", [(user, local(DAY, hour=0), "pv", 1, None) for user in (3, 44)])
    return result


@pytest.fixture
def request_of(folder):
    def make(**changes):
        return replace(ScoreRequest(day=DAY, model_name="m", model_version="3", package_folder=folder), **changes)

    return make


def scores(lake):
    table = lake.read("ctr_scores").where(F.col("day") == F.lit(DAY))
    return sorted(tuple(row) for row in table.select(*COLUMNS).collect())


def expected(schema, folder, rows, candidates):
    """(user, item, pid, moment) -> CTR by `Package.predict` on whole rows, and whether the user is new."""
    profiles, ads = ({row[1]: row[2:] for row in rows[role]} for role in ("users", "items"))
    since, until = local(DAY - timedelta(days=schema.behavior_days), hour=0), local(DAY, hour=0)
    found = []
    for user, item, pid, moment in candidates:
        past = sorted((b for b in rows["behaviors"] if b[0] == user and since <= b[1] < until),
                      key=lambda b: (b[1], b[2], b[3], (b[4] is not None, b[4] or 0)))[::-1][:schema.sequence_length]
        weekday = moment.isoweekday()
        found.append((user, *profiles.get(user, (None,) * 8), pid, moment.hour, weekday,
                      moment.hour // 6 + 4 * (weekday > 5), item, *ads.get(item, (None,) * 5),
                      [b[2] for b in past], [b[3] for b in past], [b[4] for b in past]))
    wanted = input_schema(schema)
    table = pa.Table.from_pylist([dict(zip(wanted.names, row)) for row in found], schema=wanted)
    return load_package(folder).predict(table), [not row[-1] for row in found]


def test_the_day_befores_pairs_are_scored_as_the_package_scores_whole_rows(alimama, folder, lake, rows, request_of):
    yesterday = [(u, i) for u, t, i, *_ in rows["impressions"] if t.astimezone(ZONE).date() == LAST_DAY]
    pairs = sorted(set(yesterday))
    assert len(pairs) < len(yesterday)
    summary = replace_scores(alimama, lake, request_of())
    found = scores(lake)
    assert [row[:3] for row in found] == [(DAY, *pair) for pair in pairs]
    ctr, is_new = expected(alimama, folder, rows, [(*pair, "430548_1007", local(DAY, hour=20)) for pair in pairs])
    np.testing.assert_allclose([row[3] for row in found], ctr, rtol=0, atol=1e-6)
    assert [row[4] for row in found] == is_new and {True, False} == set(is_new)
    assert np.ptp(ctr) > 0.01 and {row[5:] for row in found} == {("m", "3")}
    assert (summary.rows, summary.users, summary.duplicates) == (len(pairs), len({u for u, _ in pairs}), 0)
    assert [(r.user, r.item) for r in summary.first_rows] == pairs[:10]


def test_a_second_run_gives_the_same_table_but_for_the_time_of_scoring(alimama, lake, request_of):
    replace_scores(alimama, lake, request_of())
    first, when = scores(lake), lake.read("ctr_scores").select("scored_at").distinct().collect()
    replace_scores(alimama, lake, request_of())
    assert scores(lake) == first
    assert len(when) == 1 and lake.read("ctr_scores").select("scored_at").distinct().collect() != when


def test_users_and_items_never_seen_are_scored_and_are_new(spark, alimama, folder, lake, rows, request_of, tmp_path):
    table = str(tmp_path / "candidates")
    spark.createDataFrame([(9_999_999, 5), (1, 8_888_888), (9_999_999, 8_888_888), (44, 5)], "user long, item int") \
        .write.parquet(table)
    summary = replace_scores(alimama, lake, request_of(candidates=table))
    pairs = [(1, 8_888_888), (44, 5), (9_999_999, 5), (9_999_999, 8_888_888)]
    ctr, _ = expected(alimama, folder, rows, [(*pair, "430548_1007", local(DAY, hour=20)) for pair in pairs])
    found = scores(lake)
    assert [row[1:3] for row in found] == pairs and [row[4] for row in found] == [False, True, True, True]
    np.testing.assert_allclose([row[3] for row in found], ctr, rtol=0, atol=1e-6)
    assert (summary.users, summary.new_users) == (3, 2)


def test_candidates_bring_their_context_and_lose_duplicates(spark, alimama, folder, lake, rows, request_of, tmp_path):
    table, moment = str(tmp_path / "candidates"), local(DAY, hour=3)
    pids = {"430539_1007": (1, 2, 1), "430548_1007": (2,)}
    some = [(user, 5, pid, moment) for pid, users in pids.items() for user in users]
    spark.createDataFrame(some, "user long, item long, pid string, time timestamp").write.format("delta").save(table)
    summary = replace_scores(alimama, lake, request_of(candidates=table))
    kept = [(1, 5, "430539_1007", moment), (2, 5, "430539_1007", moment)]
    ctr, _ = expected(alimama, folder, rows, kept)
    elsewhere, _ = expected(alimama, folder, rows, [(u, i, "430548_1007", local(DAY, hour=20)) for u, i, *_ in kept])
    np.testing.assert_allclose([row[3] for row in scores(lake)], ctr, rtol=0, atol=1e-6)
    assert np.abs(ctr - elsewhere).max() > 1e-4 and (summary.rows, summary.duplicates) == (2, 2)


def test_one_user_with_many_candidates_is_scored_in_slices(spark, alimama, folder, lake, rows, request_of, tmp_path):
    table = str(tmp_path / "candidates")
    spark.range(1, 30_001).selectExpr("1L user", "id item").write.parquet(table)
    assert replace_scores(alimama, lake, request_of(candidates=table)).rows == 30_000
    found = {row[2]: row[3] for row in scores(lake)}
    some = [1, 12, 31, 9_000, 30_000]
    ctr, _ = expected(alimama, folder, rows, [(1, item, "430548_1007", local(DAY, hour=20)) for item in some])
    np.testing.assert_allclose([found[item] for item in some], ctr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("query, message", [
    ("SELECT 1L user", "no column 'item'"),
    ("SELECT 1L user, 2L item, 'x' pld", "unknown column 'pld'; allowed: user, item, time, pid"),
    ("SELECT '1' user, 2L item", "column 'user' is string, expected bigint"),
    ("SELECT user, 2L item, pid FROM VALUES (1L, 'a'), (NULL, 'a'), (NULL, NULL) AS t(user, pid)",
     r"2 in column 'user', 1 in column 'pid' \(of 3 rows\)"),
    ("SELECT 1L user, 2L item WHERE false", "no rows"),
])
def test_candidates_that_do_not_fit_are_refused(spark, alimama, lake, request_of, tmp_path, query, message):
    spark.sql(query).write.parquet(str(tmp_path / "candidates"))
    with pytest.raises(InputError, match=message):
        replace_scores(alimama, lake, request_of(candidates=str(tmp_path / "candidates")))


def test_absent_input_is_an_input_error(alimama, movielens, lake, request_of, tmp_path):
    with pytest.raises(InputError, match="neither a Delta table nor Parquet"):
        replace_scores(alimama, lake, request_of(candidates=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="no rows for 2017-05-31"):
        replace_scores(alimama, lake, request_of(day=DAY + timedelta(days=18)))
    other = small_package(tmp_path / "version", movielens)
    with pytest.raises(InputError, match="takes column 'user_id' as int64, schema 'alimama' gives nothing"):
        replace_scores(alimama, lake, request_of(package_folder=other))


def test_the_job_resolves_an_alias_once_and_prints_the_table(lake, folder, capsys):
    configure_tracking(None, lake.uri, experiment="test")
    version = register_package(folder, "alimama-mail", "champion")
    arguments = ["--schema", "alimama", "--lake", lake.uri, "--date", str(DAY)]
    assert call_job("score", *arguments, "--model", "models:/alimama-mail@champion") == DONE
    assert {row[5:] for row in scores(lake)} == {("alimama-mail", version)}
    assert f"ctr_scores: {lake.path('ctr_scores')}\n" in capsys.readouterr().out
    assert call_job("score", *arguments, "--model", "models:/alimama-mail@nobody") == BAD_INPUT
