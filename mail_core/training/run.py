"""A training run from an export to a registered version: what jobs/train.py calls on every rank."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

import torch
from torch.utils import deterministic

from mail_core.errors import InputError
from mail_core.evaluation.metrics import CohortMetrics, cohort_metrics
from mail_core.evaluation.promotion import CHALLENGER
from mail_core.evaluation.tables import format_table
from mail_core.lake.files import local_path
from mail_core.loading.manifest import (MANIFEST, TEST, TRAIN, VALIDATION, find_export, manifest_fingerprint,
                                        manifest_text)
from mail_core.models.mail import MailModel
from mail_core.package.store import NEW_USERS, WARM_START, save_package
from mail_core.schema.definition import Schema
from mail_core.training.checkpoints import CHECKPOINTS, SECONDS, Checkpoints, run_key
from mail_core.training.data import Export, open_export
from mail_core.training.like import Original, changed_circumstances, differing_metrics, environment, files_of, original
from mail_core.training.loop import Fitted, Recorder, fit
from mail_core.training.moments import MOMENTS, save_moments
from mail_core.training.predict import Predictions, conversion_figures, diagnostics, predict
from mail_core.training.presets import TrainingConfig, model_label
from mail_core.training.ranks import Ranks
from mail_core.training.warm_start import DAYS_TRAINED, WarmStart, days_trained, warm_start, warm_start_like

if TYPE_CHECKING:
    from mail_core.tracking.runs import TrackedRun

RUN_KEY = "run_key"
"""Tag of a run: what `request_key` gives, which tells whether another run would be the same training."""
PACKAGE = "package"
"""Artifact of a run whose version is not registered."""
CHECKOUT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train, on what, and where it goes."""

    schema: Schema
    lake_uri: str
    end_date: date
    """The test day of the export."""
    new_users: str | None
    """Mode of the export; None: the only export of that day."""
    preset: str
    """Name of the preset that `config` was made from."""
    config: TrainingConfig
    model_name: str | None = None
    """Name in the registry; None: from schema, method and tower."""
    tracking_uri: str | None = None
    """MLflow's store; None: beside a local lake. It may hold a password and is recorded nowhere."""
    resume: bool = False
    """Go on from the last checkpoint of this very run; without one it starts afresh."""
    checkpoint_seconds: float = SECONDS
    """Between two checkpoints within an epoch. They stand beside a local lake; a remote lake has none."""
    like: Original | None = None
    """The version that this is the training of, once more: its export is read, and no alias moves."""
    warm_start: WarmStart | None = None
    """The version whose weights training begins with, and whose days it leaves out; `config` has its epochs then."""
    keeps_moments: bool = True
    """Whether a registered version's run keeps the optimisers' moments, twice the weights' size, for a warm start."""
    registered: bool = True
    """False: a trial, whose version is the artifact PACKAGE of its run and not in the registry."""
    parent_run: str | None = None
    """ID of the MLflow run that this one is nested in."""
    commit: str = field(default_factory=lambda: code_commit(CHECKOUT))
    """Of the code that trains. Told by whoever asks for the training: ranks on other machines have a copy of it."""

    def __post_init__(self) -> None:
        if not self.checkpoint_seconds >= 0:
            raise InputError(f"checkpoint seconds: {self.checkpoint_seconds} (expected a number from 0)")
        if self.config.model.head == "esmm" and self.schema.impressions.conversion is None:
            raise InputError(f"head esmm: the schema {self.schema.name!r} names no conversion label "
                             "(impressions.conversion)")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.model_name or f"{self.schema.name}-{model_label(self.config.model)}"


def request_like(uri: str, lake_uri: str, *, model_name: str | None = None, tracking_uri: str | None = None,
                 resume: bool = False, checkpoint_seconds: float = SECONDS) -> TrainRequest:
    """The request that gave the version at `uri`, from its own lineage. Raises InputError as `original` and
    `warm_start_like` do."""
    from mail_core.tracking.runs import configure_tracking
    configure_tracking(tracking_uri, lake_uri)
    like = original(uri)
    return TrainRequest(
        schema=like.schema, lake_uri=lake_uri, end_date=like.end_date, new_users=str(like.new_users), like=like,
        preset=like.lineage["training"]["preset"], config=like.config, model_name=model_name or like.name,
        tracking_uri=tracking_uri, resume=resume, checkpoint_seconds=checkpoint_seconds,
        warm_start=warm_start_like(like))


