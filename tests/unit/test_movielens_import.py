"""MovieLens import on a tiny folder made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mail_core.errors import InputError
from mail_core.schema.definition import Schema
from mail_core.simulation.movielens import import_movielens

START, DAY = 946_684_800, 86_400  # 2000-01-01 UTC
RATINGS = [  # user, item, rating, time: each user rates in one sitting of a calendar of 100 days
    (1, 10, 5, 1_000_000), (1, 12, 3, 1_000_000), (1, 11, 4, 1_000_500), (1, 13, 1, 1_000_900),
    (2, 10, 4, 9_600_000), (2, 11, 2, 9_600_100), (3, 12, 4, 9_640_000)]
USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "V3N4P"), (3, 30, "M", "", "")]


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    folder = tmp_path / "recbole"
    folder.mkdir()
    write(folder / "ml-100k.inter", ["user_id:token\titem_id:token\trating:float\ttimestamp:float",
                                     *("\t".join(map(str, row)) for row in RATINGS)])
    write(folder / "ml-100k.user", ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
                                    *("\t".join(map(str, row)) for row in USERS)])
    write(folder / "ml-100k.item", ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
                                    "10\tToy Story\t1995\tAnimation Children's Comedy", "11\tFargo\t1996\tFilm-Noir",
                                    "12\tunkonwn\tunkonwn\tunknown", "13\tHeat, The\tV\tAction Crime"])
    return folder


@pytest.fixture
def grouplens(tmp_path: Path) -> Path:
    folder = tmp_path / "grouplens"
    folder.mkdir()
    write(folder / "u.data", ["\t".join(map(str, row)) for row in RATINGS])
    write(folder / "u.user", ["|".join(map(str, row)) for row in USERS])
    flags = {10: (3, 4, 5), 11: (10,), 12: (0,), 13: (1, 6)}
    titles = {10: "Toy Story (1995)|01-Jan-1995", 11: "Fargo é (1996)|14-Feb-1996", 12: "unknown|", 13: "Heat|"}
    write(folder / "u.item", [f"{item}|{titles[item]}||http://x|" + "|".join(str(int(g in genres)) for g in range(19))
                              for item, genres in flags.items()], "latin-1")
    return folder


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding=encoding)


def replaced(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    write(path, lines)


def imported(folder: Path, out: Path, schema: Schema, name: str) -> pd.DataFrame:
    import_movielens(str(folder), str(out), schema)
    return pd.read_csv(out / f"{name}.csv", dtype=str, keep_default_na=False)


def test_files_have_the_schemas_columns_in_order(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    for raw in (movielens.impressions, movielens.behaviors, movielens.users, movielens.items):
        table = imported(recbole, tmp_path / "out", movielens, raw.file.removesuffix(".csv"))
        assert list(table.columns) == [c.header for c in raw.columns]


def test_a_click_is_a_rating_of_four_or_five(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    table = imported(recbole, tmp_path / "out", movielens, "impressions")
    clicks = {(int(u), int(i)): int(c) for u, i, c in zip(table["user_id"], table["item_id"], table["click"])}
    assert clicks == {(u, i): int(r >= 4) for u, i, r, _ in RATINGS}


def test_histories_are_laid_out_by_order_with_ties_by_item(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    summary = import_movielens(str(recbole), str(tmp_path / "out"), movielens)
    assert summary.by_order and summary.known_share == 0.0
    table = pd.read_csv(tmp_path / "out" / "impressions.csv")
    times = {(row.user_id, row.item_id): row.time - START for row in table.itertuples()}
    assert [times[1, item] for item in (10, 12, 11, 13)] == [DAY, 3 * DAY, 5 * DAY, 7 * DAY]
    assert [times[2, item] for item in (10, 11)] == [2 * DAY, 6 * DAY]
    assert times[3, 12] == 4 * DAY


def test_a_calendar_that_keeps_users_known_is_only_scaled(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    write(recbole / "ml-100k.inter", ["user_id:token\titem_id:token\trating:float\ttimestamp:float",
                                      "1\t10\t5\t1000", "1\t11\t4\t1799", "2\t10\t2\t1100", "2\t11\t2.0\t1750"])
    summary = import_movielens(str(recbole), str(tmp_path / "out"), movielens)
    assert not summary.by_order and summary.known_share == 1.0
    table = pd.read_csv(tmp_path / "out" / "impressions.csv")
    assert list((table["time"] - START) // 864) == [0, 100, 750, 799]
    assert list(table["user_id"]) == [1, 2, 2, 1]


def test_rated_hour_and_weekday_come_from_the_original_time(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    table = imported(recbole, tmp_path / "out", movielens, "impressions").set_index(["user_id", "item_id"])
    # 9_600_000 s = 1970-04-22 02:40 UTC, a Wednesday.
    assert (table.loc[("2", "10"), "rated_hour"], table.loc[("2", "10"), "rated_weekday"]) == ("2", "3")


def test_behaviors_are_all_ratings_at_the_impressions_times(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    shown = imported(recbole, tmp_path / "out", movielens, "impressions")
    behaved = imported(recbole, tmp_path / "out", movielens, "behaviors")
    assert behaved[["user_id", "time", "item_id"]].equals(shown[["user_id", "time", "item_id"]])
    ratings = {(int(row.user_id), int(row.item_id)): row.rating for row in behaved.itertuples()}
    assert ratings == {(u, i): str(r) for u, i, r, _ in RATINGS}


def test_profiles_and_items_keep_what_is_known(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    users = imported(recbole, tmp_path / "out", movielens, "users").to_numpy().tolist()
    assert users == [["1", "24", "M", "technician", "85"], ["2", "53", "F", "other", "V3"], ["3", "30", "M", "", ""]]
    items = imported(recbole, tmp_path / "out", movielens, "items").to_numpy().tolist()
    assert items == [["10", "1995", "Animation|Children's|Comedy"], ["11", "1996", "Film-Noir"], ["12", "", ""],
                     ["13", "", "Action|Crime"]]


def test_grouplens_originals_give_the_same_files(recbole: Path, grouplens: Path, tmp_path: Path,
                                                 movielens: Schema) -> None:
    import_movielens(str(recbole), str(tmp_path / "a"), movielens)
    import_movielens(str(grouplens), str(tmp_path / "b"), movielens)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["behaviors.csv", "impressions.csv", "items.csv", "users.csv"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("file, line, text, message", [
    ("ml-100k.inter", 3, "1\t12\t3", "line 3: 3 fields, expected 4"),
    ("ml-100k.inter", 4, "1\t11\t6\t1000500", "line 4: rating '6', expected a whole number from 1 to 5"),
    ("ml-100k.inter", 4, "1\t11\t4\tnoon", "line 4: timestamp 'noon'"),
    ("ml-100k.inter", 4, "1\t10\t4\t1000500", "line 4: user 1 rates item 10 again"),
    ("ml-100k.inter", 1, "user\titem\trating\ttime", "line 1: header"),
    ("ml-100k.user", 2, "1\t24\tX\ttechnician\t85711", "line 2: gender 'X', expected F, M"),
    ("ml-100k.user", 3, "1\t53\tF\tother\t94043", "user_id 1 stands there twice"),
    ("ml-100k.item", 2, "10\tToy Story\t1995\tCartoon", "line 2: genre 'Cartoon'"),
])
def test_a_bad_line_is_named(recbole: Path, tmp_path: Path, movielens: Schema, file: str, line: int, text: str,
                             message: str) -> None:
    replaced(recbole / file, line, text)
    with pytest.raises(InputError) as caught:
        import_movielens(str(recbole), str(tmp_path / "out"), movielens)
    assert message in str(caught.value) and file in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(recbole: Path, tmp_path: Path, movielens: Schema) -> None:
    (recbole / "ml-100k.user").unlink()
    with pytest.raises(InputError, match="ml-100k.user is missing"):
        import_movielens(str(recbole), str(tmp_path / "out"), movielens)
    with pytest.raises(InputError, match="u.data"):
        import_movielens(str(tmp_path), str(tmp_path / "out"), movielens)
