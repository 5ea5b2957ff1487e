"""What a lake holds, whatever its files are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mail_core.lake.tables import Lake

WRITTEN_WHEN = ("scored_at", "evaluated_at", "checked_at", "decided_at")
TABLES = ("raw_impressions", "raw_behaviors", "users", "items", "quarantine", "features", "evaluations", "ctr_scores")


def checksums(lake: Lake, tables: Sequence[str] = TABLES) -> dict[str, tuple[int, int]]:
    """Rows and an order-free hash of each table, without the columns that say when a row was written."""
    return {table: checksum(lake.read(table)) for table in tables}


def checksum(df: DataFrame) -> tuple[int, int]:
    """Rows and the sum of their hashes."""
    kept = [F.col(c).cast("string") if t.startswith("array") else F.col(c)
            for c, t in df.dtypes if c not in WRITTEN_WHEN]
    row = df.agg(F.count("*"), F.sum(F.xxhash64(*kept).cast("decimal(38,0)"))).first()
    return row[0], row[1]


def export_rows(lake: str | Path) -> list[tuple[str, int]]:
    """(split, rows) of each file of the lake's only export."""
    [manifest] = Path(lake).glob("exports/*/manifest.json")
    splits = json.loads(manifest.read_text())["splits"]
    return [(split, entry["rows"]) for split in sorted(splits) for entry in splits[split]]