def request_from(uri: str, request: TrainRequest) -> TrainRequest:
    """`request`, starting from the version at `uri`; it trains as many epochs as that version had, where it names none:
    a day then counts as often as the days before it did. Raises InputError as `warm_start` does."""
    from mail_core.tracking.runs import configure_tracking
    configure_tracking(request.tracking_uri, request.lake_uri)
    start = warm_start(uri)
    epochs = request.config.epochs or start.version.config.epochs
    return replace(request, warm_start=start, config=replace(request.config, epochs=epochs))


def fetched_here(request: TrainRequest) -> TrainRequest:
    """`request`, with the version that it starts from on this machine. Raises InputError as `warm_start` does."""
    if request.warm_start is None:
        return request
    from mail_core.tracking.runs import configure_tracking
    configure_tracking(request.tracking_uri, request.lake_uri)
    start = warm_start(request.warm_start.uri) if request.like is None else warm_start_like(request.like)
    return replace(request, warm_start=start)


def check_request(request: TrainRequest, world_size: int) -> Export:
    """Open the export and check all that can be checked before ranks are started.

    Raises:
        InputError: no such export, one that does not fit the schema, has an empty split or nothing that the version to
            start from has not seen; another kind of version to start from; a batch that the ranks do not divide.
    """
    if world_size < 1:
        raise InputError(f"ranks: {world_size} (expected a whole number above 0)")
    request.config.batch_of(world_size)
    uri = (find_export(request.lake_uri, request.end_date, request.new_users) if request.like is None
           else request.like.export_of(request.lake_uri))
    needed = (TRAIN, TEST) if request.config.epochs else (TRAIN, VALIDATION, TEST)
    export = open_export(uri, request.schema, *needed)
    return export if request.warm_start is None else request.warm_start.part_of(export, request.config.model)


def train_and_register(request: TrainRequest, ranks: Ranks) -> str:
    """Train on this rank among the others; rank 0 measures the test day, prints the cohorts and registers the version.

    A rank that another launcher than ours has restarted goes on from the last checkpoint by itself.

    Returns the closing sentence. Raises InputError as `check_request` does, where MLflow's store cannot be used, and
    where the checkpoint to go on from is damaged or another run's.
    """
    if not ranks.is_first:
        logging.getLogger("mail_core").setLevel(logging.WARNING)  # rank 0 speaks for all
    export = check_request(request, ranks.world_size)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not ranks.is_first:
        _trained(request, export, ranks, _record_nothing, _checkpoints(request, export, ranks))
        return f"rank {ranks.rank} of {ranks.world_size}"
    # MLflow takes seconds to import, and rank 0 alone needs it.
    from mail_core.tracking.registry import validated_model_name
    from mail_core.tracking.runs import configure_tracking, end_run_killed, tracked_run
    name = validated_model_name(request.name)
    checkpoints = _checkpoints(request, export, ranks)
    configure_tracking(request.tracking_uri, request.lake_uri, request.schema.name)
    earlier = checkpoints.earlier_run
    if earlier is not None and not checkpoints.resume:
        end_run_killed(earlier)
    tags = {**_tags(request, export), RUN_KEY: checkpoints.key}
    with tracked_run(name, tags, earlier if checkpoints.resume else None, request.parent_run) as run:
        checkpoints.keep_run(run.run_id)
        run.params(_params(request, export, ranks))
        run.text(_manifest_text(export), MANIFEST)
        fitted, predictions = _trained(request, export, ranks, run.metrics, checkpoints)
        model, epochs = fitted.model, fitted.epochs
        assert predictions is not None
        cohorts = _cohorts(predictions)
        measured = {**diagnostics(predictions), **_gate(model), **conversion_figures(predictions)}
        run.params({"epochs": epochs})
        run.metrics(_flat(cohorts, measured))
        metrics = {"cohorts": [asdict(c) for c in cohorts], "diagnostics": measured}
        origin = lineage(request, export, ranks, epochs)
        with tempfile.TemporaryDirectory() as folder:
            package = save_package(Path(folder) / PACKAGE, model=model, encoders=export.encoders, lineage=origin,
                                   metrics=metrics)
            if request.registered and request.keeps_moments:
                run.artifact(save_moments(Path(folder) / MOMENTS, fitted.moments))
            title, uri = _keep(request, export, package, run, name)
    checkpoints.clear()  # last of all: until here --resume would finish what a killed run has left
    print(format_table({f"{title}, {request.end_date}, new users {export.manifest.new_users}": cohorts}))
    how = "registered" if request.registered else "kept"
    print(f"{how} {uri}", flush=True)
    end = f" as {CHALLENGER}" if request.registered else ""
    if request.like is not None:
        end = f", {_likeness(request.like, origin, metrics)}"
    since = "" if request.warm_start is None else f" since {export.since}, from {request.warm_start.uri} on,"
    return (f"{export.rows(TRAIN, VALIDATION):,} rows of {export.uri}{since} trained {epochs} epochs on "
            f"{ranks.world_size} ranks, {len(predictions.labels):,} rows of the test day measured, {uri} {how}{end}")


