"""Raw log files -> Delta tables raw_impressions, raw_behaviors, users, items and quarantine.

Run by `python jobs/ingest_logs.py ...` or `spark-submit jobs/ingest_logs.py ...`.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date

from mail_core.job import dataset_parser, run_job
from mail_core.schema.reader import load_schema
from mail_core.spark.ingest import ingest_logs
from mail_core.spark.session import spark_session


def main(args: argparse.Namespace) -> str:
    schema = load_schema(args.schema)
    report = ingest_logs(spark_session("ingest_logs"), schema, args.source, args.lake, args.date)
    print(report.table())
    read, kept = sum(f.rows_in for f in report.files), sum(f.rows_out for f in report.files)
    return f"read {read:,} rows of {args.source}, wrote {kept:,} rows to {args.lake} for day {report.day}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--source", required=True, help="folder of the raw files: plain, .gz, or folders of parts")
    result.add_argument("--date", type=date.fromisoformat, metavar="YYYY-MM-DD",
                        help="the local day that is delivered (SOURCE/YYYY-MM-DD where it exists); "
                             "left out: SOURCE is the whole truth for every local day it holds")
    return result


if __name__ == "__main__":
    sys.exit(run_job("ingest_logs", parser(), main))
