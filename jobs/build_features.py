#!/usr/bin/env python3
"""Raw tables -> `features`: raw values, as-of behaviour sequence and label of every impression, by day."""

from __future__ import annotations

import argparse
import sys

from mail_core.job import add_day, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.features import FeatureDays, format_summary, replace_features
    from mail_core.spark.session import spark_session

    schema = load_schema(args.schema)
    lake = Lake(spark_session("build_features"), args.lake, schema)
    window = FeatureDays(last=args.date, days=args.days, allow_short=args.allow_short)
    rows, summary = replace_features(schema, lake, window)
    print(format_summary(summary))
    return f"read raw tables of {lake.uri}, wrote {rows} rows of {len(summary)} days to {lake.path('features')}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "last day")
    result.add_argument("--days", type=int, default=1, help="days up to and with the last one (default: 1)")
    result.add_argument("--allow-short", action="store_true",
                        help="build the days that have impressions, if some lack them")
    return result


if __name__ == "__main__":
    sys.exit(run_job("build_features", parser(), main))
