"""The options of jobs/train.py: one parser, one request of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import date

from mail_core.errors import InputError
from mail_core.job import add_tracking, dataset_parser
from mail_core.lake.files import validated_lake_uri
from mail_core.models.alignment import ALIGNMENTS, KERNELS
from mail_core.models.esmm import HEADS
from mail_core.models.fields import POOLINGS
from mail_core.models.mail import MailConfig
from mail_core.schema.reader import load_schema
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS
from mail_core.training.presets import METHODS, PRESETS, TrainingConfig, model_config
from mail_core.training.run import TrainRequest, request_from, request_like

PRESET, TOWER, METHOD, RESUME, LIKE, WARM_START = "paper", "base_dnn", "base", "--resume", "--like", "--warm-start"
UNREGISTERED, PARENT_RUN = "--unregistered", "--parent-run"
LOCAL, SPARK = "local", "spark"
SETTINGS = ("seed", "batch_size", "learning_rate", "embedding_optimizer")
"""Options that are fields of TrainingConfig, with their defaults there."""
TOLD = ("schema", "end_date", "new_users", "preset", "tower", "head", "cold_start", "pooling", "alignment", "kernel",
        "joint", "epochs", "warm_start", *SETTINGS)
"""Options that a version's lineage tells, too. The parser leaves None where one is not given."""


def request_of(args: argparse.Namespace) -> TrainRequest:
    """The training that the parsed options ask for. Raises InputError where they do not fit together."""
    request = _new_request(args) if args.like is None else _like_request(args)
    return replace(request, registered=not args.unregistered, parent_run=args.parent_run,
                   keeps_moments=not args.without_moments)


def _new_request(args: argparse.Namespace) -> TrainRequest:
    if args.schema is None or args.end_date is None:
        raise InputError(f"--schema and --end-date: both are needed without {LIKE}")
    preset = args.preset or PRESET
    model = model_config(preset, args.tower or TOWER, args.cold_start or METHOD, pooling=args.pooling,
                         alignment=args.alignment, kernel=args.kernel, joint=bool(args.joint),
                         head=args.head or MailConfig.head)
    request = TrainRequest(
        schema=load_schema(args.schema), lake_uri=validated_lake_uri(args.lake), end_date=args.end_date,
        new_users=args.new_users, preset=preset, model_name=args.model_name, tracking_uri=args.tracking_uri,
        resume=args.resume, checkpoint_seconds=args.checkpoint_seconds,
        config=TrainingConfig(model=model, epochs=args.epochs, **{
            name: value for name in SETTINGS if (value := getattr(args, name)) is not None}))
    return request if args.warm_start is None else request_from(args.warm_start, request)


def _like_request(args: argparse.Namespace) -> TrainRequest:
    given = [f"--{name.replace('_', '-')}" for name in TOLD if getattr(args, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)}: not with {LIKE}, since the lineage of {args.like} tells it")
    return request_like(args.like, validated_lake_uri(args.lake), model_name=args.model_name,
                        tracking_uri=args.tracking_uri, resume=args.resume, checkpoint_seconds=args.checkpoint_seconds)


def parser(description: str | None) -> argparse.ArgumentParser:
    """What the job takes."""
    result = dataset_parser(description, schema_required=False)
    result.add_argument(LIKE, metavar="URI", help="models:/NAME/VERSION or models:/NAME@ALIAS: train as that version "
                        f"was; not with {', '.join('--' + name.replace('_', '-') for name in TOLD)}")
    result.add_argument(WARM_START, metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION, of the same "
                        "settings: begin with its weights, and train only the days of the export that it has not seen")
    result.add_argument("--end-date", type=date.fromisoformat, help="test day of the export, YYYY-MM-DD")
    result.add_argument("--preset", choices=list(PRESETS), help=f"sizes of the model (default: {PRESET})")
    result.add_argument("--ranks", type=int, help=f"processes to start (default: 1; with {LIKE} as many as then; "
                        "under torchrun: torchrun's)")
    result.add_argument("--launcher", choices=(LOCAL, SPARK), default=LOCAL, help="where the ranks are started: on "
                        "this machine, or as tasks of the Spark cluster of spark-submit (default: %(default)s)")
    result.add_argument("--tower", help=f"ranking tower (default: {TOWER})")
    result.add_argument("--head", choices=HEADS, help="CTR alone, or CTR and CVR by ESMM, where the schema names a "
                        f"conversion label (default: {MailConfig.head})")
    result.add_argument("--cold-start", choices=METHODS, help="for new users: nothing, a variant of MAIL (base: the "
                        f"paper's), or a peer of MAIL's (default: {METHOD})")
    result.add_argument("--pooling", choices=POOLINGS, help="of behaviour, where the tower pools it (default: sum; "
                        "mean under a variant with a token)")
    result.add_argument("--alignment", choices=ALIGNMENTS, help="loss L_d of MAIL (default: mmd)")
    result.add_argument("--kernel", choices=KERNELS, help="of mmd (default: fixed)")
    result.add_argument("--joint", action="store_true", default=None,
                        help="let the ranking loss teach the zero-shot tower, too")
    result.add_argument("--new-users", help="mode of the export; default: the only export of that day")
    result.add_argument("--seed", type=int, help=f"default: {TrainingConfig.seed}")
    result.add_argument("--epochs", type=int, help="default: chosen on the last training day; "
                        f"with {WARM_START} as many as that version had")
    result.add_argument("--batch-size", type=int,
                        help=f"rows of a step, all ranks (default: {TrainingConfig.batch_size})")
    result.add_argument("--learning-rate", type=float, help=f"default: {TrainingConfig.learning_rate}")
    result.add_argument("--embedding-optimizer", choices=EMBEDDING_OPTIMIZERS,
                        help=f"default: {TrainingConfig.embedding_optimizer}")
    result.add_argument("--model-name", help="name in the registry; default: from schema, "
                        "method and tower, such as SCHEMA-mail-TOWER")
    result.add_argument("--without-moments", action="store_true", help="do not keep the optimisers' moments with the "
                        f"run (twice the weights' size): {WARM_START} from this version then begins with none")
    result.add_argument(UNREGISTERED, action="store_true", help="a trial: keep the version as the artifact package/ of "
                        "its MLflow run, and register nothing")
    result.add_argument(PARENT_RUN, metavar="ID", help="MLflow run that this one is nested in")
    add_tracking(result)
    result.add_argument(RESUME, action="store_true", help="go on from the last checkpoint of the same command")
    result.add_argument("--checkpoint-seconds", type=float, default=TrainRequest.checkpoint_seconds,
                        help="between two checkpoints within an epoch; each epoch ends with one, too")
    result.add_argument("--max-restarts", type=int, default=2,
                        help="times that all ranks go on from the last checkpoint after one has died (under torchrun: "
                             "torchrun's)")
    return result
