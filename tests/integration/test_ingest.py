"""Raw files -> lake: every kind of bad line, deliveries, reruns, and that no line is lost."""

from __future__ import annotations

import argparse
import gzip
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from bad_rows import bad_rows, good_cells
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F
from raw_tables import JOBS, call_job

from mail_core.errors import InputError
from mail_core.job import BAD_INPUT, DONE, run_job
from mail_core.lake.tables import RAW_TABLES, ROLES, Lake
from mail_core.schema.definition import Schema
from mail_core.spark.ingest import IngestReport, ingest_logs

PIDS = ("430548_1007", "430539_1007")
BOM = b"\xef\xbb\xbf"


def at(day: int, hour: int = 12, minute: int = 0) -> int:
    """Seconds since the epoch of a local time in May 2017."""
    return int(datetime(2017, 5, day, hour, minute, tzinfo=ZoneInfo("Asia/Shanghai")).timestamp())


def header(schema: Schema, role: str) -> str:
    raw = getattr(schema, role)
    return raw.delimiter.join(c.header for c in raw.columns)


GOOD = {"impressions": [f"1,{at(6)},10,{PIDS[0]},1,0", f"2,{at(6, 13)},11,{PIDS[1]},0,1",
                        f"1,{at(7)},11,{PIDS[0]},1,0"],
        "behaviors": [f"1,{at(5)},pv,100,7", f"1,{at(5)},pv,100,7", f"2,{at(6)},buy,101,NULL"],
        "users": ["1,0,2,1,3,,3,0,", "2,5,2,2,4,1,3,1,2"],
        "items": ["10,100,1,1,7,5.5", "11,101,1,2,NULL,1e2"]}


