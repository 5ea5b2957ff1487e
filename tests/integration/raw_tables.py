"""Small raw tables of the Alimama schema, made in memory, for tests that start after ingestion."""

from __future__ import annotations

import importlib.util
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from mail_core.job import run_job
from mail_core.lake.tables import RAW_TABLES, Lake, table_definitions

ZONE = ZoneInfo("Asia/Shanghai")
LAST_DAY = date(2017, 5, 13)
JOBS = Path(__file__).resolve().parents[2] / "jobs"


def call_job(name: str, *arguments: str) -> int:
    """Exit code of `jobs/<name>.py`, run in this process on the session that is there."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return run_job(name, job.parser(), job.main, list(arguments))


def local(day: date, hour: int = 12, minute: int = 0, second: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=ZONE)


def write(lake: Lake, schema, role: str, rows: list[tuple]) -> None:
    """`rows` of raw columns in order; `day` is the time column's local day, and stands first for users and items."""
    definition = table_definitions(schema)[RAW_TABLES[role]]
    if role in ("impressions", "behaviors"):
        place = [c.name for c in getattr(schema, role).columns].index(getattr(schema, role).time)
        rows = [(row[place].astimezone(ZONE).date(), *row) for row in rows]
    table = pa.Table.from_pylist([dict(zip(definition.columns.names, row)) for row in rows], schema=definition.columns)
    lake.replace_days(definition.name, lake.spark.createDataFrame(table), sorted({row[0] for row in rows}))


def random_rows(seed: int, users: int = 40, items: int = 30, days: int = 3) -> dict[str, list[tuple]]:
    """Rows a role. User 1 is heavy; users and items beyond `users` and `items` have no row; some have no behaviour."""
    rng = np.random.default_rng(seed)
    first = datetime.combine(LAST_DAY - timedelta(days=days - 1), datetime.min.time(), ZONE).astimezone(timezone.utc)

    def moments(count: int, back: int) -> list[datetime]:
        # Whole minutes: ties in time, also between an impression and a behaviour, are common.
        return [first + timedelta(minutes=int(m)) for m in rng.integers(-back * 1440, days * 1440, count)]

    def maybe(value: int) -> int | None:
        return None if rng.random() < 0.3 else int(value)

    impressions = [(int(u), t, int(i), str(p), 1 - int(c), int(c)) for u, t, i, p, c in zip(
        rng.integers(1, users + 6, 300), moments(300, 0), rng.integers(1, items + 4, 300),
        rng.choice(["430548_1007", "430539_1007"], 300), rng.random(300) < 0.2)]
    impressions += [(1, t, 5, "430548_1007", 1, 0) for t in moments(30, 0)]
    behaviors = [(int(u), t, str(a), int(c), maybe(c + 100)) for u, t, a, c in zip(
        np.where(rng.random(3000) < 0.5, 1, rng.integers(1, users - 5, 3000)), moments(3000, 25),
        rng.choice(["pv", "cart", "fav", "buy"], 3000), rng.integers(1, 9, 3000))]
    return {
        "impressions": list({(row[0], row[1], row[2]): row for row in impressions}.values()), "behaviors": behaviors,
        "users": [(LAST_DAY, u, u % 5, u % 3, 1 + u % 2, u % 7, maybe(u % 4), 3, u % 2, maybe(u % 5))
                  for u in range(1, users + 1)],
        "items": [(LAST_DAY, i, 1 + i % 8, i // 2, i // 3, maybe(101 + i % 8), float(i) * 1.5)
                  for i in range(1, items + 1)]}
