"""Files of a Delta table that only earlier versions have: when versions were made, and VACUUM."""

from __future__ import annotations

from datetime import datetime, timezone

from delta.tables import DeltaTable

from mail_core.lake.concurrency import one_writer
from mail_core.lake.tables import Lake

SHOWN = 1000
"""Most files that Delta names before it removes any."""


def committed(lake: Lake, table: str) -> dict[int, datetime]:
    """Version -> when it was made, as far back as the table's log goes. A table's versions do not grow with its rows.
    """
    history = DeltaTable.forPath(lake.spark, lake.path(table)).history().selectExpr(
        "version", "unix_millis(timestamp) AS at")
    return {row["version"]: datetime.fromtimestamp(row["at"] / 1000, timezone.utc) for row in history.collect()}


def vacuum(lake: Lake, table: str, hours: int, dry_run: bool) -> int:
    """Remove files that have been out of the table for more than `hours`; how many, SHOWN where there are more.

    With `dry_run` they are only counted.
    """
    command = f"VACUUM delta.`{lake.path(table)}` RETAIN {hours} HOURS"
    going = lake.spark.sql(f"{command} DRY RUN").count()
    if going and not dry_run:
        with one_writer(lake.folder(table)):
            lake.spark.sql(command)
    return going