def write(folder: Path, schema: Schema, **lines: list) -> Path:
    """The four raw files; a role that is not given holds GOOD's lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        rows = [header(schema, role), *lines.get(role, GOOD[role])]
        data = b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in rows)
        (folder / getattr(schema, role).file).write_bytes(data)
    return folder


def content(lake: Lake, table: str) -> list[tuple]:
    return sorted((tuple(row) for row in lake.read(table).collect()), key=repr)


def reasons(lake: Lake, source: str) -> dict[str, str]:
    """Quarantined line -> reason."""
    return {row["line"]: row["reason"] for row in lake.read("quarantine").where(F.col("source") == source).collect()}


def accounted(report: IngestReport) -> bool:
    return all(f.rows_in == f.rows_out + sum(f.quarantined.values()) + f.duplicates for f in report.files)


BAD_IMPRESSIONS = {
    "": "blank_line", f"1,{at(6)},10": "wrong_column_count", f"1,{at(6)},10,{PIDS[0]},1,0,9": "wrong_column_count",
    f'1,{at(6)},10,"{PIDS[0]},1,0': "unparsable", f"1,{at(6)},1\0,{PIDS[0]},1,0": "nul_byte",
    f",{at(6)},10,{PIDS[0]},1,0": "null_key:user", f"1,,10,{PIDS[0]},1,0": "null_key:time_stamp",
    f"NULL,{at(6)},10,{PIDS[0]},1,0": "null_key:user", f"1,{at(6)},10,,1,0": "null_value:pid",
    f" 1,{at(6)},10,{PIDS[0]},1,0": "not_a_number:user", f"1e3,{at(6)},10,{PIDS[0]},1,0": "not_a_number:user",
    f"1,{at(6)}.5,10,{PIDS[0]},1,0": "not_a_number:time_stamp",
    f"1,{at(6)},10\u2028,{PIDS[0]},1,0": "not_a_number:adgroup_id",
    f"1,{at(6)},10\r,{PIDS[0]},1,0": "not_a_number:adgroup_id",
    f"{2**64 + 5},{at(6)},10,{PIDS[0]},1,0": "out_of_range:user",
    f"1,{at(6)},10,{PIDS[0]},1,{2**32}": "out_of_range:clk",
    f"1,{at(6)},10,430548,1,0": "unknown_value:pid", f"1,{at(6)},10,{PIDS[0]},1,2": "unknown_value:clk",
    f"1,{at(6)},10,{PIDS[0]},1,1": "contradictory_label", f"1,{at(6)},10,{PIDS[0]},0,0": "contradictory_label",
    f"1,{at(6)}000,10,{PIDS[0]},1,0": "impossible_time", f"1,-5,10,{PIDS[0]},1,0": "impossible_time",
    f"1,{10**30},10,{PIDS[0]},1,0": "impossible_time", f"1,{at(14, 0)},10,{PIDS[0]},1,0": "impossible_time"}
BAD_BEHAVIORS = {f"1,{at(5)},view,100,7": "unknown_value:btag", f"1,{at(5)},pv,,7": "null_value:cate",
                 f"1,{at(5)},pv,100,x": "not_a_number:brand", f"1,{at(1) - 30 * 86400},pv,100,7": "impossible_time"}
BAD_USERS = {"1,9,9,9,9,9,9,9,9": "duplicate_key", "3,x,2,1,3,,3,0,": "not_a_number:cms_segid"}
BAD_ITEMS = {"12,100,1,1,7,-1": "out_of_range:price", "13,100,1,1,7,1e999": "out_of_range:price",
             "14,100,1,1,7,nan": "not_a_number:price", "15,100,1,1,7,NULL": "null_value:price",
             ",100,1,1,7,1": "null_key:adgroup_id"}


def test_each_bad_kind_is_quarantined_with_its_line(spark, alimama: Schema, tmp_path: Path) -> None:
    fine = [f'"3",{at(6, 15)},"10","{PIDS[0]}",1,0', f"4,{at(6, 0)},10,{PIDS[0]},1,0\r",
            f"4,{at(13, 23, 59)},10,{PIDS[0]},1,0"]
    head = header(alimama, "impressions")
    source = write(tmp_path / "raw", alimama,
                   impressions=[*GOOD["impressions"], *fine, GOOD["impressions"][0], *BAD_IMPRESSIONS, head, head,
                                b"\xff\xfe,1,2,3,4,5", b"1,2\xc3\r"],
                   behaviors=[*GOOD["behaviors"], *BAD_BEHAVIORS],
                   users=["1,0,2,1,3,,3,0,", *GOOD["users"], *BAD_USERS], items=[*GOOD["items"], *BAD_ITEMS])
    report = ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), None)
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    found = reasons(lake, "impressions")
    assert found == BAD_IMPRESSIONS | {head: "repeated_header", "\ufffd\ufffd,1,2,3,4,5": "invalid_utf8",
                                       "1,2\ufffd": "invalid_utf8"}
    assert reasons(lake, "behaviors") == BAD_BEHAVIORS
    assert reasons(lake, "users") == BAD_USERS and reasons(lake, "items") == BAD_ITEMS
    impressions, behaviors, users, items = report.files
    assert (impressions.rows_out, impressions.duplicates, impressions.quarantined["repeated_header"]) == (6, 1, 2)
    assert (behaviors.rows_out, users.rows_out, users.duplicates, items.rows_out) == (3, 2, 1, 2)
    assert accounted(report) and impressions.rows_in == 3 + 3 + 1 + len(BAD_IMPRESSIONS) + 2 + 2
    assert report.day == date(2017, 5, 13)
    assert impressions.days == (date(2017, 5, 6), date(2017, 5, 7), date(2017, 5, 13))
    assert [row[1:] for row in content(lake, "items")] == [(10, 100, 1, 1, 7, 5.5), (11, 101, 1, 2, None, 100.0)]
    assert content(lake, "users")[0][1:] == (1, 0, 2, 1, 3, None, 3, 0, None)
    before = {table: content(lake, table) for table in [*RAW_TABLES.values(), "quarantine"]}
    assert ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), None) == report
    assert {table: content(lake, table) for table in before} == before
    assert "raw_sample.csv" in report.table() and "impossible_time" in report.table()


def test_gzip_and_folders_of_parts_equal_plain_files(spark, alimama: Schema, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", alimama)
    other = write(tmp_path / "other [1]", alimama)
    for role in ("behaviors", "users"):
        file = other / getattr(alimama, role).file
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes().replace(b"\n", b"\r\n")))
        file.unlink()
    file = other / alimama.impressions.file
    lines = file.read_bytes().splitlines(keepends=True)
    file.unlink()
    file.mkdir()
    (file / "_SUCCESS").write_text("")
    (file / "part 0.csv").write_bytes(BOM + b"".join(lines[:2]))
    members = lines[0] + lines[1] + lines[0], b"".join(lines[2:])
    (file / "part-1.csv.gz").write_bytes(b"".join(gzip.compress(member) for member in members))
    first = ingest_logs(spark, alimama, str(plain), str(tmp_path / "a"), None)
    second = ingest_logs(spark, alimama, str(other), str(tmp_path / "b"), None)
    lakes = [Lake(spark, str(tmp_path / name), alimama) for name in "ab"]
    for table in RAW_TABLES.values():
        assert content(lakes[0], table) == content(lakes[1], table)
    assert accounted(first) and accounted(second)
    assert (second.files[0].duplicates, dict(second.files[0].quarantined)) == (1, {"repeated_header": 1})
    assert [row["file"] for row in lakes[1].read("quarantine").collect()] == ["raw_sample.csv/part-1.csv.gz"]


def test_a_delivery_changes_its_own_day_alone(spark, alimama: Schema, tmp_path: Path) -> None:
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    ingest_logs(spark, alimama, str(write(tmp_path / "raw", alimama)), lake.uri, None)
    before = {t: content(lake, t) for t in ("raw_impressions", "raw_behaviors")}
    late, future = f"9,{at(6, 23, 59)},10,{PIDS[0]},1,0", f"9,{at(8, 0)},10,{PIDS[0]},1,0"
    own = [f"5,{at(7, 0)},10,{PIDS[0]},0,1", f"5,{at(7, 23, 59)},10,{PIDS[0]},1,0"]
    write(tmp_path / "raw" / "2017-05-07", alimama, impressions=[late, *own, future],
          behaviors=[f"1,{at(6)},pv,1,2", f"1,{at(7)},fav,1,2"])
    report = ingest_logs(spark, alimama, str(tmp_path / "raw"), lake.uri, date(2017, 5, 7))
    after = {t: content(lake, t) for t in before}
    for table in before:
        others = [[row for row in rows[table] if row[0] != date(2017, 5, 7)] for rows in (before, after)]
        assert others[0] == others[1] != []
    assert [row[1] for row in after["raw_impressions"] if row[0] == date(2017, 5, 7)] == [5, 5]
    assert reasons(lake, "impressions") == {late: "late", future: "future"}
    assert reasons(lake, "behaviors") == {f"1,{at(6)},pv,1,2": "late"}
    assert accounted(report) and lake.days("users") == [date(2017, 5, 7)]


def test_a_day_without_impressions_writes_nothing(spark, alimama: Schema, tmp_path: Path) -> None:
    source = write(tmp_path / "raw", alimama)
    with pytest.raises(InputError, match=r"no row of raw_sample.csv stands for 2017-05-08.*'late': 3"):
        ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), date(2017, 5, 8))
    with pytest.raises(InputError, match="expected a day of the schema"):
        ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), date(2018, 5, 8))
    assert not (tmp_path / "lake").exists()


def test_multi_valued_cells_become_lists(spark, movielens: Schema, tmp_path: Path) -> None:
    stamp = int(datetime(2000, 1, 1, 5, tzinfo=ZoneInfo("UTC")).timestamp())
    source = write(tmp_path / "raw", movielens, impressions=[f"1,{stamp},10,5,6,1"], behaviors=[f"1,{stamp},5,10"],
                   users=["1,24,M,tech,857"],
                   items=["10,1995,Comedy|Drama", "11,,", "12,1990,Comedy||Drama", '13,1990,"a, ""b""|c"'])
    ingest_logs(spark, movielens, str(source), str(tmp_path / "lake"), None)
    lake = Lake(spark, str(tmp_path / "lake"), movielens)
    assert [row[1:] for row in content(lake, "items")] == [
        (10, 1995, ["Comedy", "Drama"]), (11, None, None), (13, 1990, ['a, "b"', "c"])]
    assert reasons(lake, "items") == {"12,1990,Comedy||Drama": "null_value:genres"}


def mutated(number: int, place: int, byte: int, how: str) -> bytes:
    """A good impression with one byte put in, changed or taken out."""
    line = ",".join(good_cells("impressions", number)).encode()
    place %= len(line)
    return line[:place] + (b"" if how == "out" else bytes([byte])) + line[place + (how != "in"):]


HEAD = b"user,time_stamp,adgroup_id,pid,nonclk,clk"
CELLS = st.sampled_from(["", "1", "2", "10", str(at(6)), str(at(7)), str(at(30)), PIDS[0], "0", "NULL", " 1", "1.0",
                         '"1"', '"', "é", "\0", "\r", "\ufeff", "\u2028", "9" * 2_000, '"' * 999])
LINES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 1)).map(
        lambda t: f"{t[0]},{at(6) + t[1]},10,{PIDS[0]},{1 - t[2]},{t[2]}".encode()),
    st.lists(CELLS, min_size=0, max_size=7).map(lambda cells: ",".join(cells).encode()),
    st.builds(mutated, st.integers(0, 99), st.integers(0, 99), st.integers(0, 255),
              st.sampled_from(["in", "out", "on"])),
    st.binary(max_size=30), st.sampled_from([HEAD, BOM + HEAD, HEAD + b"\r", b"\r", b"\xf0\x9f", b"x" * 100_000]),
).map(lambda line: line.replace(b"\n", b""))


def as_kept(line: bytes) -> str:
    """A line as the quarantine shows it, but for marks: see `marked_once`."""
    text = marked_once(line.decode(errors="replace").removesuffix("\r"))
    return HEAD.decode() if text == (BOM + HEAD).decode() else text


def marked_once(text: str) -> str:
    """A run of bytes that are no UTF-8 counts as one mark, however many a decoder gives it."""
    return re.sub("\ufffd+", "\ufffd", text)


@settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(lines=st.lists(LINES, min_size=200, max_size=200), seed=st.integers(0, 999),
       end=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans(), start=st.sampled_from([b"", BOM]))
def test_no_line_is_lost_whatever_the_lines(spark, alimama: Schema, tmp_path_factory, lines: list[bytes], seed: int,
                                            end: bytes, last: bool, start: bytes) -> None:
    folder, bad = tmp_path_factory.mktemp("mix"), bad_rows(alimama, "impressions", 40, seed)
    good = [",".join(good_cells("impressions", number)).encode() for number in range(500, 520)]
    source = write(folder / "raw", alimama, behaviors=lines[:100] + GOOD["behaviors"])
    data = start + end.join([HEAD, *lines, *good, *(line for line, _ in bad)]) + (end if last else b"")
    (source / "raw_sample.csv").unlink()
    (source / "raw_sample.csv.gz").write_bytes(gzip.compress(data))
    reports: list[IngestReport] = []
    assert run_job("ingest", argparse.ArgumentParser(), lambda args: str(reports.append(
        ingest_logs(spark, alimama, str(source), str(folder / "lake"), None))), []) == DONE
    lake, [report] = Lake(spark, str(folder / "lake"), alimama), reports
    found = lake.read("quarantine").collect()
    left = Counter(row["source"] for row in found)
    assert accounted(report)
    for file in report.files:
        assert file.rows_in == lake.read(RAW_TABLES[file.role]).count() + left[file.role] + file.duplicates
    rows = data.removesuffix(b"\n").split(b"\n")[1:]
    assert report.files[0].rows_in == len(rows)
    thrown_out = Counter((marked_once(row["line"]), row["reason"])
                         for row in found if row["source"] == "impressions")
    given_lines, lines_out = Counter(map(as_kept, rows)), Counter(line for line, _ in thrown_out.elements())
    assert not lines_out - given_lines, "a line stands in the quarantine that was not in the file"
    assert not Counter((as_kept(line), reason) for line, reason in bad) - thrown_out
    assert not lines_out.keys() & set(map(as_kept, good))
    kept = content(lake, "raw_impressions")
    assert len(set(kept)) == len(kept) and len({row[1] for row in kept if 500 <= row[1] < 520}) == len(good)
    zone = ZoneInfo("Asia/Shanghai")
    assert all(row[5] + row[6] == 1 and row[0] == row[2].astimezone(zone).date() for row in kept)


def test_the_job_refuses_a_wrong_header_and_a_missing_file(spark, alimama: Schema, tmp_path: Path, caplog) -> None:
    source, lake = write(tmp_path / "raw", alimama), tmp_path / "lake"
    given = ("--schema", "alimama", "--source", str(source), "--lake", str(lake))
    (source / "user_profile.csv").write_text(header(alimama, "users").strip() + "\n" + GOOD["users"][0] + "\n")
    assert call_job("ingest_logs", *given) == BAD_INPUT
    assert "user_profile.csv" in caplog.text and "new_user_class_level '" in caplog.text
    (source / "user_profile.csv").unlink()
    assert call_job("ingest_logs", *given) == BAD_INPUT
    assert "found none of them" in caplog.text and not lake.exists()


def test_the_job_runs_under_plain_spark_submit(spark, alimama: Schema, tmp_path: Path) -> None:
    source, lake = write(tmp_path / "raw", alimama), str(tmp_path / "lake")
    submit = [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]",
              "--conf", "spark.sql.shuffle.partitions=3"]
    done = subprocess.run([*submit, str(JOBS / "ingest_logs.py"), "--schema", "alimama", "--source", str(source),
                           "--lake", lake], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYSPARK_PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert "raw_sample.csv" in done.stdout and "ingest_logs done in" in done.stdout  # spark-submit joins both streams
    assert len(content(Lake(spark, lake, alimama), "raw_impressions")) == 3


def test_broken_gzip_is_bad_input(spark, alimama: Schema, tmp_path: Path) -> None:
    source = write(tmp_path / "raw", alimama)
    file = source / "behavior_log.csv"
    whole = gzip.compress(file.read_bytes() + b"\n".join(os.urandom(50).hex().encode() for _ in range(40_000)))
    Path(f"{file}.gz").write_bytes(whole[: len(whole) // 2])
    file.unlink()
    with pytest.raises(InputError, match="behavior_log.csv.gz"):
        ingest_logs(spark, alimama, str(source), str(tmp_path / "lake"), None)
