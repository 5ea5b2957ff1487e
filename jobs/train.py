#!/usr/bin/env python3
"""Train MAIL, or its ranking tower alone, on an export and register the version with the alias `challenger`.

Starts its own ranks on this machine; under torchrun it is one of torchrun's. The cohort table of the test day goes to
stdout."""

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
from mail_core.training.run import TrainRequest, check_request, train_and_register

RESUME = "--resume"


def main(args: argparse.Namespace) -> str:
    request = TrainRequest(
        schema=load_schema(args.schema), lake_uri=validated_lake_uri(args.lake), end_date=args.end_date,
        new_users=args.new_users, preset=args.preset, model_name=args.model_name, tracking_uri=args.tracking_uri,
        resume=args.resume, checkpoint_seconds=args.checkpoint_seconds,
        config=TrainingConfig(model=model_config(args.preset, args.tower, zero_shot=not args.no_zero_shot),
                              seed=args.seed, epochs=args.epochs, batch_size=args.batch_size,
                              embedding_optimizer=args.embedding_optimizer))
    if is_rank():
        end_with_launcher()
        return train_and_register(request, Ranks.from_environment())
    if args.max_restarts < 0:
        raise InputError(f"max restarts: {args.max_restarts} (expected a whole number from 0)")
    export = check_request(request, args.ranks)
    launch(Path(__file__).resolve(), sys.argv[1:], args.ranks, args.max_restarts, RESUME)
    return f"{args.ranks} ranks trained {request.name} on {export.uri}"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--end-date", required=True, type=date.fromisoformat, help="test day of the export, YYYY-MM-DD")
    result.add_argument("--preset", default="paper", choices=list(PRESETS), help="sizes of the model")
    result.add_argument("--ranks", type=int, default=1, help="processes to start here (under torchrun: torchrun's)")
    result.add_argument("--tower", default="base_dnn", help="ranking tower")
    result.add_argument("--no-zero-shot", action="store_true", help="the ranking tower alone")
    result.add_argument("--new-users", help="mode of the export; default: the only export of that day")
    result.add_argument("--seed", type=int, default=TrainingConfig.seed)
    result.add_argument("--epochs", type=int, help="default: chosen on the last training day")
    result.add_argument("--batch-size", type=int, default=TrainingConfig.batch_size, help="rows of a step, all ranks")
    result.add_argument("--embedding-optimizer", default=TrainingConfig.embedding_optimizer,
                        choices=EMBEDDING_OPTIMIZERS)
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
