"""`features` by DuckDB from Parquet copies of the raw tables: runs in an environment that has DuckDB, not MAIL.

duckdb_features.py build RAW TARGET DAY THREADS     a line of standard input -> one run, its seconds on standard output
duckdb_features.py check FILE ...                   rows and an order-free checksum of every column but `day`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import duckdb  # type: ignore[import-not-found, unused-ignore]

LENGTH, LOOK_BACK, OFFSET = 100, 22, 8
"""Behaviours kept; local days of look-back; hours of the schema's zone ahead of UTC (no summer time in these days)."""
PROFILE = ("cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
           "occupation", "new_user_class_level")
ITEM = ("cate_id", "campaign_id", "customer", "brand", "price")
LISTS = ("behavior_btag", "behavior_cate", "behavior_brand")
COLUMNS = ("user", "item", "label", "userid", *PROFILE, "pid", "hour", "day_of_week", "day_part", "adgroup_id", *ITEM,
           *LISTS)

# Behaviours are numbered within their user; two ASOF joins give each impression its span of numbers, which is slid
# over the user's behaviours as one sorted list: the fastest of the ways tried (see docs/benchmarks.md).
QUERY = """
COPY (
WITH behaviors AS (
    SELECT "user" AS u, time_stamp AS t, btag, cate, brand,
           row_number() OVER (PARTITION BY "user" ORDER BY time_stamp, btag, cate, brand NULLS FIRST) AS n
    FROM read_parquet('{raw}/behaviors/*.parquet')
    WHERE day BETWEEN DATE '{day}' - {look_back} AND DATE '{day}'),
impressions AS (
    SELECT row_number() OVER () AS id, *, time_stamp + INTERVAL {offset} HOUR AS clock,
           DATE '{day}' - INTERVAL {look_back} DAY - INTERVAL {offset} HOUR AS since
    FROM (SELECT * REPLACE (time_stamp AT TIME ZONE 'UTC' AS time_stamp)
          FROM read_parquet('{raw}/impressions/*.parquet')) WHERE day = DATE '{day}'),
moments AS (SELECT * REPLACE (t AT TIME ZONE 'UTC' AS t) FROM behaviors),
spans AS (
    SELECT i.*, coalesce(e.n, 0) AS last
    FROM impressions i ASOF LEFT JOIN moments e ON i."user" = e.u AND i.time_stamp > e.t),
places AS (
    SELECT s.*, coalesce(o.n, 0) AS before
    FROM spans s ASOF LEFT JOIN moments o ON s."user" = o.u AND s.since > o.t),
{sequences}
SELECT i.day, i."user", i.adgroup_id AS item, i.time_stamp AS time, i.clk AS label, i."user" AS userid, {profile},
       i.pid, hour(i.clock)::INTEGER AS hour, isodow(i.clock)::INTEGER AS day_of_week,
       (hour(i.clock) // 6 + CASE WHEN isodow(i.clock) >= 6 THEN 4 ELSE 0 END)::INTEGER AS day_part,
       i.adgroup_id, {item}, {lists}
FROM {joined}
LEFT JOIN read_parquet('{raw}/users/*.parquet') p ON p.userid = i."user"
LEFT JOIN read_parquet('{raw}/items/*.parquet') a ON a.adgroup_id = i.adgroup_id
) TO '{target}' (FORMAT parquet, COMPRESSION snappy)
"""
# Two ways to the sequences; the benchmark times both and takes the faster.
SEQUENCES = {
    "slices": """
histories AS (
    SELECT u, list(btag ORDER BY n DESC) AS btags, list(cate ORDER BY n DESC) AS cates,
           list(brand ORDER BY n DESC) AS brands, count(*) AS size
    FROM behaviors GROUP BY u),
rows AS (
    SELECT i.*, h.size - last + 1 AS first_place, h.size - greatest(before, last - {length}) AS last_place,
           btags, cates, brands FROM places i LEFT JOIN histories h ON h.u = i."user")""",
    "aggregate": """
slots AS (
    SELECT id, "user" AS u, unnest(range(greatest(before, last - {length}) + 1, last + 1)) AS n FROM places),
sequences AS (
    SELECT id, list(btag ORDER BY n DESC) AS btags, list(cate ORDER BY n DESC) AS cates,
           list(brand ORDER BY n DESC) AS brands
    FROM slots JOIN behaviors USING (u, n) GROUP BY id)"""}
JOINED = {"slices": "rows i", "aggregate": 'places i LEFT JOIN sequences s ON s.id = i.id'}


def query(way: str, raw: str, target: str, day: str) -> str:
    """The whole job as one statement."""
    names = ("btags", "cates", "brands")
    values = [f"{name}[first_place:last_place]" if way == "slices" else f"s.{name}" for name in names]
    lists = ", ".join(f"coalesce({value}, []) AS {name}" for name, value in zip(LISTS, values))
    return QUERY.format(raw=raw, target=target, day=day, look_back=LOOK_BACK, offset=OFFSET,
                        sequences=SEQUENCES[way].format(length=LENGTH), joined=JOINED[way], lists=lists,
                        profile=", ".join(f"p.{name}" for name in PROFILE),
                        item=", ".join(f"a.{name}" for name in ITEM))


def build(way: str, raw: str, target: str, day: str, threads: str) -> None:
    """One run a line of standard input, in one process whose engine is up."""
    connection = duckdb.connect(config={"threads": int(threads)})
    connection.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    print("ready", flush=True)
    for _ in sys.stdin:
        Path(target).unlink(missing_ok=True)
        start = time.perf_counter()
        connection.execute(query(way, raw, target, day))
        print(time.perf_counter() - start, flush=True)


def check(files: list[str]) -> None:
    """Rows, mean length of a sequence, and the sum of the rows' hashes."""
    connection = duckdb.connect(config={"threads": 2})
    connection.execute("SET TimeZone = 'UTC'")
    hashes = ", ".join(f'"{name}"' for name in COLUMNS)
    row = connection.execute(f"SELECT count(*), avg(len(behavior_cate)), sum(hash(epoch_us(time), {hashes})::HUGEINT) "
                             "FROM read_parquet(?)", [files]).fetchone()
    print(*row)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(*sys.argv[2:])
    else:
        check(sys.argv[2:])
