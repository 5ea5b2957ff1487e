"""Rows per second of scoring on Spark beside the bare model and MLflow's `spark_udf`, at Alimama's vocabularies.

bench_scoring.py [PRESET ...]: the presets one after another (default: paper and tiny), a section of docs/benchmarks.md
each. BENCH_ROUNDS in the environment changes the number of rounds.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

import mlflow
import pyarrow.parquet as pq
from peers import BENCH, Peer
from pyspark.sql import SparkSession
from report import machine, table, write_section
from scoring_world import MEAN, NEW, SCHEMA, SCORED, ScoringWorld, whole_rows

from mail_core.spark.candidates import read_candidates
from mail_core.spark.packages import PackageHandle, ship_package
from mail_core.spark.scoring import score_candidates
from mail_core.spark.session import spark_session
from mail_core.tracking import registry

CORES = 2
ROOT = BENCH / "scoring"
SIZES = ((1_000, 100), (6_000, 100))
"""Users and candidates of each: the steady rate is the difference of rows by the difference of seconds."""
UDF_ROWS = (2_000, 12_000)
FORWARD_ROWS = SIZES[0][0] * SIZES[0][1]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))

logger = logging.getLogger(__name__)


class Forward:
    """The model alone in `processes` processes of `threads` threads; a call is a pass over the smaller size."""

    def __init__(self, package: Path, processes: int, work: str, chunk: int):
        script, threads = Path(__file__).with_name("scoring_forward.py"), CORES // processes
        self.running = [Peer([sys.executable, str(script), str(package), str(_folder(*SIZES[0])), str(threads),
                              str(part), str(processes), work, str(chunk)]) for part in range(processes)]
        self()

    def __call__(self) -> float:
        for process in self.running:
            process.start()
        return max(float(process.line()) for process in self.running)

    def close(self) -> None:
        for process in self.running:
            process.process.communicate()


def _folder(users: int, each: int) -> Path:
    return ROOT / f"{users}x{each}"


def make(presets: Sequence[str]) -> None:
    """Versions, raw tables and rows under runs/bench/scoring, anew."""
    shutil.rmtree(ROOT, ignore_errors=True)
    world = ScoringWorld()
    for preset in presets:
        package = world.package(ROOT / preset, preset)
        mlflow.pyfunc.save_model(
            ROOT / f"{preset}-mlflow", python_model=str(registry.MAIL_CORE / "tracking" / "pyfunc_model.py"),
            code_paths=[str(registry.MAIL_CORE)], artifacts={registry.PACKAGE_ARTIFACT: str(package)},
            pip_requirements=registry.requirements(), signature=registry.signature(SCHEMA))
    for users, each in SIZES:
        world.write(_folder(users, each), users, each)
    pq.write_table(world.users, ROOT / "users.parquet")
    pq.write_table(world.items, ROOT / "items.parquet")
    for rows in UDF_ROWS:
        pq.write_table(whole_rows(_folder(*SIZES[0]), rows), ROOT / f"rows-{rows}.parquet", row_group_size=1_000)


def spark_pass(spark: SparkSession, handle: PackageHandle, users: int, each: int) -> float:
    """What the job does from reading candidates to their scores, which go nowhere."""
    start, folder = time.perf_counter(), _folder(users, each)
    candidates = read_candidates(spark, SCHEMA, str(folder / "candidates.parquet"), SCORED)
    tables = [spark.read.parquet(str(path)) for path in (folder / "behaviors.parquet", ROOT / "users.parquet",
                                                         ROOT / "items.parquet")]
    score_candidates(SCHEMA, candidates, *tables, SCORED, handle).write.format("noop").mode("overwrite").save()
    return time.perf_counter() - start


def udf_pass(spark: SparkSession, preset: str, rows: int) -> float:
    """MLflow's own way on whole rows that lie ready in a file: no join, no sequence to assemble."""
    start = time.perf_counter()
    frame = spark.read.parquet(str(ROOT / f"rows-{rows}.parquet")).repartition(CORES)
    score = mlflow.pyfunc.spark_udf(spark, str(ROOT / f"{preset}-mlflow"), env_manager="local", result_type="double")
    frame.select(score(*frame.columns)).write.format("noop").mode("overwrite").save()
    return time.perf_counter() - start


