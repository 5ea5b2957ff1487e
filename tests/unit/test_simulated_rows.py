"""Rows of any schema from a planted world: cells that the schema allows, and that tell what the world knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from mail_core.schema.definition import Column, RawFile, Schema
from mail_core.schema.reader import load_schema, parse_schema
from mail_core.simulation.attributes import ATTRIBUTES
from mail_core.simulation.draws import Logs, Samplers, Users, draw_logs, draw_users
from mail_core.simulation.planted import Stream, WorldConfig, draw_items
from mail_core.simulation.rows import AlimamaRows, SchemaRows, raw_rows

CONFIG = WorldConfig(users=400, items=150, attribute_strength=1.0, behaviors_per_user=15)
START = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Made:
    """A world's draws and their rows as texts."""

    schema: Schema
    users: Users
    logs: Logs
    impressions: pd.DataFrame
    behaviors: pd.DataFrame
    profiles: pd.DataFrame
    items: pd.DataFrame

    @property
    def files(self) -> list[tuple[RawFile, pd.DataFrame]]:
        return [(self.schema.impressions, self.impressions), (self.schema.behaviors, self.behaviors),
                (self.schema.users, self.profiles), (self.schema.items, self.items)]


def make(schema: Schema) -> Made:
    items = draw_items(CONFIG)
    users = draw_users(CONFIG, items, 0, CONFIG.users)
    logs = draw_logs(CONFIG, items, Samplers(items), users, CONFIG.stream(Stream.LOGS))
    rows = raw_rows(schema, CONFIG, items)
    assert isinstance(rows, SchemaRows)
    converted_N = logs.click_N & (np.arange(len(logs.click_N)) % 2 == 0)
    given = converted_N if schema.impressions.conversion else None
    return Made(schema=schema, users=users, logs=logs,
                impressions=rows.impressions(users, logs, given, START).to_pandas(),
                behaviors=rows.behaviors(users, logs, START).to_pandas(), profiles=rows.profiles(users).to_pandas(),
                items=rows.items().to_pandas())


@pytest.fixture(scope="module")
def made() -> Made:
    return make(load_schema("livestream"))


def check_cells(cells: pd.Series, column: Column) -> None:
    """Each cell is one that ingestion takes."""
    values = cells[~cells.isin(column.nulls)]
    if column.separator:
        values = values.str.split(column.separator, regex=False).explode()
    assert len(values) and (values != "").all(), column.name
    if column.type != "string":
        numbers = values.astype(float if column.type == "double" else "int64")
        assert column.minimum is None or numbers.min() >= column.minimum, column.name
        assert column.maximum is None or numbers.max() <= column.maximum, column.name
    if column.values:
        assert set(values) <= {str(value) for value in column.values}, column.name


@pytest.mark.parametrize("name", ["livestream", "movielens"])
def test_every_column_is_there_in_order_with_cells_that_its_schema_allows(name: str) -> None:
    for raw, table in make(load_schema(name)).files:
        assert list(table.columns) == [column.name for column in raw.columns]
        for column in raw.columns:
            check_cells(table[column.name], column)


def test_only_columns_that_may_be_null_are_and_each_of_them_is_at_times(made: Made) -> None:
    for raw, table in made.files:
        for column in raw.columns:
            assert (table[column.name] == "").any() == bool(column.nulls), column.name


def test_outcomes_are_the_worlds(made: Made) -> None:
    entered = made.impressions["entered"] == "1"
    np.testing.assert_array_equal(entered, made.logs.click_N)
    followed = made.impressions["followed"] == "1"
    assert followed.any() and not (followed & ~entered).any()


def test_a_behavior_names_the_values_of_its_room(made: Made) -> None:
    rooms = made.items.set_index("room_id")
    for column in ("category_id", "guild_id"):
        np.testing.assert_array_equal(made.behaviors[column], rooms.loc[made.behaviors["room_id"], column])
    assert rooms["category_id"].nunique() > 10 and rooms["streamer_id"].nunique() > 10
    shares = made.behaviors["event"].value_counts(normalize=True)
    assert list(shares.index[:2]) == ["enter", "watch"] and len(shares) == 7


def test_profiles_tell_of_the_attributes_by_levels_and_by_numbers(made: Made) -> None:
    shown = made.profiles["user_id"].astype(int) - made.users.first_id
    names = [column.name for column in made.schema.users.columns[1:]]
    assert len(names) > 2 * len(ATTRIBUTES)
    for name in ("age", "vip_level", "friends"):
        level = made.users.levels_UA[shown, names.index(name) % len(ATTRIBUTES)]
        known = (level >= 0) & (made.profiles[name] != "")
        rising = made.profiles[name][known].astype(float).rank().corr(pd.Series(level)[known])
        assert rising > 0.6, name


def test_dense_columns_of_items_differ_and_tell_of_the_world(made: Made) -> None:
    dense = [f.column for f in made.schema.group("item") if f.kind == "dense"]
    assert len(dense) == 89
    numbers = made.items[dense].replace("", None).astype(float)
    assert (numbers.nunique() > 3).all() and (numbers.rank().corr().abs().to_numpy() > 0.6).sum() > 3 * len(dense)


def test_text_that_means_null_differs_between_an_item_and_a_behavior() -> None:
    text = load_schema("livestream").text
    of_rooms = "guild_id: *id_or_none, streamer_id"
    assert of_rooms in text
    made = make(parse_schema(text.replace(of_rooms, "guild_id: {type: long, nulls: [none]}, streamer_id"), "x"))
    assert (made.items["guild_id"] == "none").any() and (made.items["guild_id"] != "").all()
    assert (made.behaviors["guild_id"] == "").any() and (made.behaviors["guild_id"] != "none").all()


def test_the_same_world_gives_the_same_cells(made: Made) -> None:
    for (_, table), (_, again) in zip(made.files, make(made.schema).files):
        pd.testing.assert_frame_equal(table, again)


def test_alimama_keeps_its_published_rows() -> None:
    for name in ("alimama", "alimama_conversions"):
        assert isinstance(raw_rows(load_schema(name), CONFIG, draw_items(CONFIG)), AlimamaRows)
