"""`features` on real Spark and Delta, against plain Python."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema
from raw_tables import LAST_DAY, ZONE, call_job, local, random_rows, write

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.schema.arrow import features_schema
from mail_core.spark.features import FeatureDays, build_features, replace_features

SHORT = 7


@pytest.fixture(scope="module")
def short(alimama):
    """Alimama with short sequences, so that truncation happens in a small log."""
    return replace(alimama, sequence_length=SHORT)


@pytest.fixture(scope="module")
def rows():
    return random_rows(seed=3)


@pytest.fixture(scope="module")
def lake(spark, short, rows, tmp_path_factory):
    result = Lake(spark, str(tmp_path_factory.mktemp("lake")), short)
    for role, some in rows.items():
        write(result, short, role, some)
    return result


@pytest.fixture(scope="module")
def built(lake, short):
    replace_features(short, lake, FeatureDays(last=LAST_DAY, days=3))
    return lake.read("features").collect()


def expected_sequence(behaviors, user, time, day):
    since = local(day - timedelta(days=22), hour=0)
    past = sorted((b for b in behaviors if b[0] == user and since <= b[1] < time),
                  key=lambda b: (b[1], b[2], b[3], (b[4] is not None, b[4] or 0)))
    return past[::-1][:SHORT]


def test_every_impression_has_its_raw_values_and_its_as_of_sequence(rows, built):
    profiles, ads = ({row[1]: row[2:] for row in rows[role]} for role in ("users", "items"))
    found = {(r.user, r.time, r.item): r for r in built}
    assert len(found) == len(built) == len(rows["impressions"])
    assert any(r.user not in profiles for r in built) and any(r.item not in ads for r in built)
    for user, time, item, pid, _, click in rows["impressions"]:
        row = found[user, time.replace(tzinfo=None), item]
        day = time.astimezone(ZONE).date()
        profile, ad = profiles.get(user, (None,) * 8), ads.get(item, (None,) * 5)
        past = expected_sequence(rows["behaviors"], user, time, day)
        moment = time.astimezone(ZONE)
        assert tuple(row) == (
            day, user, item, row.time, click, user, *profile, pid, moment.hour, moment.isoweekday(),
            moment.hour // 6 + 4 * (moment.isoweekday() > 5), item, *ad,
            [b[2] for b in past], [b[3] for b in past], [b[4] for b in past])


def test_sequences_are_truncated_empty_and_hold_null_brands_somewhere(built):
    lengths = {len(r.behavior_btag) for r in built}
    assert {0, SHORT} <= lengths and max(lengths) == SHORT
    assert any(None in r.behavior_brand for r in built)


def test_the_table_is_what_the_schema_says(lake, short, built):
    types = {f.name: f.dataType.simpleString() for f in lake.read("features").schema}
    assert types == {f.name: f.dataType.simpleString() for f in from_arrow_schema(features_schema(short))}


def test_days_built_one_by_one_and_twice_equal_days_built_at_once(lake, short, built):
    for back in (2, 0, 1, 0):
        replace_features(short, lake, FeatureDays(last=LAST_DAY - timedelta(days=back)))
    assert sorted(map(repr, lake.read("features").collect())) == sorted(map(repr, built))


def test_missing_days_are_named_and_left_out_when_allowed(lake, short):
    first = LAST_DAY - timedelta(days=2)
    with pytest.raises(InputError, match=f"{first - timedelta(days=2)}, {first - timedelta(days=1)} .*--allow-short"):
        replace_features(short, lake, FeatureDays(last=first, days=3))
    _, summary = replace_features(short, lake, FeatureDays(last=first, days=3, allow_short=True))
    assert [row.day for row in summary] == [first]
    with pytest.raises(InputError, match="no rows for 2017-05-14"):
        replace_features(short, lake, FeatureDays(last=LAST_DAY + timedelta(days=1), allow_short=True))


def test_the_job_prints_a_line_a_day_and_refuses_a_lake_without_tables(lake, tmp_path, capsys):
    arguments = ["--schema", "alimama", "--date", str(LAST_DAY), "--lake"]
    assert call_job("build_features", *arguments, lake.uri, "--days", "2") == DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["day", "rows"] and [line[:10] for line in lines[1:]] == ["2017-05-12", "2017-05-13"]
    assert call_job("build_features", *arguments, str(tmp_path)) == BAD_INPUT


def snapshots(spark, *rows):
    return spark.createDataFrame(pa.table({name: pa.array(column, kind) for name, kind, column in zip(
        ("day", "user_id", "age", "gender", "occupation", "zip_prefix"),
        (pa.date32(), pa.int64(), pa.int32(), pa.string(), pa.string(), pa.string()), zip(*rows))}))


@pytest.mark.parametrize("static, ages", [(False, [None, 10, 10, 11]), (True, [11, 11, 11, 11])])
def test_profiles_come_from_the_snapshot_at_or_before_the_day_or_the_newest(spark, movielens, static, ages):
    """Snapshots of 2000-01-02 and -04, impressions of user 1 on the 1st to the 4th."""
    schema = replace(movielens, users=replace(movielens.users, static=static))
    days = [date(2000, 1, d) for d in (1, 2, 3, 4)]
    users = snapshots(spark, (days[1], 1, 10, "F", None, "1"), (days[1], 2, 50, "M", "x", "2"),
                      (days[3], 1, 11, "F", None, "1"))
    impressions = spark.sql("SELECT day, 1L user_id, CAST(day AS TIMESTAMP) time, 9L item_id, 3 rated_hour, "
                            "4 rated_weekday, 1 click "
                            "FROM (SELECT explode(sequence(DATE'2000-01-01', DATE'2000-01-04')) day)")
    behaviors = impressions.selectExpr("day", "user_id", "time", "'5' rating", "item_id").limit(0)
    items = spark.createDataFrame([(days[0], 9, None, ["Drama", "War"])],
                                  "day date, item_id long, year int, genres array<string>")
    found = build_features(schema, impressions, behaviors, users, items).orderBy("day").collect()
    assert [row.age for row in found] == ages
    assert [row.genres for row in found] == [["Drama", "War"]] * 4
    assert [row.behavior_item_id for row in found] == [[]] * 4


def test_a_string_key_schema_works_like_any_other(spark, movielens):
    def as_text(raw, *names):
        return replace(raw, columns=tuple(replace(c, type="string") if c.name in names else c for c in raw.columns))

    schema = replace(movielens, impressions=as_text(movielens.impressions, "user_id", "item_id"),
                     behaviors=as_text(movielens.behaviors, "user_id", "item_id"),
                     users=as_text(movielens.users, "user_id"), items=as_text(movielens.items, "item_id"))
    day = date(2000, 1, 2)
    impressions = spark.sql("SELECT DATE'2000-01-02' day, 'ann' user_id, TIMESTAMP'2000-01-02 10:00:00' time, "
                            "'film' item_id, 1 rated_hour, 2 rated_weekday, 0 click")
    behaviors = spark.sql("SELECT DATE'2000-01-01' day, user_id, CAST(time AS TIMESTAMP) time, '5' rating, "
                          "item_id FROM VALUES ('ann', '2000-01-01 10:00:00', 'a'), "
                          "('ann', '2000-01-01 10:01:00', 'b'), "
                          "('bob', '2000-01-01 10:01:00', 'c') AS t(user_id, time, item_id)")
    users = spark.createDataFrame([(day, "ann", 30, "F", None, "9")],
                                  "day date, user_id string, age int, gender string, occupation string, "
                                  "zip_prefix string")
    items = spark.createDataFrame([(day, "film", 1990, None)],
                                  "day date, item_id string, year int, genres array<string>")
    row, = build_features(schema, impressions, behaviors, users, items).collect()
    assert (row.user_id, row.age, row.year, row.genres, row.behavior_item_id) == ("ann", 30, 1990, None, ["b", "a"])


def test_a_table_of_another_type_is_refused(spark, short, lake):
    broken = lake.read("raw_behaviors").withColumn("cate", F.col("cate").cast("string"))
    with pytest.raises(InputError, match="behaviors: column 'cate' is string, expected bigint"):
        build_features(short, lake.read("raw_impressions"), broken, lake.read("users"), lake.read("items"))
