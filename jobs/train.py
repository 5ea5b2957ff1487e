#!/usr/bin/env python3
"""Train MAIL, or its ranking tower alone, on an export and register the version with the alias `challenger`.

Starts its own ranks on this machine; under torchrun it is one of torchrun's. The cohort table of the test day goes to
stdout. With --like the training of a version is run again as its own lineage tells it, on its export or, where that has
gone, on one made again from the tables as they were; the new version gets the tag `like` and no alias, and the figures
are compared with the old ones."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from mail_core.errors import InputError
from mail_core.job import dataset_parser, run_job
from mail_core.lake.files import validated_lake_uri
from mail_core.schema.reader import load_schema
from mail_core.training.launcher import end_with_launcher, is_rank, launch
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS
from mail_core.training.presets import PRESETS, TrainingConfig, model_config
from mail_core.training.ranks import Ranks
from mail_core.training.run import TrainRequest, check_request, request_like, train_and_register

PRESET, TOWER, RESUME, LIKE = "paper", "base_dnn", "--resume", "--like"
TOLD = ("schema", "end_date", "new_users", "preset", "tower", "no_zero_shot", "seed", "epochs", "batch_size",
        "embedding_optimizer")
"""Options that a version's lineage tells, too. The parser leaves None where one is not given."""


def main(args: argparse.Namespace) -> str:
    request = new_request(args) if args.like is None else like_request(args)
    if is_rank():
        end_with_launcher()
        return train_and_register(request, Ranks.from_environment())
    if args.max_restarts < 0:
        raise InputError(f"max restarts: {args.max_restarts} (expected a whole number from 0)")
    like, arguments, ranks, threads = request.like, sys.argv[1:], 1 if args.ranks is None else args.ranks, None
    if like is not None:
        ranks, threads = like.ranks if args.ranks is None else args.ranks, like.threads
        arguments += [LIKE, like.uri]  # the last one counts: an alias may move before the ranks look
        if like.standing_export(request.lake_uri) is None:
            from mail_core.spark.reruns import export_again
            export_again(like, request.lake_uri)
    export = check_request(request, ranks)
    launch(Path(__file__).resolve(), arguments, ranks, args.max_restarts, RESUME, threads)
    return f"{ranks} ranks trained {request.name} on {export.uri}"


def new_request(args: argparse.Namespace) -> TrainRequest:
    if args.schema is None or args.end_date is None:
        raise InputError(f"--schema and --end-date: both are needed without {LIKE}")
    preset = args.preset or PRESET
    return TrainRequest(
        schema=load_schema(args.schema), lake_uri=validated_lake_uri(args.lake), end_date=args.end_date,
        new_users=args.new_users, preset=preset, model_name=args.model_name, tracking_uri=args.tracking_uri,
        resume=args.resume, checkpoint_seconds=args.checkpoint_seconds,
        config=TrainingConfig(model=model_config(preset, args.tower or TOWER, zero_shot=not args.no_zero_shot),
                              seed=TrainingConfig.seed if args.seed is None else args.seed, epochs=args.epochs,
                              batch_size=TrainingConfig.batch_size if args.batch_size is None else args.batch_size,
                              embedding_optimizer=args.embedding_optimizer or TrainingConfig.embedding_optimizer))


def like_request(args: argparse.Namespace) -> TrainRequest:
    given = [f"--{name.replace('_', '-')}" for name in TOLD if getattr(args, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)}: not with {LIKE}, since the lineage of {args.like} tells it")
    return request_like(args.like, validated_lake_uri(args.lake), model_name=args.model_name,
                        tracking_uri=args.tracking_uri, resume=args.resume, checkpoint_seconds=args.checkpoint_seconds)


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__, schema_required=False)
    result.add_argument(LIKE, metavar="URI", help="models:/NAME/VERSION or models:/NAME@ALIAS: train as that version "
                        f"was; not with {', '.join('--' + name.replace('_', '-') for name in TOLD)}")
    result.add_argument("--end-date", type=date.fromisoformat, help="test day of the export, YYYY-MM-DD")
    result.add_argument("--preset", choices=list(PRESETS), help=f"sizes of the model (default: {PRESET})")
    result.add_argument("--ranks", type=int, help=f"processes to start here (default: 1; with {LIKE} as many as then; "
                        "under torchrun: torchrun's)")
    result.add_argument("--tower", help=f"ranking tower (default: {TOWER})")
    result.add_argument("--no-zero-shot", action="store_true", default=None, help="the ranking tower alone")
    result.add_argument("--new-users", help="mode of the export; default: the only export of that day")
    result.add_argument("--seed", type=int, help=f"default: {TrainingConfig.seed}")
    result.add_argument("--epochs", type=int, help="default: chosen on the last training day")
    result.add_argument("--batch-size", type=int,
                        help=f"rows of a step, all ranks (default: {TrainingConfig.batch_size})")
    result.add_argument("--embedding-optimizer", choices=EMBEDDING_OPTIMIZERS,
                        help=f"default: {TrainingConfig.embedding_optimizer}")
    result.add_argument("--model-name", help="name in the registry; default: SCHEMA-mail-TOWER, or SCHEMA-TOWER")
    result.add_argument("--tracking-uri", help="MLflow's store; default: SQLite beside a local lake")
    result.add_argument(RESUME, action="store_true", help="go on from the last checkpoint of the same command")
    result.add_argument("--checkpoint-seconds", type=float, default=TrainRequest.checkpoint_seconds,
                        help="between two checkpoints within an epoch; each epoch ends with one, too")
    result.add_argument("--max-restarts", type=int, default=2,
                        help="times that all ranks go on from the last checkpoint after one has died (under torchrun: "
                             "torchrun's)")
    return result


if __name__ == "__main__":
    sys.exit(run_job("train", parser(), main))
