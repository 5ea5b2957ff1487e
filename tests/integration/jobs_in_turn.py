"""`spark-submit jobs_in_turn.py ORDERS RESULTS`: the scripts of jobs/ one after another in one Spark application, each
as its own command line would start it. ORDERS is JSON, [[job, argument, ...], ...]; RESULTS gets {job: [exit code,
what it printed]}."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run(job: str, *arguments: str) -> tuple[int, str]:
    sys.argv = [str(JOBS / f"{job}.py"), *arguments]
    with redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            return int(str(end.code)), printed.getvalue()
    raise AssertionError(f"{job} has no exit code")


if __name__ == "__main__":
    orders, results = map(Path, sys.argv[1:])
    done = {job: run(job, *arguments) for job, *arguments in json.loads(orders.read_text())}
    results.write_text(json.dumps(done))
