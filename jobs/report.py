#!/usr/bin/env python3
"""What the tables say of a day, on one HTML page that loads nothing: rows, quarantine, features, metrics, promotion,
scores, beside the 14 days before, and how long each step took. What a lake does not have yet is said on the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mail_core.job import add_day, add_tracking, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.evaluation.daily_page import alarms
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.daily_report import write_daily_report
    from mail_core.spark.session import spark_session

    schema = load_schema(args.schema)
    lake = Lake(spark_session("report"), args.lake, schema)
    found = alarms(write_daily_report(schema, lake, args.date, args.model, args.out, args.tracking_uri))
    print("\n".join([*(f"ALARM: {alarm}" for alarm in found), f"{args.out}"]))
    return f"read the tables of {lake.uri}, wrote the page of {args.date} with {len(found)} alarms to {args.out}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "day to report")
    result.add_argument("--model", required=True, metavar="NAME", help="registered model whose figures are shown")
    result.add_argument("--out", required=True, type=Path, metavar="FILE", help="HTML file to write")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("report", parser(), main))
