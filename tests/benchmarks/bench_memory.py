"""Peak memory and wall time of each job on simulated logs of two sizes, each job a process with its children.

bench_memory.py [USERS ...]: measures these sizes (default: all of SIZES) and tabulates every size of SIZES that has
been measured under runs/bench/memory. A job that has its figures is not run again: remove the folder to begin anew.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

from memory import peak_of
from peers import BENCH
from report import table, write_section

ROOT, JOBS = BENCH / "memory", Path(__file__).resolve().parents[2] / "jobs"
SIZES = (5_000, 40_000)
MODEL = "models:/alimama-mail-base_dnn@challenger"
MODE = ("--new-users", "masked:0.4:1")
END = ("--end-date", "2017-05-13")

GROWTH = """What it grows with, by the code and these figures:

- The JVM, here driver and executors in one, takes what its heap allows (`SPARK_DRIVER_MEMORY`) and some hundred MiB
  beside it, whatever the size of the logs: more rows are more partitions, and what does not fit is spilled.
- Python in the Spark jobs holds one partition of both logs a core: about a million rows, more where one user has more.
  `evaluate`, `score` and `promote` load torch and the version once a core (its table: rows x D x 4 bytes); `evaluate`
  also brings one cohort's labels and scores together, some tens of bytes a row of the day. `export_training` holds the
  vocabularies once on the driver and once a core.
- `train` holds on each rank the fused table three times (weights, two moments), the other parameters four times and a
  shuffle buffer of 131,072 rows (1.2 kB each at L = 100), and on rank 0 some tens of bytes a row of the measured day.
"""

logger = logging.getLogger(__name__)
Figures = dict[str, dict[str, float]]


def steps(folder: Path) -> dict[str, tuple[str, ...]]:
    """The jobs in order, with their arguments."""
    lake = ("--schema", "alimama", "--lake", str(folder / "lake"))
    return {"ingest_logs": (*lake, "--source", str(folder / "logs")),
            "build_features": (*lake, "--date", END[1], "--days", "8"),
            "export_training": (*lake, *END, "--days", "8", *MODE),
            "train": (*lake, *END, "--preset", "tiny", "--ranks", "2", *MODE, "--epochs", "1"),
            "evaluate": (*lake, "--date", END[1], "--model", MODEL),
            "score": (*lake, "--date", "2017-05-14", "--model", MODEL)}


def measure(users: int) -> None:
    """Simulate and run every job that has no figures yet."""
    folder = ROOT / str(users)
    if not (folder / "logs" / "world" / "world.json").exists():
        subprocess.run([sys.executable, str(JOBS / "simulate_logs.py"), "--users", str(users), "--out",
                        str(folder / "logs")], check=True)
    for job, arguments in steps(folder).items():
        done = figures(users)
        if job in done:
            continue
        load = os.getloadavg()[0]
        peak = peak_of([sys.executable, str(JOBS / f"{job}.py"), *arguments])
        done[job] = {"seconds": peak.seconds, "total": peak.total, "jvm": peak.jvm, "python": peak.python,
                     "load": load}
        (folder / "figures.json").write_text(json.dumps(done, indent=1))
        logger.info("%s of %d users: %s", job, users, done[job])


def figures(users: int) -> Figures:
    """What has been measured: seconds, MiB, load at the start."""
    path = ROOT / str(users) / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for users in [int(text) for text in sys.argv[1:]] or SIZES:
        measure(users)
    lines = [[job, f"{users:,}", *(f"{found[job][name]:,.0f}" for name in ("total", "jvm", "python", "seconds")),
              f"{found[job]['load']:.1f}"]
             for job in steps(ROOT) for users in SIZES if job in (found := figures(users))]
    body = "\n".join([
        f"`python tests/benchmarks/bench_memory.py`, {os.cpu_count()} cores, {date.today()}. Simulated logs of "
        "that many users (11 impressions and 60 behaviours each), tiny preset, 1 epoch, 2 ranks, driver heap at its "
        "default of 2 GiB. Peak of the sum of PSS over a job's processes, in MiB; JVM and Python peak at moments of "
        "their own, so they need not add up. One run a size; the load is that of the machine when the job began.\n",
        table(["job", "users", "peak MiB", "JVM", "Python", "seconds", "load"], lines), GROWTH])
    print(body)
    write_section("Peak memory of each job", body)


if __name__ == "__main__":
    main()
