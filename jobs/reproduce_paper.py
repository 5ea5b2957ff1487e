#!/usr/bin/env python3
"""Train and measure all methods of the paper's Tables 2 and 3 on one export -> tables, figures and report.html.

Every training is a run of its own in MLflow, nested in one of all; called again, finished ones are not done again. The
export, and its test day with nothing hidden, are made of `features` where they are absent. Nothing is registered."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from mail_core.job import add_tracking, dataset_parser, run_job
from mail_core.lake.files import validated_lake_uri
from mail_core.reproduction.config import ReproductionConfig
from mail_core.reproduction.plan import FIGURES, TABLES
from mail_core.reproduction.run import reproduce
from mail_core.training.presets import PRESETS


def main(args: argparse.Namespace) -> str:
    return reproduce(ReproductionConfig(
        schema=args.schema, lake_uri=validated_lake_uri(args.lake), end_date=args.end_date, new_users=args.new_users,
        out=args.out, days=args.days, seeds=args.seeds, preset=args.preset, tables=args.tables, figures=args.figures,
        rows=tuple(args.rows) if args.rows else None, learning_rates=args.learning_rates, batch_size=args.batch_size,
        epochs=args.epochs, ranks=args.ranks, budget_minutes=args.budget_minutes, tracking_uri=args.tracking_uri))


def whole_numbers(text: str) -> tuple[int, ...]:
    """`2,3` -> (2, 3); an empty text or `none`: no number."""
    return () if text in ("", "none") else tuple(int(part) for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """`0.001,0.003` -> (0.001, 0.003)."""
    return tuple(float(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    config = ReproductionConfig
    result = dataset_parser(__doc__)
    result.add_argument("--end-date", required=True, type=date.fromisoformat, help="test day, YYYY-MM-DD")
    result.add_argument("--new-users", required=True, metavar="MODE", help="natural or masked:FRACTION:SEED")
    result.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="for tables, figures and report.html")
    result.add_argument("--days", type=int, default=config.days, help="of the export (default: %(default)s)")
    result.add_argument("--seeds", type=int, default=config.seeds, help="trainings a method (default: %(default)s)")
    result.add_argument("--preset", choices=list(PRESETS), default=config.preset, help="sizes (default: %(default)s)")
    result.add_argument("--tables", type=whole_numbers, default=TABLES, metavar="1,2,3",
                        help="which tables, or none (default: all)")
    result.add_argument("--figures", type=whole_numbers, default=FIGURES, metavar="4,5,6",
                        help="which figures, or none (default: all)")
    result.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows of Tables 2 and 3, such as BaseDNN "
                        "MAIL-Base 'BaseDNN, oracle' (default: all)")
    result.add_argument("--learning-rates", type=numbers, default=config.learning_rates, metavar="RATE,RATE",
                        help="tried with the first seed; the best on the validation day is kept, for each version "
                        "(default: the paper's)")
    result.add_argument("--batch-size", type=int, default=config.batch_size, help="rows of a step (default: "
                        "%(default)s)")
    result.add_argument("--epochs", type=int, help="default: chosen on the validation day, for each training")
    result.add_argument("--ranks", type=int, default=config.ranks, help="processes a training (default: %(default)s)")
    result.add_argument("--budget-minutes", type=float, metavar="M",
                        help="start no training that would end later than this; what is done is written all the same")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("reproduce_paper", parser(), main))
