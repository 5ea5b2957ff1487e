"""Lines of Alimama's raw files that must not stand, at random, each with the reason it is quarantined for."""

from __future__ import annotations

import random
from typing import Callable

from mail_core.lake.tables import ROLES
from mail_core.schema.definition import RawFile, Schema

NOON = 1_494_057_600  # 2017-05-06 16:00 in Shanghai
ENUMS = {"impressions": ("pid", 3), "behaviors": ("btag", 2)}
INTEGERS = {"impressions": [("user", 0), ("adgroup_id", 2)], "behaviors": [("user", 0), ("cate", 3)],
            "users": [("userid", 0), ("cms_segid", 1)], "items": [("adgroup_id", 0), ("price", 5)]}
"""Columns by role with their places. A price is a double, and too large from 1e309 on."""

Maker = Callable[[list[str]], tuple[list[str] | str | bytes, str]]


def good_cells(role: str, number: int) -> list[str]:
    """A line that stands; its key or time differs from every other number's."""
    return {"impressions": [str(number), str(NOON + number % 1000), str(number % 50), "430548_1007", "1", "0"],
            "behaviors": [str(number), str(NOON + number % 1000), "pv", "7", str(number % 9)],
            "users": [str(number), "1", "2", "1", "3", "", "3", "0", "2"],
            "items": [str(number), "7", "1", "1", "NULL", "5.5"]}[role]


def bad_rows(schema: Schema, role: str, count: int, seed: int) -> list[tuple[bytes, str]]:
    """`count` (line without its end, reason), the kinds in turn."""
    draw = random.Random(f"{role} {seed}")
    kinds = _kinds(getattr(schema, role), role, draw)
    rows = []
    for number in range(count):
        made, reason = kinds[number % len(kinds)](good_cells(role, 1_000_000 + number))
        line = ",".join(made) if isinstance(made, list) else made
        rows.append((line if isinstance(line, bytes) else line.encode(), reason))
    return rows


def raw_lines(schema: Schema, role: str, good: int, bad: list[tuple[bytes, str]], seed: int) -> bytes:
    """A raw file: the header, then `good` good lines and the bad ones shuffled among each other."""
    lines = [",".join(good_cells(role, number)).encode() for number in range(good)] + [line for line, _ in bad]
    random.Random(f"{role} {seed}").shuffle(lines)
    return b"".join(line + b"\n" for line in [_header(getattr(schema, role)).encode(), *lines])


def _header(raw: RawFile) -> str:
    return raw.delimiter.join(c.header for c in raw.columns)


def _kinds(raw: RawFile, role: str, draw: random.Random) -> list[Maker]:
    assert role in ROLES

    def somewhere(cells: list[str], mark: bytes) -> bytes:
        line = ",".join(cells).encode()
        place = draw.randrange(1, len(cells[0]) + 1)
        return line[:place] + mark + line[place:]

    def changed(cells: list[str], place: int, text: str) -> list[str]:
        return [*cells[:place], text, *cells[place + 1:]]

    def truncated(cells: list[str]) -> tuple[str, str]:
        line = ",".join(cells)
        return line[:draw.randrange(1, line.rindex(","))], "wrong_column_count"

    kinds: list[Maker] = [
        truncated,
        lambda cells: (cells + ["9"] * draw.randrange(1, 5), "wrong_column_count"),
        lambda cells: (somewhere(cells, b'"'), "unparsable"),
        lambda cells: (somewhere(cells, b"\0"), "nul_byte"),
        lambda cells: (somewhere(cells, b"\xff" * draw.randrange(1, 3)), "invalid_utf8"),
        lambda cells: (" " * draw.randrange(3), "blank_line"),
        lambda cells: (_header(raw), "repeated_header")]
    for name, place in INTEGERS[role]:
        huge = (lambda: "1e" + str(draw.randrange(309, 9_999))) if name == "price" else (
            lambda: str(10 ** draw.randrange(19, 40)))
        kinds += [lambda cells, n=name, p=place, h=huge: (changed(cells, p, h()), f"out_of_range:{n}"),
                  lambda cells, n=name, p=place: (changed(cells, p, draw.choice(["x", "1 ", "0x1", "--1"])),
                                                  f"not_a_number:{n}")]
    if role in ENUMS:
        name, place = ENUMS[role]
        kinds += [lambda cells: (changed(cells, place, f"no{draw.randrange(99)}"), f"unknown_value:{name}"),
                  lambda cells: (changed(cells, 1, str(-draw.randrange(1, 10 ** 12))), "impossible_time"),
                  lambda cells: (changed(cells, 1, str(draw.randrange(2 * 10 ** 9, 10 ** 25))), "impossible_time")]
    if role == "impressions":
        kinds.append(lambda cells: (cells[:4] + draw.choice([["1", "1"], ["0", "0"]]), "contradictory_label"))
    return kinds