def _keep(request: TrainRequest, export: Export, package: Path, run: TrackedRun, name: str) -> tuple[str, str]:
    """Register the version, or keep it with the run: what it is called, and its URI."""
    from mail_core.tracking.registry import register_package
    if not request.registered:
        run.artifact(package)
        return name, f"runs:/{run.run_id}/{PACKAGE}"
    alias = CHALLENGER if request.like is None else None
    version = register_package(package, name, alias, _origin_tags(request, export))
    return f"{name} version {version}", f"models:/{name}/{version}"


def _likeness(like: Original, origin: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Print and say whether a training has given the figures of the one that it repeats."""
    changed = changed_circumstances(like.lineage, origin)
    if changed:
        logger.warning("not trained as %s was: %s", like.uri, "; ".join(changed))
    differing = differing_metrics(like.metrics, metrics)
    for line in differing:
        print(f"differs from {like.uri}: {line}")
    said = f"{len(differing)} figures differ from" if differing else "the same metrics as"
    said = f"{said} {like.uri}"
    print(said, flush=True)
    return said


def lineage(request: TrainRequest, export: Export, ranks: Ranks, epochs: int) -> dict[str, Any]:
    """Where the version comes from, as a JSON document."""
    manifest, config = export.manifest, request.config
    return {
        "schema": {"name": request.schema.name, "fingerprint": request.schema.fingerprint},
        "export": {"manifest_fingerprint": manifest_fingerprint(_manifest_text(export)),
                   "encoder_fingerprint": manifest.encoder_fingerprint, "delta_versions": dict(manifest.delta_versions),
                   "first_day": manifest.first_day.isoformat(), "end_date": manifest.end_date.isoformat(),
                   "days": manifest.days, "files": files_of(manifest.splits)},
        NEW_USERS: manifest.new_users,
        "training": {"preset": request.preset, "epochs": epochs, "seed": config.seed, "ranks": ranks.world_size,
                     "device": ranks.device.type, "batch_size": config.batch_size,
                     "learning_rate": config.learning_rate, "embedding_optimizer": config.embedding_optimizer},
        "environment": environment(),
        **({"like": request.like.uri} if request.like is not None else {}),
        **({WARM_START: request.warm_start.lineage(export)} if request.warm_start is not None else {}),
        "commit": request.commit,
    }


def code_commit(checkout: Path) -> str:
    """Commit of the checkout that this code runs from, `-dirty` where files differ; `unknown` elsewhere."""
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, whose commit says nothing about it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return "unknown"
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def request_key(request: TrainRequest, export: Export, ranks: Ranks) -> str:
    """Hash of all that makes two runs the same training: configuration, export, start, ranks and device; not the
    commit."""
    like = "" if request.like is None else request.like.uri  # it registers otherwise, as a trial does
    start = "" if request.warm_start is None else f"{WARM_START}{request.warm_start.lineage(export)}"
    return run_key(request.config, f"{_manifest_text(export)}{like}{start}{'' if request.registered else PACKAGE}",
                   ranks)


def _checkpoints(request: TrainRequest, export: Export, ranks: Ranks) -> Checkpoints:
    """Those of this run. Raises InputError on one that it cannot go on from."""
    key = request_key(request, export, ranks)
    lake = local_path(request.lake_uri)
    folder = None if lake is None else lake.parent / CHECKPOINTS / request.name / key
    if folder is None and ranks.is_first:
        logger.warning("%s is remote: no checkpoints are kept, a run that is stopped starts afresh", request.lake_uri)
    # torchrun's own restarts run the same command again.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return Checkpoints(folder, key, ranks, request.checkpoint_seconds, request.resume or restarted)


def _trained(request: TrainRequest, export: Export, ranks: Ranks, record: Recorder,
             checkpoints: Checkpoints) -> tuple[Fitted, Predictions | None]:
    """What the ranks do together; they part before rank 0 packs and registers, which the others need not wait for."""
    with ranks.process_group():
        fitted = fit(export, request.config, ranks, record, checkpoints, request.warm_start)
        return fitted, predict(fitted.model, export, TEST, ranks, variants=True)


def _record_nothing(values: Mapping[str, float], step: int) -> None:
    """Ranks other than the first have nothing to record."""


def _cohorts(predictions: Predictions) -> list[CohortMetrics]:
    return cohort_metrics(predictions.labels, predictions.probabilities, predictions.user_keys, predictions.cohorts())


def _flat(cohorts: list[CohortMetrics], measured: Mapping[str, float | None]) -> dict[str, float | None]:
    """MLflow's metrics: test/COHORT/METRIC, and the diagnostics."""
    return {**{f"test/{c.cohort}/{metric}": value for c in cohorts for metric, value in c.items()},
            **{f"test/{name}": value for name, value in measured.items()}}


def _gate(model: MailModel) -> dict[str, float]:
    """How far the gate of a virtual token is open, where the model has one."""
    gate = None if model.zero_shot is None else model.zero_shot.gate
    return {} if gate is None else {"gate_g": float(gate.g)}


def _params(request: TrainRequest, export: Export, ranks: Ranks) -> dict[str, object]:
    config, model = request.config, request.config.model.to_dict()
    tower, zero_shot, peer = (model.pop(part) for part in ("tower_config", "zero_shot", "cold_start"))
    return {"preset": request.preset, **model, **{f"tower.{k}": v for k, v in tower.items()},
            "zero_shot": zero_shot is not None, **{f"zero_shot.{k}": v for k, v in (zero_shot or {}).items()},
            **{f"cold_start.{k}": v for k, v in (peer or {}).items()},
            "batch_size": config.batch_size, "learning_rate": config.learning_rate, "seed": config.seed,
            "embedding_optimizer": config.embedding_optimizer, "max_epochs": config.max_epochs,
            "patience": config.patience, "epochs_chosen_on": "argument" if config.epochs else "the last training day",
            "ranks": ranks.world_size, "device": ranks.device.type,
            "end_date": export.manifest.end_date, "days": export.manifest.days, "new_users": export.manifest.new_users,
            **{f"rows.{split}": export.rows(split) for split in (TRAIN, VALIDATION, TEST)}}


def _origin_tags(request: TrainRequest, export: Export) -> dict[str, str]:
    """What tells a version that repeats or continues another one from those that do neither."""
    tags = {} if request.like is None else {"like": request.like.uri}
    if request.warm_start is not None:
        first, last = days_trained(export)
        tags |= {WARM_START: request.warm_start.uri, DAYS_TRAINED: f"{first} to {last}"}
    return tags


def _tags(request: TrainRequest, export: Export) -> dict[str, str]:
    return {"schema": request.schema.name, "schema_fingerprint": request.schema.fingerprint,
            "tower": request.config.model.tower, "model": model_label(request.config.model),
            "zero_shot": str(request.config.model.zero_shot is not None),
            "new_users": export.manifest.new_users, "end_date": request.end_date.isoformat(),
            "commit": request.commit, **_origin_tags(request, export),
            **{f"delta_version.{table}": str(version) for table, version in export.manifest.delta_versions.items()}}


def _manifest_text(export: Export) -> str:
    text = manifest_text(export.uri)
    assert text is not None, "the export has been opened"
    return text
