#!/usr/bin/env python3
"""Train MAIL, or its ranking tower alone, on an export and register the version with the alias `challenger`.

Starts its own ranks, on this machine or on a Spark cluster; under torchrun it is one of torchrun's. The cohort table of
the test day goes to stdout. With --like the training of a version is run again as its own lineage tells it, on its
export or, where that has gone, on one made again from the tables as they were; the new version gets the tag `like` and
no alias, and the figures are compared with the old ones. With --warm-start training begins with a version's weights, on
the days that it has not seen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mail_core.errors import InputError
from mail_core.job import run_job
from mail_core.training import options
from mail_core.training.launcher import end_with_launcher, is_rank, launch
from mail_core.training.options import LIKE, RESUME, SPARK, WARM_START, request_of
from mail_core.training.ranks import Ranks
from mail_core.training.run import check_request, train_and_register


def main(args: argparse.Namespace) -> str:
    request = request_of(args)
    if is_rank():
        end_with_launcher()
        return train_and_register(request, Ranks.from_environment())
    if args.max_restarts < 0:
        raise InputError(f"max restarts: {args.max_restarts} (expected a whole number from 0)")
    like, arguments, ranks, threads = request.like, sys.argv[1:], 1 if args.ranks is None else args.ranks, None
    if args.warm_start is not None and request.warm_start is not None:
        arguments += [WARM_START, request.warm_start.uri]  # the last one counts: an alias may move before ranks look
    if like is not None:
        ranks, threads = like.ranks if args.ranks is None else args.ranks, like.threads
        arguments += [LIKE, like.uri]
        if like.standing_export(request.lake_uri) is None:
            from mail_core.spark.reruns import export_again
            export_again(like, request.lake_uri)
    export = check_request(request, ranks)
    if args.launcher == SPARK:
        from mail_core.spark.launcher import launch_on_spark
        return launch_on_spark(request, ranks, args.max_restarts)
    launch(Path(__file__).resolve(), arguments, ranks, args.max_restarts, RESUME, threads)
    return f"{ranks} ranks trained {request.name} on {export.uri}"


def parser() -> argparse.ArgumentParser:
    return options.parser(__doc__)


if __name__ == "__main__":
    sys.exit(run_job("train", parser(), main))
