#!/usr/bin/env python3
"""Put the version before the champion back: the aliases champion and previous are exchanged -> tags, `promotions`.

Once more goes forward again. The version that is taken out of service is never promoted by itself."""

from __future__ import annotations

import argparse
import sys

from mail_core.job import add_tracking, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.evaluation.promotion import format_promotion
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.promotions import PROMOTIONS, roll_back
    from mail_core.spark.session import spark_session
    from mail_core.tracking.runs import configure_tracking

    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    configure_tracking(args.tracking_uri, lake_uri)
    lake = Lake(spark_session("rollback"), lake_uri, schema)
    rollback, undone = roll_back(lake, args.model, args.reason)
    if undone is not None:
        print(format_promotion(undone))
    return (f"{args.model}: champion is version {rollback.restored} again, version {rollback.withdrawn} is withdrawn, "
            f"{f'the row of {undone.day} in {lake.path(PROMOTIONS)} says so' if undone else 'its tags say so'}")


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--model", required=True, metavar="NAME", help="registered model")
    result.add_argument("--reason", required=True, help="why, for whoever reads the table and the version later")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("rollback", parser(), main))
