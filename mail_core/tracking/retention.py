"""Runs and registered versions past retention: what a store holds of one experiment, and how it goes."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mail_core.errors import InputError
from mail_core.lake.retention import StandingRun, StandingVersion

_PAGE = 1000

logger = logging.getLogger(__name__)


def standing_runs(experiment: str) -> list[StandingRun]:
    """The runs of an experiment that are not deleted. `configure_tracking` comes first.

    Raises:
        InputError: there is no such experiment.
    """
    client, found, token = MlflowClient(), [], None
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise InputError(f"MLflow's store has no experiment {experiment!r}: train a model first, or name another store")
    while True:
        page = client.search_runs([known.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=_PAGE,
                                  page_token=token)
        found += [StandingRun(run_id=run.info.run_id, name=run.info.run_name or "", ended=_moment(run.info.end_time),
                              parent=run.data.tags.get(MLFLOW_PARENT_RUN_ID)) for run in page]
        token = page.token
        if not token:
            return found


def standing_versions() -> list[StandingVersion]:
    """Every registered version of the store, with its aliases."""
    client, found = MlflowClient(), []
    for model in _pages(client.search_registered_models):
        named: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(model.name).aliases.items():
            named.setdefault(str(version), []).append(alias)
        for version in _pages(client.search_model_versions, f"name = '{model.name}'"):
            created = _moment(version.creation_timestamp)
            assert created is not None
            found.append(StandingVersion(uri=f"models:/{model.name}/{version.version}", run_id=version.run_id or None,
                                         created=created, aliases=tuple(named.get(str(version.version), ()))))
    return found


def remove_run(run_id: str) -> None:
    """Delete a run, as MLflow does: it can be restored until `mlflow gc` frees what it holds."""
    MlflowClient().delete_run(run_id)


def remove_version(uri: str) -> None:
    """Delete models:/NAME/VERSION from the registry, unless an alias names it by now."""
    name, version = uri.removeprefix("models:/").split("/")
    client = MlflowClient()
    if version in map(str, client.get_registered_model(name).aliases.values()):
        logger.warning("%s: has an alias by now, so it stays", uri)
        return
    client.delete_model_version(name, version)


def _pages(search, *arguments):
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
