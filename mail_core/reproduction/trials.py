"""The trainings of a reproduction: each is a run of its own in MLflow, and is found there instead of done again."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import torch
from tqdm import tqdm

from mail_core.errors import InputError
from mail_core.package.scoring import Package
from mail_core.package.store import load_package
from mail_core.reproduction.config import ReproductionConfig
from mail_core.reproduction.measure import Measured, measure
from mail_core.reproduction.pace import Pace, in_words
from mail_core.reproduction.plan import Version
from mail_core.reproduction.sources import Sources
from mail_core.tracking.runs import FoundRun, TrackedRun, curve, found_run, local_artifact
from mail_core.training import options
from mail_core.training.launcher import launch
from mail_core.training.options import PARENT_RUN, RESUME, UNREGISTERED, request_of
from mail_core.training.ranks import Ranks
from mail_core.training.run import PACKAGE, RUN_KEY, TrainRequest, check_request, request_key

TRAIN_JOB = Path(__file__).resolve().parents[2] / "jobs" / "train.py"
MEASURED = "measured.json"
"""Artifact of a trial's run."""
RESTARTS = 2
_VALIDATION = ("choice/validation_auc", "choice/validation_negative_logloss")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training."""

    version: Version
    seed: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained and measured trial."""

    trial: Trial
    run_id: str
    validation: float | None
    """Best score of the validation day over epochs; None where the epochs were given."""
    measured: Measured


@dataclass(frozen=True, kw_only=True)
class Results:
    """All outcomes."""

    chosen: dict[tuple[Version, int], Outcome]
    """(version, seed) -> its outcome with the learning rate of that version; absent where the budget ended before."""
    tried: list[Outcome]
    """With all learning rates, in the order of trying."""
    stopped: bool
    """Whether the budget ended before all was trained."""


class Trials:
    """Gives outcomes of trials: those that stand in MLflow, and others as long as the budget lasts."""

    def __init__(self, config: ReproductionConfig, sources: Sources, parent_run: str, versions: Sequence[Version]):
        """`versions` are all that will be asked for: with every learning rate for the first seed, then seed by seed.

        Raises:
            InputError: as `check_request`.
        """
        self.config, self.sources, self.parent_run = config, sources, parent_run
        self.stopped = False
        """Whether the budget has ended before the trials did."""
        kinds = [version.label(config.preset) for version in versions]
        self._pace, self._left = Pace(), kinds * (len(config.learning_rates) + config.seeds - 1)
        self._total, self._start = len(self._left), time.monotonic()
        for version in versions[:1]:  # what it checks is the same for all
            trial = Trial(version=version, seed=1, learning_rate=config.learning_rates[0])
            check_request(self._request(trial), config.ranks)
        self._bar = tqdm(total=self._total, desc="trainings", unit="run", file=sys.stderr,
                         disable=not sys.stderr.isatty())

    def outcome(self, trial: Trial) -> Outcome | None:
        """Of this trial; None where it would have to be trained and the budget has no time for it.

        Raises:
            InputError, RuntimeError: as `launch` does; InputError also where the export is no longer the one that the
                reproduction began with.
        """
        kind, key = self._kind(trial), self._key(trial)
        run = found_run(self.sources.schema.name, {RUN_KEY: key})
        if run is not None:
            self._pace.add(kind, run.seconds)
        elif self._may_start(kind):
            run = self._trained(trial, key)
        if run is None:
            return None
        outcome = self._outcome(trial, run)
        self._left.remove(kind)
        self._show()
        return outcome

    def package(self, run_id: str) -> Package:
        """The version that a trial's run keeps."""
        folder = local_artifact(run_id, PACKAGE)
        assert folder is not None, f"run {run_id} has no artifact {PACKAGE}"
        return load_package(folder, "cuda" if torch.cuda.is_available() else "cpu")

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _trained(self, trial: Trial, key: str) -> FoundRun:
        start = time.monotonic()
        logger.info("training %d of %d: %s, seed %d, learning rate %g", self._total - len(self._left) + 1, self._total,
                    self._kind(trial), trial.seed, trial.learning_rate)
        with _bars_below():
            # What a killed attempt has left is gone on from.
            launch(TRAIN_JOB, [*self._arguments(trial), RESUME], self.config.ranks, RESTARTS)
        run = found_run(self.sources.schema.name, {RUN_KEY: key})
        if run is None:
            raise InputError(f"{self.sources.export.uri}: another export since the first training; start again")
        self._pace.add(self._kind(trial), time.monotonic() - start)
        return run

    def _outcome(self, trial: Trial, run: FoundRun) -> Outcome:
        scores = [value for figure in _VALIDATION for _, value in curve(run.run_id, figure)]
        return Outcome(trial=trial, run_id=run.run_id, validation=max(scores, default=None),
                       measured=self._measured(trial, run.run_id))

    def _measured(self, trial: Trial, run_id: str) -> Measured:
        standing = local_artifact(run_id, MEASURED)
        measured = None if standing is None else Measured.from_json(standing.read_text(encoding="utf-8"))
        if measured is None:
            measured = measure(self.package(run_id), self.sources.revealed,
                               trial.version.shown(self.sources.schema.sequence_length))
            run = TrackedRun(run_id)
            run.metrics({f"test/behavior_{name}": value for name, value in measured.fit.items()})
            run.text(measured.to_json(), MEASURED)
        return measured

    def _may_start(self, kind: str) -> bool:
        budget = self.config.budget_minutes
        if budget is None or self.stopped:
            return not self.stopped
        # What the very first one takes is not known: it is begun where any time is left.
        left = budget * 60 - (time.monotonic() - self._start)
        self.stopped = self._pace.expected(kind) > left
        if self.stopped:
            logger.warning("the budget of %g minutes is used up: no further training is started", budget)
        return not self.stopped

    def _show(self) -> None:
        left = in_words(self._pace.left(self._left))
        self._bar.set_postfix_str(f"about {left} left", refresh=False)
        self._bar.update()
        if self._bar.disable:
            logger.info("%d of %d trainings done, about %s left", self._total - len(self._left), self._total, left)

    def _kind(self, trial: Trial) -> str:
        return trial.version.label(self.config.preset)

    def _request(self, trial: Trial) -> TrainRequest:
        """As the training itself reads its arguments."""
        return request_of(options.parser(None).parse_args(self._arguments(trial)))

    def _key(self, trial: Trial) -> str:
        return request_key(self._request(trial), self.sources.export, Ranks.first_of(self.config.ranks))

    def _arguments(self, trial: Trial) -> list[str]:
        config = self.config
        given = {"--schema": config.schema, "--lake": config.lake_uri, "--end-date": config.end_date.isoformat(),
                 "--new-users": config.new_users, "--preset": config.preset, "--seed": trial.seed,
                 "--learning-rate": trial.learning_rate, "--batch-size": config.batch_size, "--epochs": config.epochs,
                 "--tracking-uri": config.tracking_uri, PARENT_RUN: self.parent_run}
        pairs = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        return [*pairs, *trial.version.arguments, UNREGISTERED]


@contextmanager
def _bars_below() -> Iterator[None]:
    """The ranks' own bars stand in the line below ours."""
    os.environ["TQDM_POSITION"] = "1"
    try:
        yield
    finally:
        del os.environ["TQDM_POSITION"]
