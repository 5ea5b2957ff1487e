"""Two runs of one day at once: which commits came between, and one writer at a time on a local disk."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, Iterator, Mapping, Sequence

from pyarrow import fs as arrow_fs

from mail_core.lake.files import filesystem, join, local_path

ABSENT = -1
"""The version of a table that does not exist: one before Delta's first."""
_COMMIT = re.compile(r"(\d{20})\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What one commit of `Lake.replace_days` replaced, as it stands in the commit's `userMetadata`."""

    days: tuple[date, ...]
    where: str | None
    """The condition that narrows the days."""
    began: float | None = None
    """When the run that made it opened the lake, in seconds since the epoch; None where it did not tell."""

    def __str__(self) -> str:
        return json.dumps({"days": [day.isoformat() for day in self.days], "where": self.where, "began": self.began})

    def overlaps(self, other: Replacement) -> bool:
        """Whether a row can belong to both; different conditions are taken to mean different rows."""
        return bool(set(self.days) & set(other.days)) and (None in (self.where, other.where)
                                                           or self.where == other.where)


def latest_version(table_uri: str) -> int:
    """The table's version by its log's file names, without an engine; ABSENT where there is no table."""
    return max(_commits(table_uri), default=ABSENT)


def replacements_after(table_uri: str, version: int) -> dict[int, Replacement]:
    """Version -> what was replaced, for the commits after `version` that `Lake.replace_days` made."""
    numbers = [number for number in sorted(_commits(table_uri)) if number > version]
    found = {number: _replacement(_commit_info(table_uri, number)) for number in numbers}
    return {number: made for number, made in found.items() if made is not None}


def replacing_seconds(table_uri: str, day: date) -> float | None:
    """From the opening of the lake to the commit, of the run that last replaced rows of `day`; None where the log has
    none, or it did not tell when it began."""
    for number in sorted(_commits(table_uri), reverse=True):
        info = _commit_info(table_uri, number)
        made = _replacement(info)
        if made is not None and day in made.days:
            return None if made.began is None else max(info["timestamp"] / 1000 - made.began, 0.0)
    return None


@contextmanager
def one_writer(folder_uri: str) -> Iterator[None]:
    """Wait until no other run of this machine writes below a local folder, which is made where it is absent; the kernel
    lets go of a run that is killed. On object stores nothing is held: there Delta's commits are atomic.

    Delta on a local disk looks for the next version and then renames onto it: two JVMs in that moment would both commit
    it, and one commit would be lost.
    """
    folder = local_path(folder_uri)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s: another run writes there; waiting for its end", folder)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _commits(table_uri: str) -> Sequence[int]:
    system, log = filesystem(join(table_uri, "_delta_log"))
    infos = system.get_file_info(arrow_fs.FileSelector(log, allow_not_found=True))
    return [int(match[1]) for info in infos if (match := _COMMIT.fullmatch(info.base_name))]


def _commit_info(table_uri: str, version: int) -> dict[str, Any]:
    """What Delta says of a commit; empty where it says nothing."""
    system, log = filesystem(join(table_uri, "_delta_log"))
    with system.open_input_stream(join(log, f"{version:020}.json")) as stream:
        lines = [json.loads(line) for line in stream.read().decode().splitlines()]
    return next((line["commitInfo"] for line in lines if "commitInfo" in line), {})


def _replacement(commit_info: Mapping[str, Any]) -> Replacement | None:
    """What `Lake.replace_days` says of its commit; None where another writer made it."""
    try:
        metadata = json.loads(commit_info.get("userMetadata") or "null")
    except json.JSONDecodeError:
        return None
    if not isinstance(metadata, dict) or not {"days", "where"} <= set(metadata):
        return None
    return Replacement(days=tuple(map(date.fromisoformat, metadata["days"])), where=metadata["where"],
                       began=metadata.get("began"))
