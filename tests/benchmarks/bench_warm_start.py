"""A warm start every day beside a training from scratch every day: AUC by day and cohort, and time.

Simulated logs of DAYS days. The first window is trained from scratch; on each of the days after it one version is
trained from scratch on that day's window, and another one starts from the warm version of the day before and trains
one day. Both are measured on the same test day. Prints Markdown tables and writes them to docs/benchmarks.md. A job
that has its figures under runs/bench/warm_start is not run again: remove the folder to begin anew. BENCH_USERS,
BENCH_SEEDS, BENCH_EPOCHS, BENCH_DAYS and BENCH_WINDOW change users, seeds, epochs and days; a small run is
BENCH_USERS=500 BENCH_SEEDS=1 BENCH_DAYS=4 BENCH_WINDOW=3.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Sequence

import mlflow
from peers import BENCH
from report import machine, table, write_section

from mail_core.tracking.runs import configure_tracking

USERS = int(os.environ.get("BENCH_USERS", "20000"))
SEEDS = int(os.environ.get("BENCH_SEEDS", "3"))
EPOCHS = int(os.environ.get("BENCH_EPOCHS", "2"))
DAYS, WINDOW = int(os.environ.get("BENCH_DAYS", "13")), int(os.environ.get("BENCH_WINDOW", "8"))
IMPRESSIONS_A_DAY = 1.4
LAST = date(2017, 5, 13)
MODE, COHORTS = "masked:0.4:1", ("new", "old", "unseen", "all")
SCRATCH, WARM = "scratch", "warm"
ROOT, JOBS = BENCH / "warm_start" / f"{USERS}-{DAYS}-{WINDOW}-{EPOCHS}", Path(__file__).resolve().parents[2] / "jobs"
FIGURES = ROOT / "figures.json"
TABLE = ("--schema", "alimama", "--lake", str(ROOT / "lake"))

logger = logging.getLogger(__name__)
Figures = dict[str, dict[str, float]]


def ends() -> list[date]:
    """Test days: that of the first window, then the compared ones."""
    return [LAST - timedelta(days=back) for back in reversed(range(DAYS - WINDOW + 1))]


def figures() -> Figures:
    """What has been run: name of the step -> its seconds, AUC and rows."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def once(step: str, job: str, *arguments: str, model: str | None = None) -> None:
    """Run a job that has no figures yet; those of `model`'s newest version go with its own."""
    done = figures()
    if step in done:
        return
    start = time.perf_counter()
    subprocess.run([sys.executable, str(JOBS / f"{job}.py"), *arguments], check=True, stdout=subprocess.DEVNULL)
    done[step] = {"seconds": time.perf_counter() - start, **({} if model is None else measured(model))}
    FIGURES.write_text(json.dumps(done, indent=1))
    logger.info("%s: %s", step, done[step])


def measured(model: str) -> dict[str, float]:
    """Of the version that a training has just registered."""
    configure_tracking(None, str(ROOT / "lake"))
    client = mlflow.MlflowClient()
    run = client.get_run(client.get_model_version_by_alias(model, "challenger").run_id)
    rows = sum(int(run.data.params[f"rows.{split}"]) for split in ("train", "validation"))
    return {**{c: run.data.metrics[f"test/{c}/auc"] for c in COHORTS if f"test/{c}/auc" in run.data.metrics},
            "rows": rows}


def train(kind: str, seed: int, end: date, *arguments: str) -> None:
    """One version of `kind`, registered under a name of its own."""
    model = f"{kind}-{seed}"
    once(f"{model} {end}", "train", *TABLE, "--end-date", str(end), "--preset", "tiny", "--ranks", "2", "--new-users",
         MODE, "--seed", str(seed), "--model-name", model, *arguments, model=model)


