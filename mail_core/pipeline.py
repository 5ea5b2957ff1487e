"""The whole pipeline on one machine: each job as its own process, in order, as a scheduler would start it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT

JOBS = Path(__file__).resolve().parents[1] / "jobs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """One pass from raw files to scores."""

    schema: str
    """Name or path of the schema."""
    source: Path
    """Folder of raw files."""
    lake: Path
    """Folder of the Delta tables; MLflow's store is made beside it."""
    end_date: date
    """The test day; the days before it train."""
    days: int = 8
    new_users: str = "natural"
    """natural, or masked:FRACTION:SEED."""
    preset: str = "tiny"
    ranks: int = 2
    tower: str = "base_dnn"
    seed: int = 1
    epochs: int | None = None
    """None: chosen on the last training day."""
    world: Path | None = None
    """The simulator's world, for the best attainable AUC."""

    @property
    def report(self) -> Path:
        """The day's page, beside the lake."""
        return self.lake.parent / f"report-{self.end_date}.html"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job's command line."""

    title: str
    job: str
    arguments: tuple[str, ...]
    last_lines: int | None = 0
    """Lines of its results that are printed again at the end; None: all of them."""


def pipeline_steps(config: PipelineConfig) -> list[Step]:
    """The jobs of one pass, in order.

    MAIL and its ranking tower alone are trained on the same export; scores are the new version's, promoted or not.
    """
    table = ("--schema", config.schema, "--lake", str(config.lake))
    end = config.end_date.isoformat()
    days = ("--days", str(config.days))
    train = (*table, "--end-date", end, "--preset", config.preset, "--ranks", str(config.ranks),
             "--tower", config.tower, "--new-users", config.new_users, "--seed", str(config.seed),
             *(("--epochs", str(config.epochs)) if config.epochs else ()))
    schema_name = Path(config.schema).stem
    mail, base = f"{schema_name}-mail-{config.tower}", f"{schema_name}-{config.tower}"
    world = ("--world", str(config.world)) if config.world else ()
    return [
        Step(title="ingest", job="ingest_logs", arguments=(*table, "--source", str(config.source))),
        Step(title="features", job="build_features", arguments=(*table, "--date", end, *days)),
        Step(title="export", job="export_training",
             arguments=(*table, "--end-date", end, *days, "--new-users", config.new_users)),
        Step(title="train the ranking tower alone", job="train", arguments=(*train, "--cold-start", "off")),
        Step(title="train MAIL", job="train", last_lines=1, arguments=train),
        Step(title="evaluate", job="evaluate", last_lines=None, arguments=(
            *table, "--date", end, "--model", f"models:/{mail}@challenger",
            "--against", f"models:/{base}@challenger", *world)),
        Step(title="promote", job="promote", last_lines=None, arguments=(*table, "--date", end, "--model", mail)),
        Step(title="score", job="score", last_lines=None, arguments=(
            *table, "--date", (config.end_date + timedelta(days=1)).isoformat(),
            "--model", f"models:/{mail}@challenger")),
        Step(title="report", job="report", last_lines=None, arguments=(
            *table, "--date", end, "--model", mail, "--out", str(config.report))),
    ]


def run_steps(steps: list[Step]) -> str:
    """Run the steps one after another and return the results that they want shown at the end.

    Raises:
        InputError: a job found its arguments or input bad (it has said what).
        RuntimeError: a job failed.
    """
    shown: list[str] = []
    for number, step in enumerate(steps, 1):
        command = [sys.executable, str(JOBS / f"{step.job}.py"), *step.arguments]
        logger.info("step %d of %d, %s: python jobs/%s.py %s", number, len(steps), step.title, step.job,
                    " ".join(step.arguments))
        start = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        sys.stdout.write(done.stdout)
        sys.stdout.flush()
        if done.returncode:
            message = f"step {step.title}: jobs/{step.job}.py ended with exit code {done.returncode}"
            raise InputError(message) if done.returncode == BAD_INPUT else RuntimeError(message)
        logger.info("step %d of %d, %s: %.0f s", number, len(steps), step.title, time.monotonic() - start)
        lines = done.stdout.strip("\n").split("\n")
        if step.last_lines != 0:
            shown.append("\n".join(lines[-step.last_lines:] if step.last_lines else lines))
    return "\n\n".join(shown)
