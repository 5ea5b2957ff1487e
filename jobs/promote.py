#!/usr/bin/env python3
"""Compare challenger and champion on a held-out day and promote what is non-inferior -> aliases, tags, `promotions`.

A challenger that is kept back is a result, not a failure: the job ends with 0 and the champion stays. A day that was
decided on before stands as it is."""

from __future__ import annotations

import argparse
import sys

from mail_core.evaluation.promotion import PromotionConfig
from mail_core.job import add_day, add_new_users, add_tracking, dataset_parser, run_job


def main(args: argparse.Namespace) -> str:
    from mail_core.encoding.masking import NewUserMode
    from mail_core.evaluation.promotion import format_promotion
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.promotions import PROMOTIONS, PromotionRequest, promote
    from mail_core.spark.session import spark_session
    from mail_core.tracking.runs import configure_tracking

    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    config = PromotionConfig(
        cohorts=tuple(args.cohorts.split(",")), auc_margin=args.auc_margin, logloss_margin=args.logloss_margin,
        confidence=args.confidence, resamples=args.resamples, least_clicks=args.least_clicks,
        least_gain=args.least_gain)
    new_users = NewUserMode.parse(args.new_users) if args.new_users else None
    configure_tracking(args.tracking_uri, lake_uri)
    lake = Lake(spark_session("promote"), lake_uri, schema)
    promotion = promote(lake, PromotionRequest(day=args.date, name=args.model, config=config, new_users=new_users))
    print(format_promotion(promotion))
    return (f"read {lake.path('features')} on {args.date}, {promotion.decision} {args.model} version "
            f"{promotion.model_version}, 1 row in {lake.path(PROMOTIONS)}")


def parser() -> argparse.ArgumentParser:
    result, defaults = dataset_parser(__doc__), PromotionConfig()
    add_day(result, "held-out day")
    result.add_argument("--model", required=True, metavar="NAME",
                        help="registered model, whose aliases challenger and champion are compared")
    add_new_users(result, "the challenger")
    result.add_argument("--cohorts", default=",".join(defaults.cohorts),
                        help="cohorts that must be non-inferior (default: %(default)s)")
    result.add_argument("--auc-margin", type=float, default=defaults.auc_margin,
                        help="AUC that the challenger may lose (default: %(default)s)")
    result.add_argument("--logloss-margin", type=float, default=defaults.logloss_margin,
                        help="share of the champion's log loss that it may add (default: %(default)s)")
    result.add_argument("--confidence", type=float, default=defaults.confidence,
                        help="of the two-sided intervals (default: %(default)s)")
    result.add_argument("--resamples", type=int, default=defaults.resamples,
                        help="bootstrap draws (default: %(default)s)")
    result.add_argument("--least-clicks", type=int, default=defaults.least_clicks,
                        help="cohorts with fewer are not judged (default: %(default)s)")
    result.add_argument("--least-gain", type=float, default=defaults.least_gain, help=(
        "AUC of new users that virtual behaviour must be able to gain; below it the gain is lost, which is an alarm "
        "and decides nothing (default: %(default)s)"))
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("promote", parser(), main))
