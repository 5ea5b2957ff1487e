#!/usr/bin/env python3
"""Score a day's candidates by one model version -> `ctr_scores`. Behaviour before the day's 00:00 (local) counts."""

from __future__ import annotations

import argparse
import sys

from mail_core.job import add_day, add_tracking, add_version, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.scoring import ScoreRequest, format_summary, replace_scores
    from mail_core.spark.session import spark_session
    from mail_core.tracking.registry import resolve_model
    from mail_core.tracking.runs import configure_tracking

    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    configure_tracking(args.tracking_uri, lake_uri)
    model = resolve_model(args.model)  # an alias becomes a version here, once
    lake = Lake(spark_session("score"), lake_uri, schema)
    summary = replace_scores(schema, lake, ScoreRequest(
        day=args.date, model_name=model.name, model_version=model.version, package_folder=model.package_folder,
        candidates=args.candidates))
    print(format_summary(summary))
    return (f"read {args.candidates or 'raw_impressions of the day before'} and raw tables of {lake.uri}, wrote "
            f"{summary.rows} rows of {args.date} by {model.title} to {summary.path}")


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "day to score")
    add_version(result)
    result.add_argument("--candidates", metavar="TABLE", help=(
        "Delta table or Parquet path with columns user, item and optionally time and context features "
        "(default: the user x item pairs of the day before, in the schema's serving context)"))
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("score", parser(), main))
