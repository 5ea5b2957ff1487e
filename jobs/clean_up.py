#!/usr/bin/env python3
"""Remove what is past retention: exports, checkpoints, MLflow runs and versions without alias, rows, table versions.

Only says what would go, unless --delete is given. What a version under an alias was trained on stays: its export, its
run, and the table versions and days that it read. The schema's retention_days tell how long rows are kept."""

from __future__ import annotations

import argparse
import sys
from datetime import date

from mail_core.job import add_tracking, dataset_parser, run_job
from mail_core.lake.retention import RetentionConfig


def main(args: argparse.Namespace) -> str:
    from mail_core.clean_up import CleanUpRequest, clean_up, line
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.session import spark_session
    from mail_core.tracking.runs import configure_tracking

    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    request = CleanUpRequest(today=args.date, delete=args.delete, config=RetentionConfig(
        export_days=args.export_days, checkpoint_days=args.checkpoint_days, run_days=args.run_days,
        version_days=args.version_days))
    configure_tracking(args.tracking_uri, lake_uri)
    steps = clean_up(schema, Lake(spark_session("clean_up"), lake_uri, schema), request)
    going = [step for step in steps if step.removed]
    print("\n".join(line(step, args.delete) for step in going))
    said = "removed" if args.delete else "would remove (--delete does it)"
    return f"looked at {len(steps)} things of {lake_uri} and its MLflow store, {said} {len(going)}"


def parser() -> argparse.ArgumentParser:
    result, defaults = dataset_parser(__doc__), RetentionConfig()
    result.add_argument("--date", type=date.fromisoformat, default=date.today(),
                        help="day that the schema's retention_days count back from (default: today)")
    result.add_argument("--export-days", type=int, default=defaults.export_days,
                        help="days that exports are kept (default: %(default)s)")
    result.add_argument("--checkpoint-days", type=int, default=defaults.checkpoint_days,
                        help="days that checkpoints of stopped runs are kept (default: %(default)s)")
    result.add_argument("--run-days", type=int, default=defaults.run_days,
                        help="days that runs and versions without alias are kept (default: %(default)s)")
    result.add_argument("--version-days", type=int, default=defaults.version_days,
                        help="days that files of earlier table versions are kept (default: %(default)s)")
    result.add_argument("--delete", action="store_true", help="remove it, instead of only saying what would go")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("clean_up", parser(), main))
