#!/usr/bin/env python3
"""Check a day's `features` against the days before it -> `checks`; a broken day ends with 2 and costs no training.

The limits stand in the schema, under `checks`."""

from __future__ import annotations

import argparse
import sys

from mail_core.job import add_day, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.errors import InputError
    from mail_core.evaluation.checks import broken_lines, format_checks
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.checks import CHECKS, replace_checks
    from mail_core.spark.session import spark_session

    schema = load_schema(args.schema)
    lake = Lake(spark_session("check_features"), args.lake, schema)
    results = replace_checks(schema, lake, args.date)
    print(format_checks(args.date, results))
    broken = broken_lines(results)
    if broken:
        raise InputError("\n  ".join([f"features of {args.date}: {len(broken)} of {len(results)} checks are broken",
                                      *broken]))
    unjudged = sum(result.note is not None for result in results)
    return (f"read {lake.path('features')}, {len(results)} checks of {args.date} passed ({unjudged} without limits), "
            f"wrote them to {lake.path(CHECKS)}")


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "day to check")
    return result


if __name__ == "__main__":
    sys.exit(run_job("check_features", parser(), main))
