"""`build_features` beside DuckDB, its growth with the log, one very heavy user, and a driver that collects nothing.

bench_features.py [duckdb | growth | heavy | million ...]: these parts (default: all), a section of docs/benchmarks.md
each. Tables lie under runs/bench/features and are made once. BENCH_ROUNDS changes the number of rounds.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
from peers import BENCH, Peer, environment
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from report import machine, table, write_section

from mail_core.lake.tables import Lake
from mail_core.schema.reader import load_schema
from mail_core.spark.features import build_features
from mail_core.spark.session import spark_session

ROOT = BENCH / "features"
DUCKDB, DUCKDB_SCRIPT = ("duckdb==1.4.2",), Path(__file__).with_name("duckdb_features.py")
SCHEMA = load_schema("alimama")
DAY = date(2017, 5, 13)
FIRST_SECOND, SECONDS, DAY_SECONDS = 1_492_790_400, 22 * 86_400, 86_400
"""Local midnight of 2017-04-22 in Shanghai, and the 22 days from there that end with DAY."""
IMPRESSIONS, EACH, USERS, ITEMS = 125_000, 20, 12_500, 50_000
"""Impressions and users of 1x, behaviours to an impression, items of every size."""
HEAVY = (5_000, 500_000, 2_500)
"""Impressions and behaviours added to 1x for one user, and the users that have the same rows in `spread`."""
SIZES = (1, 2, 4, 8)
CORES = 2
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
TARGETS = {"duckdb": 2.0, "growth": 1.1, "heavy": 1.3}

logger = logging.getLogger(__name__)


def session() -> SparkSession:
    """local[2] with the settings of the jobs."""
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", f"--master local[{CORES}] --driver-memory 3g pyspark-shell")
    return spark_session("bench_features")


def _log(spark: SparkSession, rows: int, users: int, seed: int, last_day: bool) -> DataFrame:
    """`user` by a power law (density x ** -0.5: the first has 0.9 % of 1x), uniform `time_stamp`."""
    start, span = (FIRST_SECOND + SECONDS - DAY_SECONDS, DAY_SECONDS) if last_day else (FIRST_SECOND, SECONDS)
    return spark.range(rows).select(
        "id", F.floor(F.pow(F.rand(seed), 2) * users).alias("user"),
        F.timestamp_seconds(F.floor(F.rand(seed + 1) * span) + start).alias("time_stamp"))


def _impressions(log: DataFrame, seed: int) -> DataFrame:
    return log.select(F.lit(DAY).alias("day"), "user", "time_stamp",
                      F.floor(F.pow(F.rand(seed + 2), 2) * ITEMS * 1.02).alias("adgroup_id"),
                      F.when(F.rand(seed + 3) < 0.6, "430548_1007").otherwise("430539_1007").alias("pid"),
                      (F.rand(seed + 4) < 0.05).cast("int").alias("clk")).withColumn("nonclk", 1 - F.col("clk"))


def _behaviors(log: DataFrame, seed: int) -> DataFrame:
    actions = F.array(*map(F.lit, ["pv"] * 17 + ["cart", "fav", "buy"]))
    return log.select(F.to_date(F.from_utc_timestamp("time_stamp", SCHEMA.timezone)).alias("day"), "user", "time_stamp",
                      F.element_at(actions, (F.floor(F.rand(seed + 2) * 20) + 1).cast("int")).alias("btag"),
                      F.floor(F.pow(F.rand(seed + 3), 2) * 9_000).alias("cate"),
                      F.when(F.rand(seed + 4) < 0.9, F.floor(F.pow(F.rand(seed + 5), 2) * 90_000)).alias("brand"))


def _added(spark: SparkSession, rows: int, users: int, seed: int, last_day: bool) -> DataFrame:
    log = _log(spark, rows, 1, seed, last_day)
    return log.withColumn("user", F.lit(10 ** 9) + F.col("id") % users)


def make(spark: SparkSession, name: str) -> Lake:
    """The lake `name`, with the Parquet copies of its raw tables beside it; made where it is not there whole."""
    folder = ROOT / name
    lake = Lake(spark, str(folder / "lake"), SCHEMA)
    if (folder / "done").exists():
        return lake
    shutil.rmtree(folder, ignore_errors=True)
    factor = int(name[:-1]) if name.endswith("x") else 1
    impressions, users, each = IMPRESSIONS * factor, USERS * factor, EACH
    if name == "million":
        impressions, users, each = 5_000_000, 500_000, 1
    shown, done = _log(spark, impressions, users, 10, True), _log(spark, impressions * each, users, 20, False)
    if name in ("heavy", "spread"):
        owners = 1 if name == "heavy" else HEAVY[2]
        shown = shown.unionByName(_added(spark, HEAVY[0], owners, 30, True))
        done = done.unionByName(_added(spark, HEAVY[1], owners, 40, False))
    days = [date.fromordinal(DAY.toordinal() - back) for back in range(22)]
    lake.replace_days("raw_impressions", _impressions(shown, 100), [DAY])
    lake.replace_days("raw_behaviors", _behaviors(done, 200), days)
    code = [(F.col("id") % size).cast("int") for size in (97, 13, 2, 7, 4, 3, 2, 5)]
    names = [c.name for c in SCHEMA.users.columns if c.name != SCHEMA.users.key]
    lake.replace_days("users", spark.range(int(users * 0.94)).select(
        F.lit(DAY).alias("day"), F.col("id").alias("userid"), *(c.alias(n) for c, n in zip(code, names))), [DAY])
    lake.replace_days("items", spark.range(ITEMS).select(
        F.lit(DAY).alias("day"), F.col("id").alias("adgroup_id"), (F.col("id") % 9_000).alias("cate_id"),
        (F.col("id") % 20_011).alias("campaign_id"), (F.col("id") % 15_013).alias("customer"),
        F.when(F.col("id") % 10 > 0, F.col("id") % 30_011).alias("brand"),
        (F.col("id") % 997 + 0.5).cast("double").alias("price")), [DAY])
    for role, stored in (("impressions", "raw_impressions"), ("behaviors", "raw_behaviors"), ("users", "users"),
                         ("items", "items")):
        lake.read(stored).write.mode("overwrite").option("compression", "snappy").parquet(str(folder / role))
    (folder / "done").touch()
    return lake


def build(lake: Lake) -> float:
    """Seconds of what the job does between reading the raw tables and the committed partition."""
    start = time.perf_counter()
    first = date.fromordinal(DAY.toordinal() - SCHEMA.behavior_days)
    rows = build_features(SCHEMA, lake.read("raw_impressions").where(F.col("day") == F.lit(DAY)),
                          lake.read("raw_behaviors").where(F.col("day").between(F.lit(first), F.lit(DAY))),
                          lake.read("users"), lake.read("items"))
    lake.replace_days("features", rows, [DAY])
    return time.perf_counter() - start


def duckdb_peer(way: str, name: str) -> Peer:
    """DuckDB on the Parquet copies of one lake, the whole job a call."""
    return Peer([str(environment("duckdb", DUCKDB)), str(DUCKDB_SCRIPT), "build", way, str(ROOT / name),
                 str(_target(way, name)), str(DAY), str(CORES)])


def _target(way: str, name: str) -> Path:
    return ROOT / name / f"{way}.parquet"


def _checked(files: Sequence[str]) -> str:
    """Rows, mean length and checksum of Parquet files."""
    done = subprocess.run([str(environment("duckdb", DUCKDB)), str(DUCKDB_SCRIPT), "check", *files], check=True,
                          text=True, stdout=subprocess.PIPE)
    return done.stdout.strip()


def _written(lake: Lake) -> list[str]:
    return [re.sub("^file:/+", "/", name) for name in lake.read("features").inputFiles()]


def _range(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def _verdict(value: float, part: str) -> str:
    return f"{value:.2f} (target {TARGETS[part]:.1f}: {'reached' if value <= TARGETS[part] else 'missed'})"


def _conditions(part: str, before: str) -> str:
    return (f"`python tests/benchmarks/bench_features.py {part}`: {before}; Spark local[{CORES}] with the session up, "
            f"warm; median (least to most) of {ROUNDS} interleaved rounds, seconds. ")


def duckdb(spark: SparkSession) -> None:
    """The job against both ways of DuckDB; equal rows, or it fails."""
    name = "1x"
    lake, before = make(spark, name), machine(CORES)
    with duckdb_peer("slices", name) as slices, duckdb_peer("aggregate", name) as aggregate:
        peers = {"slices": slices, "aggregate": aggregate}
        calls: dict[str, Callable[[], float]] = {"build_features": lambda: build(lake), **peers}
        seconds: dict[str, list[float]] = {key: [] for key in calls}
        for turn in range(ROUNDS + 1):
            for key, call in calls.items():
                took = call()
                logger.info("%s: %.1f s", key, took)
                seconds[key] += [took] if turn else []
    found = {key: _checked(_written(lake) if key == "build_features" else [str(_target(key, name))]) for key in calls}
    if len(set(found.values())) > 1:
        raise RuntimeError(f"rows differ (rows, mean length, checksum): {found}")
    fastest = min(statistics.median(seconds[way]) for way in peers)
    rows, length, _ = found["build_features"].split()
    ratio = statistics.median(seconds["build_features"]) / fastest
    body = (_conditions("duckdb", before) + f"{int(rows):,} impressions of one day, {EACH} behaviours to each "
            f"over 22 days, {float(length):.0f} in a sequence on average; Delta to Delta, DuckDB ({DUCKDB[0]}, {CORES} "
            "threads) Parquet to Parquet. Rows and an order-free checksum of all columns are equal.\n\n"
            + table(["variant", "seconds", "times DuckDB's faster way"],
                    [[key, _range(took), f"{statistics.median(took) / fastest:.2f}"] for key, took in seconds.items()])
            + f"\nTimes DuckDB: {_verdict(ratio, 'duckdb')}.")
    _publish("Building features beside DuckDB", body)


def growth(spark: SparkSession) -> None:
    """Exponent of seconds over rows: least squares on logarithms."""
    lakes, before = {size: make(spark, f"{size}x") for size in SIZES}, machine(CORES)
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    build(lakes[1])
    for _ in range(ROUNDS):
        for size, lake in lakes.items():
            seconds[size].append(build(lake))
            logger.info("%dx: %.1f s", size, seconds[size][-1])
    middle = [statistics.median(seconds[size]) for size in SIZES]
    exponent = float(np.polyfit(np.log(SIZES), np.log(middle), 1)[0])
    body = (_conditions("growth", before) + "\n\n"
            + table(["impressions", "behaviours", "seconds"],
                    [[f"{IMPRESSIONS * size:,}", f"{IMPRESSIONS * size * EACH:,}", _range(seconds[size])]
                     for size in SIZES])
            + f"\nGrowth exponent: {_verdict(exponent, 'growth')}.")
    _publish("Building features: growth", body)


def heavy(spark: SparkSession) -> None:
    """The same number of rows, with and without one very heavy user."""
    lakes, before = {name: make(spark, name) for name in ("spread", "heavy")}, machine(CORES)
    seconds: dict[str, list[float]] = {name: [] for name in lakes}
    for turn in range(ROUNDS + 1):
        for name, lake in lakes.items():
            took = build(lake)
            logger.info("%s: %.1f s", name, took)
            seconds[name] += [took] if turn else []
    ratio = statistics.median(seconds["heavy"]) / statistics.median(seconds["spread"])
    body = (_conditions("heavy", before) + f"{IMPRESSIONS:,} impressions and {IMPRESSIONS * EACH:,} behaviours, and "
            f"beside them {HEAVY[0]:,} and {HEAVY[1]:,} of one user, or of {HEAVY[2]:,} users.\n\n"
            + table(["added rows", "seconds"], [["one user", _range(seconds["heavy"])],
                                                [f"{HEAVY[2]:,} users", _range(seconds["spread"])]])
            + f"\nHeavy user, ratio: {_verdict(ratio, 'heavy')}.")
    _publish("Building features: a heavy user", body)


def million(spark: SparkSession) -> None:
    """Five million impressions through a standalone cluster whose driver may collect 8 MiB of results."""
    make(spark, "million")
    spark.stop()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
    from cluster import standalone_cluster  # the tests' own cluster

    folder = ROOT / "cluster"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["SPARK_CONF_DIR"] = str(folder)
    (folder / "spark-defaults.conf").write_text("spark.driver.maxResultSize 8m\n")
    before = machine(CORES)
    with standalone_cluster(folder) as cluster:
        start = time.perf_counter()
        done = cluster.submit("build_features", "--schema", "alimama", "--lake", str(ROOT / "million" / "lake"),
                              "--date", str(DAY))
        took = time.perf_counter() - start
    if done.returncode != 0:
        logger.error("%s", done.stderr[-4_000:])
    body = (f"`python tests/benchmarks/bench_features.py million`: {before}; one run of `jobs/build_features.py` on "
            "two workers of one core, driver memory 1g, executor memory 768m, `spark.driver.maxResultSize` 8m; "
            "5,000,000 impressions of one day, one behaviour to each.\n\n"
            + (f"Passes in {took:.0f} s with the session's start:\n\n```\n{done.stdout.strip()}\n```"
               if done.returncode == 0 else f"Fails with code {done.returncode}."))
    _publish("Building features: a small driver", body)


def _publish(title: str, body: str) -> None:
    print(f"## {title}\n\n{body}")
    write_section(title, body)


PARTS = {"duckdb": duckdb, "growth": growth, "heavy": heavy, "million": million}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for part in sys.argv[1:] or PARTS:
        PARTS[part](session())


if __name__ == "__main__":
    main()
