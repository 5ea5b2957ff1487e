"""MLflow's store and runs. The store's address may hold a password: messages show it `redacted`, runs never."""

from __future__ import annotations

import logging
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Mapping, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mail_core.errors import InputError
from mail_core.lake.files import local_path

STORE_FOLDER, STORE_FILE, ARTIFACTS_FOLDER = "mlflow", "mlflow.db", "artifacts"
_SQLITE = "sqlite:///"
_REACHABLE_SECONDS = 10
_Found = TypeVar("_Found")

logger = logging.getLogger(__name__)


def configure_tracking(tracking_uri: str | None, lake_uri: str, experiment: str | None = None) -> str:
    """Point MLflow (tracking and registry) at its store and return the store's URI.

    Args:
        tracking_uri: None for a SQLite store beside a local lake, `<lake>/../mlflow/mlflow.db`.
        lake_uri: as of `validated_lake_uri`.
        experiment: made where it does not exist and set for runs; a SQLite store's runs keep their artifacts beside
            it, wherever the job was started. None: only to read, so the store must be there.

    Raises:
        InputError: a remote lake without a tracking URI, a server that does not answer, no store to read, or none
            at all at that address.
    """
    uri = tracking_uri or _default_store(lake_uri)
    artifacts = None
    if uri.startswith(_SQLITE):
        database = _database(uri, create=experiment is not None)
        uri, artifacts = f"{_SQLITE}{database}", (database.parent / ARTIFACTS_FOLDER).as_uri()
    elif uri.startswith(("http://", "https://")):
        _check_answers(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # hundreds of carriage returns in a log
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        client = MlflowClient()
        if experiment is not None:
            if client.get_experiment_by_name(experiment) is None:
                client.create_experiment(experiment, artifact_location=artifacts and f"{artifacts}/{experiment}")
            mlflow.set_experiment(experiment)
    except MlflowException as error:
        raise InputError(f"tracking URI {redacted(uri)}: {error.message}") from error
    return uri


def redacted(uri: str) -> str:
    """`uri` without its user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1])) if "@" in parts.netloc else uri


@dataclass(frozen=True)
class TrackedRun:
    """A running MLflow run."""

    run_id: str
    recorded: frozenset[tuple[str, int]] = field(default=frozenset(), repr=False)
    """(figure, step) of a continued run, which are not recorded twice."""

    def params(self, values: Mapping[str, object]) -> None:
        """Settings, as text."""
        mlflow.log_params({key: str(value) for key, value in values.items()}, run_id=self.run_id)

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Figures; undefined ones (None, NaN) are left out."""
        defined = {key: float(v) for key, v in values.items()
                   if v is not None and not math.isnan(v) and (key, step or 0) not in self.recorded}
        mlflow.log_metrics(defined, step=step, run_id=self.run_id)

    def tags(self, values: Mapping[str, str]) -> None:
        """Text by which runs are found."""
        mlflow.set_tags(dict(values))

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Keep a local file, or a folder with what is in it, under `folder` of the run's artifacts."""
        mlflow.log_artifact(str(path), artifact_path=folder, run_id=self.run_id)

    def text(self, text: str, file: str) -> None:
        """Keep `text` as the file `file` of the run's artifacts."""
        mlflow.log_text(text, file, run_id=self.run_id)


@contextmanager
def tracked_run(name: str, tags: Mapping[str, str] | None = None, run_id: str | None = None,
                parent: str | None = None) -> Iterator[TrackedRun]:
    """A run in the experiment of `configure_tracking`; it ends FINISHED, or FAILED where the body raises.

    `run_id` is a run to go on with; where the store does not have it, a new one begins. `parent` is the run that it is
    nested in.
    """
    before = None if run_id is None else _run(run_id)
    continued = before.info.run_id if before is not None and before.info.lifecycle_stage == "active" else None
    nested = {} if parent is None else {MLFLOW_PARENT_RUN_ID: parent}
    with mlflow.start_run(run_id=continued, run_name=name, tags={**(tags or {}), **nested}) as run:
        recorded = frozenset() if before is None or continued is None else _recorded(before)
        yield TrackedRun(run.info.run_id, recorded)


def end_run_killed(run_id: str) -> None:
    """Mark a run as KILLED that its process has left RUNNING; any other run stays as it is."""
    run = _run(run_id)
    if run is not None and run.info.status == "RUNNING":
        MlflowClient().set_terminated(run_id, "KILLED")


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run of before, as the store has it."""

    run_id: str
    seconds: float
    """From its start to its end; 0 where it has not ended."""
    finished: bool


def found_run(experiment: str, tags: Mapping[str, str], finished: bool = True) -> FoundRun | None:
    """The newest run of the experiment that has all `tags`, among the finished ones or among all."""
    client = MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return None
    wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    wanted += ["attributes.status = 'FINISHED'"] if finished else []
    runs = client.search_runs([known.experiment_id], " AND ".join(wanted), max_results=1,
                              order_by=["attributes.start_time DESC"])
    if not runs:
        return None
    return FoundRun(run_id=runs[0].info.run_id, seconds=_seconds(runs[0]), finished=runs[0].info.status == "FINISHED")


def or_none(fetch: Callable[[], _Found]) -> _Found | None:
    """What `fetch` reads of the store; None where the store has no such thing."""
    try:
        return fetch()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def run_seconds(run_id: str) -> float | None:
    """From a run's start to its end, 0 where it has not ended; None where there is no such run."""
    run = _run(run_id)
    return None if run is None else _seconds(run)


def curve(run_id: str, figure: str) -> list[tuple[int, float]]:
    """(step, value) of a figure of a run, in the order of the steps."""
    return sorted((point.step, point.value) for point in MlflowClient().get_metric_history(run_id, figure))


def local_artifact(run_id: str, path: str) -> Path | None:
    """A local copy of a run's artifact (the artifact itself, where the store is local); None where it has none such, or
    has gone itself."""
    run = _run(run_id)
    if run is None or path not in {file.path for file in MlflowClient().list_artifacts(run_id)}:
        return None
    # By the run's ID MLflow would copy it, wherever it lies.
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{run.info.artifact_uri}/{path}"))


def _seconds(run: Run) -> float:
    return max((run.info.end_time or 0) - run.info.start_time, 0) / 1000


def _run(run_id: str) -> Run | None:
    return or_none(lambda: MlflowClient().get_run(run_id))


def _recorded(run: Run) -> frozenset[tuple[str, int]]:
    client = MlflowClient()
    return frozenset((key, point.step) for key in run.data.metrics
                     for point in client.get_metric_history(run.info.run_id, key))


def _default_store(lake_uri: str) -> str:
    lake = local_path(lake_uri)
    if lake is None:
        raise InputError(f"lake {lake_uri} is remote, so no MLflow store can stand beside it: give --tracking-uri")
    return f"{_SQLITE}{lake.parent / STORE_FOLDER / STORE_FILE}"


def _database(uri: str, create: bool) -> Path:
    path = Path(uri.removeprefix(_SQLITE)).absolute()
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(16)
        if start and not start.startswith(b"SQLite format 3"):
            raise InputError(f"tracking URI {uri}: {path} is not a SQLite database")
    elif not create:
        raise InputError(f"tracking URI {uri}: no file {path}; train a model first, or give --tracking-uri")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"tracking URI {uri}: cannot make the folder {path.parent}: {error}") from error
    return path


def _check_answers(uri: str) -> None:
    """One quick request, because MLflow itself repeats a failing one for minutes."""
    try:
        urlopen(f"{redacted(uri).rstrip('/')}/health", timeout=_REACHABLE_SECONDS).close()
    except HTTPError:
        logger.debug("%s answers", redacted(uri))  # with an error, but it is there: MLflow says what is wrong
    except (URLError, OSError) as error:
        raise InputError(f"tracking URI {redacted(uri)}: no answer ({getattr(error, 'reason', error)})") from error
