#!/usr/bin/env python3
"""`features` -> encoders and encoded Parquet with a manifest: days 1..n-2 train, n-1 validation, n test."""

from __future__ import annotations

import argparse
import sys
from datetime import date

from mail_core.job import dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.encoding.masking import NewUserMode
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.export import ExportWindow, export_training
    from mail_core.spark.session import spark_session
    from mail_core.spark.statistics import format_statistics

    schema, mode = load_schema(args.schema), NewUserMode.parse(args.new_users)
    lake = Lake(spark_session("export_training"), args.lake, schema)
    uri, manifest = export_training(schema, lake, ExportWindow(end_date=args.end_date, days=args.days), mode)
    print(format_statistics(manifest.statistics))
    rows = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
    return f"read features version {manifest.delta_versions['features']} of {lake.uri}, wrote {rows} rows to {uri}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--end-date", required=True, type=date.fromisoformat, help="last day (test), YYYY-MM-DD")
    result.add_argument("--days", type=int, default=8, help="days up to and with the last one (default: 8)")
    result.add_argument("--new-users", required=True, metavar="natural|masked:FRACTION:SEED",
                        help="who counts as new: users without behaviour; with masked a hash-chosen share too")
    return result


if __name__ == "__main__":
    sys.exit(run_job("export_training", parser(), main))
