"""Look at all that a lake and its MLflow store hold, plan what is past retention, and remove it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone

from pyarrow import fs as arrow_fs

from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join, local_path
from mail_core.lake.retention import Folder, LiveVersion, RetentionConfig, Standing, StandingTable, Step, plan
from mail_core.lake.tables import Lake
from mail_core.lake.vacuum import SHOWN, committed, vacuum
from mail_core.loading.manifest import EXPORTS, PAST_EXPORTS, REVEALED_EXPORTS, export_uri
from mail_core.package.store import WARM_START
from mail_core.schema.definition import Schema
from mail_core.tracking.registry import is_package
from mail_core.tracking.retention import remove_run, remove_version, standing_runs, standing_versions
from mail_core.training.checkpoints import CHECKPOINTS, TRACKED
from mail_core.training.like import original

_COPY = re.compile(r"-v\d+$")
"""What the name of an export of an earlier table version ends with."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CleanUpRequest:
    """What to look at, and whether to remove anything."""

    today: date
    """The day that the schema's `retention_days` count back from."""
    config: RetentionConfig = RetentionConfig()
    delete: bool = False
    """False: only say what would go."""


def clean_up(schema: Schema, lake: Lake, request: CleanUpRequest) -> list[Step]:
    """Plan, log every step with its reason and, where asked for, carry it out. `configure_tracking` comes first.

    It can be killed anywhere and run again. What is wanted beside it runs on: an export or a run of these days is never
    past retention.

    Returns the steps as they were done (or would be): of table versions, only those that had files to remove go.

    Raises:
        InputError: no experiment of the schema, or a live version does not say what it was trained on; nothing has
            been removed then.
    """
    versions = standing_versions()
    live = [live_version(v.uri, v.run_id) for v in versions if v.aliases and is_package(v.uri)]
    runs = standing_runs(schema.name)
    ours = {run.run_id for run in runs}
    standing = Standing(
        exports=_exports(lake.uri), checkpoints=_checkpoints(lake.uri), runs=runs, tables=_tables(lake),
        versions=[v for v in versions if v.run_id in ours])
    steps = [_done(lake, step, request.delete) for step in plan(
        standing, live, request.config, datetime.now(timezone.utc), schema.retention_days, request.today)]
    for step in steps:
        logger.info("%s", line(step, request.delete))
    return steps


def line(step: Step, delete: bool) -> str:
    """What becomes of a thing, and why."""
    gone = "removed" if delete else "would be removed"
    return f"{gone if step.removed else 'kept'}: {step.kind} {step.name}: {step.why}"


def live_version(uri: str, run_id: str | None) -> LiveVersion:
    """What a version was trained on, by its lineage. Raises InputError where that does not say it."""
    try:
        version = original(uri)
    except InputError as error:
        raise InputError(f"{error}; an alias names it, so nothing is removed: take the alias away or bring the version "
                         "back") from error
    name = export_uri("", version.end_date, version.days, version.new_users).rsplit("/", 1)[-1]
    return LiveVersion(uri=uri, run_id=run_id, export=name, delta_versions=version.delta_versions,
                       started_from=version.lineage.get(WARM_START, {}).get("version"),
                       first_day=version.end_date - timedelta(days=version.days - 1), last_day=version.end_date)


def _done(lake: Lake, step: Step, delete: bool) -> Step:
    """Carry out a step that removes something, or count what it would remove."""
    if not step.removed:
        return step
    if step.kind == "table versions":
        going = vacuum(lake, step.name, step.hours, dry_run=not delete)
        count = f"{going} files" if going < SHOWN else f"{SHOWN} files or more"
        return replace(step, removed=going > 0, why=f"{count} {step.why}")
    if step.kind == "rows":
        step = replace(step, why=f"{', '.join(map(str, step.days))}, {step.why}")
    if delete:
        _remove(lake, step)
    return step


def _remove(lake: Lake, step: Step) -> None:
    if step.kind == "rows":
        empty = lake.spark.createDataFrame([], lake.definitions[step.name].spark_schema)
        lake.replace_days(step.name, empty, step.days)
    elif step.kind == "run":
        remove_run(step.name.split()[0])
    elif step.kind == "model version":
        remove_version(step.name)
    else:
        fs, folder = filesystem(step.name)
        fs.delete_dir(folder)


def _exports(lake_uri: str) -> list[Folder]:
    found = [join(lake_uri, kind, name) for kind in (EXPORTS, PAST_EXPORTS, REVEALED_EXPORTS)
             for name in _folders(join(lake_uri, kind))]
    return [Folder(uri=uri, name=_COPY.sub("", uri.rsplit("/", 1)[-1]), changed=_changed(uri)) for uri in found]


def _checkpoints(lake_uri: str) -> list[Folder]:
    """They stand beside a local lake, in `<model name>/<run key>`."""
    lake = local_path(lake_uri)
    if lake is None:
        return []
    root = lake.parent / CHECKPOINTS
    found = [root / model / key for model in _folders(str(root)) for key in _folders(str(root / model))]
    return [Folder(uri=str(path), name=path.name, changed=_changed(str(path)),
                   run_id=(path / TRACKED).read_text().strip() if (path / TRACKED).exists() else None)
            for path in found]


def _folders(uri: str) -> list[str]:
    fs, path = filesystem(uri)
    found = fs.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == arrow_fs.FileType.Directory)


def _changed(uri: str) -> datetime:
    """When the newest file below a folder was written; of an empty one, its own time, or now where it has none."""
    fs, path = filesystem(uri)
    below = fs.get_file_info(arrow_fs.FileSelector(path, recursive=True, allow_not_found=True))
    times = [info.mtime for info in below if info.type == arrow_fs.FileType.File and info.mtime is not None]
    return max(times, default=None) or fs.get_file_info(path).mtime or datetime.now(timezone.utc)


def _tables(lake: Lake) -> list[StandingTable]:
    return [StandingTable(name=name, days=tuple(lake.days(name)), committed=committed(lake, name))
            for name in lake.definitions if lake.exists(name)]
