"""MovieLens-100K as raw click logs: an impression a rating, a click a rating of 4 or 5, behaviours all ratings.

Reads RecBole's atomic files or GroupLens' originals; writes the four files of schemas/movielens.yaml. Every rating
stands in both logs: downstream a behaviour counts only strictly before an impression, which leaves earlier ratings.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Callable, Iterator
from zoneinfo import ZoneInfo

import pandas as pd

from mail_core.errors import InputError
from mail_core.schema.definition import RawFile, Schema

CLICK_RATING = 4
ZIP_PREFIX = 2
"""Leading characters of a zip code that become an attribute."""
KNOWN_SHARE = 0.5
"""Least share of the last day's users, by calendar, who have rated before; below it histories are laid out by order."""
GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
          "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")
_DAY_SECONDS = 86_400
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Rows written and how time was laid out."""

    ratings: int
    clicks: int
    users: int
    items: int
    days: int
    known_share: float
    """Share of users of the calendar's last day who rated before it."""
    by_order: bool
    """True: each user's own history was laid over the days by order; False: the calendar was scaled to the days."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file of one layout."""

    path: Path
    columns: tuple[str, ...]
    header: bool
    delimiter: str = "\t"
    encoding: str = "utf-8"

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of each line below the header, checked for the number of cells."""
        with open(self.path, encoding=self.encoding, newline="") as lines:
            try:
                for number, line in enumerate(lines, 1):
                    cells = line.rstrip("\r\n").split(self.delimiter)
                    if number == 1 and self.header:
                        if tuple(cells) != self.columns:
                            raise InputError(f"{self.path}, line 1: header {cells}, expected {list(self.columns)}")
                    elif len(cells) != len(self.columns):
                        expected = f"{len(self.columns)}: {', '.join(self.columns)}"
                        raise self.error(number, f"{len(cells)} fields", expected)
                    else:
                        yield number, cells
            except UnicodeDecodeError as error:
                raise InputError(f"{self.path}: not {self.encoding} text ({error})") from error

    def error(self, number: int, found: str, expected: str) -> InputError:
        return InputError(f"{self.path}, line {number}: {found}, expected {expected}")

    def whole(self, number: int, column: str, text: str, low: int, high: int | None = None) -> int:
        """A whole number in [low, high]; "4.0" is one too."""
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not value.is_integer() or value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise self.error(number, f"{column} {text!r}", f"a whole number {bounds}")
        return int(value)


def import_movielens(folder: str, out: str, schema: Schema) -> ImportSummary:
    """Write impressions, behaviours, users and items as `schema` (movielens) wants them to the folder `out`.

    Raises:
        InputError: neither layout's files are there, a wrong header, or a bad line (its number is named).
    """
    assert schema.last_day is not None, "the movielens schema states its days"
    ratings_source, users_source, items_source = _sources(Path(folder))
    ratings, users = _read_ratings(ratings_source), _read_users(users_source)
    items = _read_items(items_source)
    days = (schema.last_day - schema.first_day).days + 1
    midnight = datetime.combine(schema.first_day, datetime.min.time(), ZoneInfo(schema.timezone))
    share = known_share(ratings, days)
    by_order = share < KNOWN_SHARE
    layout = "each user's history is laid out by order" if by_order else "the calendar is scaled"
    logger.info("calendar cut into %d days: %.0f %% of the last day's users are known; %s", days, 100 * share, layout)
    laid_out = _time_by_order if by_order else _time_by_calendar
    ratings["time"] = int(midnight.timestamp()) + laid_out(ratings, days * _DAY_SECONDS)
    original = pd.to_datetime(ratings["timestamp"], unit="s", utc=True)
    ratings["rated_hour"], ratings["rated_weekday"] = original.dt.hour, original.dt.dayofweek + 1
    ratings["click"] = (ratings["rating"] >= CLICK_RATING).astype(int)
    ratings = ratings.sort_values(["time", "user_id", "item_id"], ignore_index=True)
    Path(out).mkdir(parents=True, exist_ok=True)
    for raw, table in ((schema.impressions, ratings), (schema.behaviors, ratings), (schema.users, users),
                       (schema.items, items)):
        _write(Path(out), raw, table)
    return ImportSummary(ratings=len(ratings), clicks=int(ratings["click"].sum()), users=len(users), items=len(items),
                         days=days, known_share=share, by_order=by_order)


def known_share(ratings: pd.DataFrame, days: int) -> float:
    """Share of the last day's users who rated before it, were the calendar cut into `days` equal parts."""
    day = _time_by_calendar(ratings, days)
    last = set(ratings.loc[day == days - 1, "user_id"])
    return len(last & set(ratings.loc[day < days - 1, "user_id"])) / len(last)


def _time_by_calendar(ratings: pd.DataFrame, length: int) -> pd.Series:
    """The calendar scaled to [0, length), whole units; order is kept, ties may come."""
    first = ratings["timestamp"].min()
    return (ratings["timestamp"] - first) * length // (ratings["timestamp"].max() - first + 1)


