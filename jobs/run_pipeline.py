#!/usr/bin/env python3
"""Run every job from raw logs to scores and the day's page, one after another (`make quickstart`, `make movielens`)."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from mail_core.job import dataset_parser, run_job
from mail_core.pipeline import PipelineConfig, pipeline_steps, run_steps


def main(args: argparse.Namespace) -> str:
    config = PipelineConfig(
        schema=args.schema, source=args.source, lake=Path(args.lake), end_date=args.end_date, days=args.days,
        new_users=args.new_users, preset=args.preset, ranks=args.ranks, tower=args.tower, seed=args.seed,
        epochs=args.epochs, world=args.world)
    steps = pipeline_steps(config)
    print(f"\n{'=' * 40} results\n{run_steps(steps)}")
    return f"{len(steps)} steps, from {config.source} to {config.lake}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--source", required=True, type=Path, help="folder of raw files")
    result.add_argument("--end-date", required=True, type=date.fromisoformat, help="test day, YYYY-MM-DD")
    result.add_argument("--days", type=int, default=PipelineConfig.days, help="days with the test day")
    result.add_argument("--new-users", default=PipelineConfig.new_users, help="natural or masked:FRACTION:SEED")
    result.add_argument("--preset", default=PipelineConfig.preset, help="sizes of the model: tiny or paper")
    result.add_argument("--ranks", type=int, default=PipelineConfig.ranks, help="training processes")
    result.add_argument("--tower", default=PipelineConfig.tower, help="ranking tower")
    result.add_argument("--seed", type=int, default=PipelineConfig.seed)
    result.add_argument("--epochs", type=int, help="default: chosen on the last training day")
    result.add_argument("--world", type=Path, help="the simulator's world folder, for the best attainable AUC")
    return result


if __name__ == "__main__":
    sys.exit(run_job("run_pipeline", parser(), main))
