#!/usr/bin/env python3
"""Measure a model version on a day's `features` by cohort, and against another one if asked -> `evaluations`.

Reads the registry and changes no alias."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mail_core.job import add_day, add_new_users, add_tracking, add_version, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.encoding.masking import NewUserMode
    from mail_core.evaluation.comparison import BootstrapConfig
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.evaluations import EvaluationRequest, format_summary, replace_evaluations
    from mail_core.spark.session import spark_session
    from mail_core.tracking.registry import resolve_model
    from mail_core.tracking.runs import configure_tracking

    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    new_users = NewUserMode.parse(args.new_users) if args.new_users else None
    configure_tracking(args.tracking_uri, lake_uri)
    model = resolve_model(args.model)  # an alias becomes a version here, once
    against = resolve_model(args.against) if args.against else None
    lake = Lake(spark_session("evaluate"), lake_uri, schema)
    summary = replace_evaluations(schema, lake, EvaluationRequest(
        day=args.date, model=model, against=against, new_users=new_users, world=args.world,
        bootstrap=BootstrapConfig(resamples=args.resamples)))
    print(format_summary(summary))
    scored = next(cohort.rows for cohort in summary.evaluation.model if cohort.cohort == "all")
    return (f"read {scored} rows of {lake.path('features')} on {args.date}, measured {model.title}"
            f"{f' against {against.title}' if against else ''}, wrote {summary.rows} rows to {summary.path}")


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "day to measure on")
    add_version(result)
    result.add_argument("--against", metavar="URI", help="another version, measured on the same rows")
    add_new_users(result, "the version")
    result.add_argument("--world", type=Path, metavar="DIR", help="simulated world: also print the best attainable AUC")
    result.add_argument("--resamples", type=int, default=200, help="bootstrap draws of a comparison (default: 200)")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("evaluate", parser(), main))