def _time_by_order(ratings: pd.DataFrame, length: int) -> pd.Series:
    """Rating i of a user's n (ties by item) at (i + 0.5) / n of the length: whole seconds, increasing within a user."""
    by_user = ratings.sort_values(["user_id", "timestamp", "item_id"]).groupby("user_id")["item_id"]
    position, count = by_user.cumcount(), by_user.transform("size")
    assert count.max() <= length, "a rating a second at most, since a user rates an item once"
    return ((2 * position + 1) * length // (2 * count)).reindex(ratings.index)


def _sources(folder: Path) -> tuple[_Source, _Source, _Source]:
    """Ratings, users, items in the layout whose files are all there."""
    recbole = (
        _Source(path=folder / "ml-100k.inter", header=True,
                columns=("user_id:token", "item_id:token", "rating:float", "timestamp:float")),
        _Source(path=folder / "ml-100k.user", header=True,
                columns=("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")),
        _Source(path=folder / "ml-100k.item", header=True,
                columns=("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")))
    grouplens = (
        _Source(path=folder / "u.data", header=False, columns=("user_id", "item_id", "rating", "timestamp")),
        _Source(path=folder / "u.user", header=False, delimiter="|", encoding="latin-1",
                columns=("user_id", "age", "gender", "occupation", "zip_code")),
        _Source(path=folder / "u.item", header=False, delimiter="|", encoding="latin-1",
                columns=("item_id", "movie_title", "release_date", "video_release_date", "url", *GENRES)))
    for layout in (recbole, grouplens):
        missing = [source.path.name for source in layout if not source.path.is_file()]
        if not missing:
            return layout
        if len(missing) < len(layout):
            raise InputError(f"{folder}: {', '.join(missing)} is missing beside the other files of its layout")
    names = ", or ".join(", ".join(source.path.name for source in layout) for layout in (recbole, grouplens))
    raise InputError(f"{folder}: no MovieLens-100K files; expected {names}")


def _read_ratings(source: _Source) -> pd.DataFrame:
    """Columns user_id, item_id, rating, timestamp (int64, seconds)."""
    seen: set[tuple[int, int]] = set()
    rows = []
    for number, (user, item, rating, timestamp) in source.rows():
        pair = source.whole(number, "user_id", user, 0), source.whole(number, "item_id", item, 0)
        if pair in seen:
            raise source.error(number, f"user {user} rates item {item} again", "one rating a user and item")
        seen.add(pair)
        rows.append((*pair, source.whole(number, "rating", rating, 1, 5),
                     source.whole(number, "timestamp", timestamp, 0)))
    if not rows:
        raise InputError(f"{source.path}: no ratings")
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def _read_users(source: _Source) -> pd.DataFrame:
    """Columns of the schema's users; empty cells are None."""
    rows = []
    for number, (user, age, gender, occupation, zip_code) in source.rows():
        if gender not in ("F", "M", ""):
            raise source.error(number, f"gender {gender!r}", "F, M or nothing")
        rows.append((source.whole(number, "user_id", user, 0), source.whole(number, "age", age, 0) if age else None,
                     gender or None, occupation or None, zip_code[:ZIP_PREFIX] or None))
    return _keyed(source, rows, ["user_id", "age", "gender", "occupation", "zip_prefix"])


def _read_items(source: _Source) -> pd.DataFrame:
    """Columns of the schema's items, from either layout; a year or genre that is not known is None."""
    listed = source.delimiter == "\t"
    genres: Callable[[list[str]], list[str]] = (
        (lambda cells: cells[3].split()) if listed
        else (lambda cells: [genre for genre, flag in zip(GENRES, cells[5:]) if flag == "1"]))
    rows = []
    for number, cells in source.rows():
        year = cells[2] if listed else cells[2][-4:]  # 01-Jan-1995
        known = [genre for genre in genres(cells) if genre != GENRES[0]]
        for genre in known:
            if genre not in GENRES:
                raise source.error(number, f"genre {genre!r}", f"some of {', '.join(GENRES)}")
        dated = len(year) == 4 and year.isascii() and year.isdigit()
        rows.append((source.whole(number, "item_id", cells[0], 0), int(year) if dated else None,
                     "|".join(known) or None))
    return _keyed(source, rows, ["item_id", "year", "genres"])


def _keyed(source: _Source, rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=columns)
    again = table[columns[0]][table[columns[0]].duplicated()]
    if len(again):
        raise InputError(f"{source.path}: {columns[0]} {again.iloc[0]} stands there twice, expected one line each")
    return table.convert_dtypes()


def _write(out: Path, raw: RawFile, table: pd.DataFrame) -> None:
    """The schema's columns of `table` under their headers; replaced in one move."""
    attempt = out / f".{raw.file}.part"
    table[[c.name for c in raw.columns]].to_csv(attempt, sep=raw.delimiter, header=[c.header for c in raw.columns],
                                                index=False, lineterminator="\n")
    os.replace(attempt, out / raw.file)
