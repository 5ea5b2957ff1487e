"""What goes and what stays: a pure function of what there is, what live versions were trained on, and the time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from math import ceil
from typing import Iterable, Mapping, Sequence

from mail_core.errors import InputError

LEAST_VERSION_DAYS = 7
"""Delta refuses less: a query that still reads, or a commit under way, needs files that no version of now has."""


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Days that things are kept after their last change. Whatever a live version needs stays longer."""

    export_days: int = 14
    """Exports, those of earlier table versions and of revealed test days included: each is a copy of a week's rows."""
    checkpoint_days: int = 7
    """Checkpoints that a run has left which was stopped; one that ends removes its own."""
    run_days: int = 90
    """MLflow runs, and with them registered versions without an alias."""
    version_days: int = 30
    """Files of earlier versions of the Delta tables (VACUUM); time travel goes no further back."""

    def __post_init__(self) -> None:
        for field in fields(self):
            least = LEAST_VERSION_DAYS if field.name == "version_days" else 1
            if getattr(self, field.name) < least:
                raise InputError(f"retention: {field.name}: {getattr(self, field.name)} (expected {least} or more)")


@dataclass(frozen=True, kw_only=True)
class LiveVersion:
    """A registered version that an alias names, and what it was trained on."""

    uri: str
    """models:/NAME/VERSION"""
    run_id: str | None
    export: str
    """Name of its export's folder."""
    first_day: date
    last_day: date
    """Of its export."""
    delta_versions: Mapping[str, int]
    """Table -> version."""
    started_from: str | None = None
    """models:/NAME/VERSION that a warm start began with, whose run holds the moments."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that is kept or removed as a whole."""

    uri: str
    name: str
    """Of an export: without what tells a copy of it (the table's version) apart."""
    changed: datetime
    run_id: str | None = None
    """Of a checkpoint: the MLflow run that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class StandingRun:
    """A run of MLflow's store."""

    run_id: str
    name: str
    ended: datetime | None
    """None: it runs."""
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class StandingVersion:
    """A registered version."""

    uri: str
    run_id: str | None
    created: datetime
    aliases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StandingTable:
    """A Delta table that exists."""

    name: str
    days: tuple[date, ...]
    committed: Mapping[int, datetime]
    """Version -> when it was made, as far back as the table's log goes."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All that there is."""

    exports: Sequence[Folder] = ()
    checkpoints: Sequence[Folder] = ()
    runs: Sequence[StandingRun] = ()
    versions: Sequence[StandingVersion] = ()
    tables: Sequence[StandingTable] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing, whether it goes, and why."""

    kind: str
    """export, checkpoint, model version, run, rows or table versions."""
    name: str
    removed: bool
    why: str
    days: tuple[date, ...] = ()
    """Of rows: the days that go."""
    hours: int = 0
    """Of table versions: files that have been out of the table for longer go."""


def plan(standing: Standing, live: Sequence[LiveVersion], config: RetentionConfig, now: datetime,
         retention_days: Mapping[str, int], today: date) -> list[Step]:
    """A step for everything that there is, in an order that may be cut off anywhere and begun again.

    Args:
        now: with a time zone, as all moments.
        retention_days: the schema's, table -> days of rows; `today` is the day that they count back from.
    """
    return [*_folders("export", standing.exports, config.export_days, now, {v.export: v for v in live}, {}),
            *_folders("checkpoint", standing.checkpoints, config.checkpoint_days, now, {}, _by_run(live)),
            *_versions_and_runs(standing, live, config.run_days, now),
            *(step for table in standing.tables
              for step in (_rows(table, live, retention_days.get(table.name), today),
                           _table_versions(table, live, config.version_days, now)))]


def _folders(kind: str, folders: Iterable[Folder], days: int, now: datetime, by_name: Mapping[str, LiveVersion],
             by_run: Mapping[str, LiveVersion]) -> Iterable[Step]:
    for folder in folders:
        version = by_name.get(folder.name) or by_run.get(folder.run_id or "")
        if version is not None:
            yield Step(kind=kind, name=folder.uri, removed=False, why=f"{version.uri} was trained on it" if by_name
                       else f"of the run of {version.uri}")
        else:
            yield _by_age(kind, folder.uri, folder.changed, days, now)


def _versions_and_runs(standing: Standing, live: Sequence[LiveVersion], days: int, now: datetime) -> Iterable[Step]:
    """Versions first: one whose run has gone would say nothing of how it came to be."""
    begun = {v.started_from: v.uri for v in live}
    versions = [_version(version, begun.get(version.uri), days, now) for version in standing.versions]
    yield from versions
    needed = {v.run_id: f"of {v.uri}" for v, step in zip(standing.versions, versions) if not step.removed}
    needed |= {v.run_id: f"of {v.uri}" for v in live}
    runs = {run.run_id: _run(run, needed.get(run.run_id), days, now) for run in standing.runs}
    parents = {run.run_id: run.parent for run in standing.runs}
    above = {parent for run_id, step in runs.items() if not step.removed for parent in _above(run_id, parents)}
    for run_id, step in runs.items():
        if step.removed and run_id in above:
            step = Step(kind="run", name=step.name, removed=False, why="a run below it is kept")
        yield step


def _version(version: StandingVersion, begun: str | None, days: int, now: datetime) -> Step:
    if version.aliases or begun is not None:
        why = f"alias {', '.join(sorted(version.aliases))}" if version.aliases else f"{begun} was started from it"
        return Step(kind="model version", name=version.uri, removed=False, why=why)
    return _by_age("model version", version.uri, version.created, days, now)


def _run(run: StandingRun, needed: str | None, days: int, now: datetime) -> Step:
    name = f"{run.run_id} ({run.name})"
    if needed is not None or run.ended is None:
        return Step(kind="run", name=name, removed=False, why=needed or "it has not ended")
    return _by_age("run", name, run.ended, days, now)


def _above(run_id: str, parents: Mapping[str, str | None]) -> Iterable[str]:
    seen = {run_id}
    parent = parents.get(run_id)
    while parent is not None and parent not in seen:
        seen.add(parent)
        yield parent
        parent = parents.get(parent)


def _rows(table: StandingTable, live: Sequence[LiveVersion], days: int | None, today: date) -> Step:
    """Days of rows past the schema's retention; not those that a live version was trained on, nor the newest day, which
    may be the only snapshot."""
    if days is None:
        return Step(kind="rows", name=table.name, removed=False, why="the schema has no retention for them")
    first = today - timedelta(days=days - 1)
    held = [v for v in live if table.name in v.delta_versions]
    past = [day for day in table.days[:-1] if day < first]
    going = tuple(day for day in past if not any(v.first_day <= day <= v.last_day for v in held))
    why = f"of days before {first}"
    if len(going) < len(past):
        why += f"; {len(past) - len(going)} such days stay: {', '.join(v.uri for v in held)} was trained on them"
    return Step(kind="rows", name=table.name, removed=bool(going), days=going,
                why=why if past else f"none is of a day before {first}")


def _table_versions(table: StandingTable, live: Sequence[LiveVersion], days: int, now: datetime) -> Step:
    """Files leave a table with a later version, so those of version v are safe while what was out of it when v was made
    is the most that goes."""
    kept_from, why = now - timedelta(days=days), f"out of the table for {days} days"
    for version in live:
        number = version.delta_versions.get(table.name)
        made = None if number is None else table.committed.get(number)
        if made is not None and made < kept_from:
            kept_from, why = made, f"out of the table before {made:%Y-%m-%d}: {version.uri} was trained on {number}"
    # An hour more, since a commit's time and that of its files differ by seconds.
    hours = ceil((now - kept_from) / timedelta(hours=1)) + (1 if kept_from < now - timedelta(days=days) else 0)
    return Step(kind="table versions", name=table.name, removed=True, why=why, hours=hours)


def _by_age(kind: str, name: str, changed: datetime, days: int, now: datetime) -> Step:
    age = (now - changed) / timedelta(days=1)
    return Step(kind=kind, name=name, removed=age > days, why=f"{age:.1f} days old, {days} are kept")


def _by_run(live: Sequence[LiveVersion]) -> dict[str, LiveVersion]:
    return {version.run_id: version for version in live if version.run_id}
