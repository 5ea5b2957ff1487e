#!/usr/bin/env python3
"""Section 4.5 of the paper by simulation: lift of one model version over another in CTR and CTCVR, by cohort.

Both rank the same candidates for the users of a day of `features`; the highest ranked are shown, and clicks and
conversions are drawn from the true probabilities of the world that jobs/simulate_logs.py wrote. Reads the registry and
the lake, writes neither."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mail_core.errors import InputError
from mail_core.job import add_day, add_new_users, add_tracking, add_version, dataset_parser, run_job
from mail_core.simulation.ab_test import RANK_BY, AbTestConfig


def main(args: argparse.Namespace) -> str:
    from mail_core.encoding.masking import NewUserMode
    from mail_core.evaluation.comparison import BootstrapConfig
    from mail_core.evaluation.lift import lifts_csv
    from mail_core.lake.files import validated_lake_uri
    from mail_core.lake.tables import Lake
    from mail_core.schema.reader import load_schema
    from mail_core.spark.ab_test import AbTestRequest, format_summary, simulate_ab_test
    from mail_core.spark.session import spark_session
    from mail_core.tracking.registry import resolve_model
    from mail_core.tracking.runs import configure_tracking

    if args.out is not None and not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: no folder {args.out.parent}")
    schema, lake_uri = load_schema(args.schema), validated_lake_uri(args.lake)
    config = AbTestConfig(candidates=args.candidates, shown=args.shown, rank_by=args.rank_by, paired=args.paired,
                          seed=args.seed)
    configure_tracking(args.tracking_uri, lake_uri)
    model, against = resolve_model(args.model), resolve_model(args.against)  # an alias becomes a version here, once
    lake = Lake(spark_session("simulate_ab_test"), lake_uri, schema)
    summary = simulate_ab_test(schema, lake, AbTestRequest(
        day=args.date, model=model, against=against, world=args.world, config=config,
        new_users=NewUserMode.parse(args.new_users) if args.new_users else None,
        bootstrap=BootstrapConfig(resamples=args.resamples, seed=args.seed)))
    print(format_summary(summary))
    if args.out is not None:
        args.out.write_text(lifts_csv(summary.lifts), encoding="utf-8")
    return f"{model.title} against {against.title} on {args.date}{f', wrote {args.out}' if args.out else ''}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    add_day(result, "day whose users are served")
    result.add_argument("--world", required=True, type=Path, metavar="DIR", help="simulated world (LOGS/world)")
    add_version(result)
    result.add_argument("--against", required=True, metavar="URI", help="the version that it is held against")
    add_new_users(result, "the model")
    result.add_argument("--candidates", type=int, default=AbTestConfig.candidates,
                        help="items ranked for a user, drawn from all (default: %(default)s)")
    result.add_argument("--shown", type=int, default=AbTestConfig.shown,
                        help="of these, the highest ranked (default: %(default)s)")
    result.add_argument("--rank-by", choices=RANK_BY, default=AbTestConfig.rank_by,
                        help="what is ranked by: ctr, or ctcvr of two versions with the head esmm")
    result.add_argument("--paired", action="store_true", help=(
        "both versions serve every user (default: a hash of user and seed puts each into one of two arms)"))
    result.add_argument("--seed", type=int, default=AbTestConfig.seed,
                        help="of arms, candidates, clicks, conversions and bootstrap")
    result.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of users (default: 1000)")
    result.add_argument("--out", type=Path, metavar="FILE", help="write the table as CSV, too")
    add_tracking(result)
    return result


if __name__ == "__main__":
    sys.exit(run_job("simulate_ab_test", parser(), main))