def steady(call: Callable[[int], float], sizes: Sequence[int], rows: Sequence[int]) -> tuple[list[list[float]], float]:
    """Seconds of each size in turns, and rows/s between the medians of the two sizes."""
    call(sizes[0])
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(ROUNDS):
        for place, size in enumerate(sizes):
            seconds[place].append(call(size))
    logger.info("%s rows: %s s", rows, seconds)
    small, large = map(statistics.median, seconds)
    return seconds, (rows[1] - rows[0]) / (large - small)


def forwards(preset: str) -> tuple[list[list[str]], float]:
    """Table rows of the bare model, and the best rows/s with the virtual behaviour once a user."""
    lines, best = [], 0.0
    for work, processes, chunk in (("once", 1, 1024), ("once", CORES, 1024), ("once", CORES, 4096),
                                   ("every", CORES, 1024)):
        forward = Forward(ROOT / preset, processes, work, chunk)
        seconds = [forward() for _ in range(ROUNDS)]
        forward.close()
        rate = FORWARD_ROWS / statistics.median(seconds)
        best = max(best, rate) if work == "once" else best
        name = "once a user" if work == "once" else "whole rows, virtual behaviour for every candidate"
        logger.info("%s, %d processes, %d rows at once: %s s", name, processes, chunk, seconds)
        lines.append([f"bare model, {name}, {processes} x {CORES // processes} threads, {chunk} rows at once",
                      _range(seconds), "", f"{rate:,.0f}"])
    return lines, best


def _range(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def section(spark: SparkSession, preset: str, session: float) -> str:
    """Measure one preset."""
    before = machine(CORES)
    lines, bare = forwards(preset)
    start = time.perf_counter()
    handle = ship_package(spark, ROOT / preset)
    shipped = time.perf_counter() - start
    first = spark_pass(spark, handle, *SIZES[0])
    logger.info("shipped in %.1f s, first pass %.1f s", shipped, first)
    rows = [users * each for users, each in SIZES]
    ours, rate = steady(lambda i: spark_pass(spark, handle, *SIZES[i]), (0, 1), rows)
    theirs, udf = steady(lambda count: udf_pass(spark, preset, count), UDF_ROWS, UDF_ROWS)
    whole = rows[1] / (session + shipped + first - statistics.median(ours[0]) + statistics.median(ours[1]))
    lines += [["ours on Spark", _range(ours[0]), _range(ours[1]), f"{rate:,.0f}"],
              ["mlflow.pyfunc.spark_udf", _range(theirs[0]), _range(theirs[1]), f"{udf:,.0f}"]]
    return "\n".join([
        f"`python tests/benchmarks/bench_scoring.py {preset}`, {before} at the start. base_dnn with MAIL, preset "
        f"{preset}, Alimama's vocabularies (3.1 million rows of the table), {SIZES[0][1]} candidates a user, {NEW:.0%} "
        f"of the users new, the others with {MEAN} behaviours on average. {ROUNDS} rounds in turns, median (least to "
        f"most). Ours: {rows[0]:,} and {rows[1]:,} candidates from Parquet, with their checks, joins with 1.1 million "
        f"users and 0.8 million items and the assembly of sequences, scores to nowhere. spark_udf: {UDF_ROWS[0]:,} and "
        f"{UDF_ROWS[1]:,} of the same candidates as whole rows that lie ready. The bare model: {FORWARD_ROWS:,} "
        "candidates as tensors in memory.\n",
        table(["way", "seconds, smaller size", "seconds, larger size", "rows/s, steady"], lines),
        f"Fixed costs: Spark's session {session:.1f} s, the version's archive {shipped:.1f} s, the first pass "
        f"{first - statistics.median(ours[0]):.1f} s more than a later one of that size (workers start and load the "
        f"version), {statistics.median(ours[0]) - rows[0] / rate:.1f} s of any pass (queries, both snapshots' joins). "
        f"With all of these, {rows[1]:,} candidates are scored at {whole:,.0f} rows/s.\n",
        f"Ours is {rate / bare:.2f} of the best bare model (target 0.7), {rate / udf:.1f} times spark_udf "
        "(target 1.3).\n"])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", f"--master local[{CORES}] pyspark-shell")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    presets = sys.argv[1:] or ["paper", "tiny"]
    make(presets)
    start = time.perf_counter()
    spark = spark_session("bench_scoring")
    session = time.perf_counter() - start
    for preset in presets:
        logger.info("scoring at preset %s", preset)
        body = section(spark, preset, session)
        print(body)
        write_section(f"Scoring, preset {preset}", body)
    spark.stop()


if __name__ == "__main__":
    main()