def run() -> None:
    """Every step that is missing."""
    ROOT.mkdir(parents=True, exist_ok=True)
    once("simulate", "simulate_logs", "--users", str(USERS), "--days", str(DAYS), "--impressions-per-user",
         str(IMPRESSIONS_A_DAY * DAYS), "--out", str(ROOT / "logs"))
    once("ingest", "ingest_logs", *TABLE, "--source", str(ROOT / "logs"))
    once("features", "build_features", *TABLE, "--date", str(LAST), "--days", str(DAYS))
    for end in ends():
        once(f"export {end}", "export_training", *TABLE, "--end-date", str(end), "--days", str(WINDOW), "--new-users",
             MODE)
    first, *compared = ends()
    for seed in range(1, SEEDS + 1):
        train(WARM, seed, first, "--epochs", str(EPOCHS))
        for end in compared:
            train(SCRATCH, seed, end, "--epochs", str(EPOCHS))
            train(WARM, seed, end, "--warm-start", version_of(f"{WARM}-{seed}", end - timedelta(days=1)))


def version_of(model: str, end: date) -> str:
    """The one that was measured on `end`, whatever a broken-off run has registered after it."""
    configure_tracking(None, str(ROOT / "lake"))
    found = mlflow.MlflowClient().search_model_versions(f"name = '{model}'")
    ending = [v for v in found if mlflow.MlflowClient().get_run(v.run_id).data.tags["end_date"] == str(end)]
    return f"models:/{model}/{max(int(v.version) for v in ending)}"


def pairs(end: date, figure: str) -> list[tuple[float, float]]:
    """(from scratch, warm) of each seed that has both."""
    found = figures()
    names = [tuple(f"{kind}-{seed} {end}" for kind in (SCRATCH, WARM)) for seed in range(1, SEEDS + 1)]
    return [(found[a][figure], found[b][figure]) for a, b in names if figure in found[a] and figure in found[b]]


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and standard deviation where there is one."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def auc_lines() -> list[list[str]]:
    """A row a day and cohort, and one a cohort over all days."""
    days, lines = ends()[1:], []
    for cohort in COHORTS:
        for which, chosen in [*((str(end), [end]) for end in days), ("all days", days)]:
            found = [pair for end in chosen for pair in pairs(end, cohort)]
            if found:
                scratch, warm = zip(*found)
                lines.append([cohort, which, f"{statistics.mean(scratch):.4f}", f"{statistics.mean(warm):.4f}",
                              spread([b - a for a, b in found], "+.4f")])
    return lines


def time_lines() -> list[list[str]]:
    """A row a day."""
    lines = []
    for end in ends()[1:]:
        (scratch, warm), (all_rows, new_rows) = (
            [statistics.median(values) for values in zip(*pairs(end, figure))] for figure in ("seconds", "rows"))
        lines.append([str(end), f"{all_rows:,.0f}", f"{new_rows:,.0f}", f"{scratch:.0f}", f"{warm:.0f}",
                      f"{warm / scratch:.2f}"])
    return lines


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    before = machine(os.cpu_count() or 1)
    run()
    body = "\n".join([
        f"`python tests/benchmarks/bench_warm_start.py`, {before} at the start. {USERS:,} simulated users, "
        f"{DAYS} days, windows of {WINDOW} days ({WINDOW - 1} train, the last one tests), new users {MODE}, tiny "
        f"preset, 2 ranks, {EPOCHS} epochs either way, seeds 1 to {SEEDS}. Each warm version starts from the one of "
        "the day before; the first window's was trained from scratch. Differences are warm less from scratch, mean "
        "and standard deviation over seeds (and days).\n",
        table(["cohort", "test day", "AUC from scratch", "AUC warm", "difference"], auc_lines()),
        "Seconds of the whole job, start-up and the test day's measurement included, median over seeds. A nightly "
        "training from scratch that chooses its epochs trains up to five times more than this one.\n",
        table(["test day", "rows from scratch", "rows warm", "s from scratch", "s warm", "ratio"], time_lines())])
    print(body)
    write_section("Warm start", body)


if __name__ == "__main__":
    main()
