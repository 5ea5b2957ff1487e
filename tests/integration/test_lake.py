"""Delta tables through Lake: replaced a day at a time, guarded by constraints."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.errors import InputError
from mail_core.lake.tables import Lake, table_definitions

DAY6, DAY7 = date(2017, 5, 6), date(2017, 5, 7)


@pytest.fixture
def lake(spark, alimama, tmp_path: Path) -> Lake:
    return Lake(spark, str(tmp_path / "lake"), alimama)


def impressions(lake: Lake, *rows: tuple) -> DataFrame:
    """Rows (day of May, user, clk), with pid optional."""
    full = [(date(2017, 5, d), u, datetime(2017, 5, d, 1, tzinfo=timezone.utc), 5, pid[0] if pid else "430548_1007",
             1 - c, c) for d, u, c, *pid in rows]
    return lake.spark.createDataFrame(full, lake.definitions["raw_impressions"].spark_schema)


def users_of(lake: Lake, day: date) -> list[int]:
    return sorted(row["user"] for row in lake.read("raw_impressions").where(F.col("day") == F.lit(day)).collect())


def test_replacing_a_day_leaves_the_others(lake: Lake) -> None:
    assert lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0), (6, 2, 1), (7, 3, 0)), [DAY6, DAY7]) == 3
    assert lake.replace_days("raw_impressions", impressions(lake, (6, 9, 1)), [DAY6]) == 1
    assert users_of(lake, DAY6) == [9] and users_of(lake, DAY7) == [3]
    version = lake.version("raw_impressions")
    assert lake.replace_days("raw_impressions", impressions(lake, (6, 9, 1)), [DAY6]) == 1
    assert users_of(lake, DAY6) == [9] and lake.version("raw_impressions") == version + 1


def test_no_rows_empty_the_day(lake: Lake) -> None:
    assert lake.replace_days("raw_impressions", impressions(lake), [DAY6]) == 0
    lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0), (7, 3, 0)), [DAY6, DAY7])
    assert lake.days("raw_impressions") == [DAY6, DAY7]
    assert lake.days("raw_impressions", first=DAY7) == [DAY7] and lake.days("raw_impressions", last=DAY6) == [DAY6]
    assert lake.replace_days("raw_impressions", impressions(lake), [DAY6]) == 0
    assert lake.days("raw_impressions") == [DAY7]


def test_where_narrows_what_is_replaced(lake: Lake) -> None:
    lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0), (6, 2, 0)), [DAY6])
    assert lake.replace_days("raw_impressions", impressions(lake, (6, 2, 1)), [DAY6], where="user = 2") == 1
    assert users_of(lake, DAY6) == [1, 2]
    with pytest.raises(InputError):
        lake.replace_days("raw_impressions", impressions(lake, (6, 3, 1)), [DAY6], where="user = 2")


def test_refused_rows_leave_the_version_before(lake: Lake) -> None:
    lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0)), [DAY6])
    version = lake.version("raw_impressions")
    nameless = impressions(lake, (6, 1, 0)).withColumn("user", F.lit(None).cast("long"))
    for frame, problem in ((impressions(lake, (7, 1, 0)), "day"),
                           (impressions(lake, (6, 1, 0, "nowhere")), "pid_allowed"),
                           (impressions(lake, (6, 1, 3)), "clk"), (nameless, "user")):
        with pytest.raises(InputError, match=problem):
            lake.replace_days("raw_impressions", frame, [DAY6])
        assert lake.version("raw_impressions") == version and users_of(lake, DAY6) == [1]


def test_contradictory_labels_and_odd_probabilities_are_refused(lake: Lake) -> None:
    both = impressions(lake, (6, 1, 0)).withColumn("clk", F.lit(1))
    with pytest.raises(InputError, match="clk_nonclk"):
        lake.replace_days("raw_impressions", both, [DAY6])
    now = F.current_timestamp()
    score = lake.spark.range(1).select(F.lit(DAY6).alias("day"), F.col("id").alias("user"), F.col("id").alias("item"),
                                       F.lit(1.5).alias("ctr"), F.lit(True).alias("is_new_user"),
                                       F.lit("m").alias("model_name"), F.lit("1").alias("model_version"),
                                       now.alias("scored_at"))
    with pytest.raises(InputError, match="ctr"):
        lake.replace_days("ctr_scores", score, [DAY6])
    assert lake.replace_days("ctr_scores", score.withColumn("ctr", F.lit(1.0)), [DAY6]) == 1


@pytest.mark.parametrize("change, problem", [
    (lambda f: f.withColumn("user", F.col("user").cast("int")), "column user: expected bigint, found int"),
    (lambda f: f.drop("pid"), "column pid: expected string, found no such column"),
    (lambda f: f.withColumn("more", F.lit(1)), "column more: expected no such column, found int")])
def test_another_schema_is_refused_by_name(lake: Lake, change, problem: str) -> None:
    with pytest.raises(InputError, match=f"table raw_impressions: .*{problem}"):
        lake.replace_days("raw_impressions", change(impressions(lake, (6, 1, 0))), [DAY6])
    assert not lake.exists("raw_impressions")


def test_an_absent_table_is_named_with_its_path(lake: Lake) -> None:
    for look in (lake.read, lake.version, lake.days):
        with pytest.raises(InputError, match=r"no table users at .*/lake/users"):
            look("users")


def test_a_schema_with_one_more_value_reaches_an_older_table(lake: Lake, alimama) -> None:
    lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0)), [DAY6])
    pid = replace(alimama.impressions.column("pid"), values=("430548_1007", "430539_1007", "new"))
    columns = tuple(pid if c.name == "pid" else c for c in alimama.impressions.columns)
    wider = Lake(lake.spark, lake.uri, replace(alimama, impressions=replace(alimama.impressions, columns=columns)))
    assert wider.replace_days("raw_impressions", impressions(wider, (7, 1, 0, "new")), [DAY7]) == 1
    with pytest.raises(InputError, match="violate"):
        lake.replace_days("raw_impressions", impressions(lake, (6, 1, 0)), [DAY6])


def test_every_table_can_be_made_and_read_back_empty(spark, movielens, tmp_path: Path) -> None:
    lake = Lake(spark, str(tmp_path / "a b"), movielens)
    for name, definition in table_definitions(movielens).items():
        assert lake.replace_days(name, spark.createDataFrame([], definition.spark_schema), [DAY6]) == 0
        assert lake.read(name).columns == definition.columns.names


PROGRAM = """
import sys
from mail_core.spark.session import spark_session
spark = spark_session("jars")
spark.range(3).write.format("delta").save(sys.argv[1])
print(spark.conf.get("spark.jars"), spark.conf.get("spark.sql.session.timeZone"))
"""


def test_local_jars_serve_without_maven(spark, tmp_path: Path) -> None:
    jars = [jar.removeprefix("file:") for jar in spark.conf.get("spark.jars").split(",")]
    settings = os.environ["PYSPARK_SUBMIT_ARGS"].replace("pyspark-shell", "")
    environment = os.environ | {"MAIL_SPARK_JARS": ",".join(jars), "PYSPARK_SUBMIT_ARGS": f"{settings} "
                                f"--conf spark.jars.ivy={tmp_path}/ivy pyspark-shell"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "table")], env=environment, text=True,
                          capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "UTC" in done.stdout and jars[0] in done.stdout and not (tmp_path / "ivy").exists()


def test_a_missing_local_jar_is_named(tmp_path: Path) -> None:
    environment = os.environ | {"MAIL_SPARK_JARS": str(tmp_path / "none.jar")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "table")], env=environment, text=True,
                          capture_output=True, timeout=180)
    assert done.returncode == 1 and "InputError" in done.stderr and "none.jar" in done.stderr
