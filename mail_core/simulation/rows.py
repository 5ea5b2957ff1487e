"""Draws of a world as rows of raw files: Alimama's columns as published, or any schema's by roles, types and bounds."""

from __future__ import annotations

from typing import Mapping, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtr, ndtri

from mail_core.schema.definition import Column, RawFile, Schema
from mail_core.simulation.attributes import ATTRIBUTES, MISSING_LEVEL, level_bounds
from mail_core.simulation.draws import BEHAVIOR_TYPES, BLOCK, PIDS, Logs, Users
from mail_core.simulation.planted import NO_BRAND, Items, Stream, WorldConfig

_LEVELS = 20
"""Values of a categorical column whose values the schema does not bound."""
_EMPTY_SHARE = 0.1
"""Share of empty cells in a column that may be NULL."""
_NOISE = 0.3
"""Of an item's column, in standard deviations of what it shows."""
_SEVERAL = 3
"""Values of a multi-valued cell, at most."""


class AlimamaRows:
    """The four files' rows as published, with the world's attributes, categories, brands and prices as they are.

    Times are drawn from the window's first second on; `start` is that second. `converted_N` is None where the schema
    names no conversion.
    """

    def __init__(self, schema: Schema, items: Items):
        self._schema, self._items = schema, items

    def items(self) -> pa.Table:
        items = self._items
        return pa.table({"adgroup_id": np.arange(len(items.brand_I)) + 1, "cate_id": items.category_I + 1,
                         "campaign_id": items.campaign_I, "customer": items.customer_I,
                         "brand": _brand_cells(items.brand_I), "price": items.price_I})

    def impressions(self, users: Users, logs: Logs, converted_N: np.ndarray | None, start: int) -> pa.Table:
        click = logs.click_N.astype(np.int32)
        shown = pa.table({"user": logs.impression_user_N + users.first_id, "time_stamp": logs.impression_time_N + start,
                          "adgroup_id": logs.item_N + 1, "pid": np.array(PIDS)[logs.pid_N],
                          "nonclk": 1 - click, "clk": click})
        if converted_N is None:
            return shown
        assert self._schema.impressions.conversion is not None
        return shown.append_column(self._schema.impressions.conversion, pa.array(converted_N.astype(np.int32)))

    def behaviors(self, users: Users, logs: Logs, start: int) -> pa.Table:
        return pa.table({"user": logs.behavior_user_N + users.first_id, "time_stamp": logs.behavior_time_N + start,
                         "btag": np.array(BEHAVIOR_TYPES)[logs.btag_N],
                         "cate": self._items.category_I[logs.touched_N] + 1,
                         "brand": _brand_cells(self._items.brand_I[logs.touched_N])})

    def profiles(self, users: Users) -> pa.Table:
        rows = np.flatnonzero(users.has_profile_U)
        columns = {"userid": pa.array(rows + users.first_id)}
        for i, attribute in enumerate(ATTRIBUTES):
            level = users.levels_UA[rows, i]
            columns[attribute.name] = pa.array(level + attribute.first_value, mask=level == MISSING_LEVEL)
        return pa.table(columns)


def _brand_cells(brand_N: np.ndarray) -> pa.Array:
    return pa.array(brand_N, mask=brand_N == NO_BRAND).cast(pa.string()).fill_null("NULL")


class SchemaRows:
    """The same for any schema: every column filled by its role, type, values and bounds, from what the world knows.

    A profile's columns show the world's attributes in turn, so that together they tell at most what the attributes
    tell. An item's columns show its category, brand, customer and campaign (whole numbers without bounds, and what a
    behaviour names of an item) or its latent directions, quality, popularity and price in turn, with noise. Context
    tells nothing, as in Alimama's world. A column that may be NULL is so in a tenth of the rows, one that shows brands
    also where there is none.
    """

    def __init__(self, schema: Schema, config: WorldConfig, items: Items):
        self._schema, self._config = schema, config
        self._dense = {(f.group, f.column) for f in schema.features if f.kind == "dense"}
        self._items = self._item_cells(items)

    def items(self) -> pa.Table:
        return _table(self._schema.items, self._items)

    def profiles(self, users: Users) -> pa.Table:
        raw, rng = self._schema.users, self._rng(Stream.PROFILE_CELLS, users)
        row_U = np.flatnonzero(users.has_profile_U)
        lower_UA, upper_UA = (ndtr(bound) for bound in level_bounds(users.levels_UA[row_U]))
        cells = {raw.key: pa.array(row_U + users.first_id)}
        for i, column in enumerate(_others(raw, cells)):
            low_U, high_U = (bound[:, i % len(ATTRIBUTES)] for bound in (lower_UA, upper_UA))
            cells[column.name] = self._cells(rng, "user", column, low_U + (high_U - low_U) * rng.random(len(row_U)))
        return _table(raw, cells)

    def impressions(self, users: Users, logs: Logs, converted_N: np.ndarray | None, start: int) -> pa.Table:
        log, rng = self._schema.impressions, self._rng(Stream.IMPRESSION_CELLS, users)
        click_N = logs.click_N.astype(np.int64)
        roles = {log.user: logs.impression_user_N + users.first_id, log.time: logs.impression_time_N + start,
                 log.item: logs.item_N + 1, log.label: click_N, log.negative_label: 1 - click_N,
                 log.conversion: converted_N if converted_N is None else converted_N.astype(np.int64)}
        cells = {name: pa.array(values) for name, values in roles.items() if name is not None}
        cells |= {c.name: self._cells(rng, "context", c, rng.random(len(click_N))) for c in _others(log, cells)}
        return _table(log, cells)

    def behaviors(self, users: Users, logs: Logs, start: int) -> pa.Table:
        log, rng, count = self._schema.behaviors, self._rng(Stream.BEHAVIOR_CELLS, users), len(logs.touched_N)
        cells = {log.user: pa.array(logs.behavior_user_N + users.first_id),
                 log.time: pa.array(logs.behavior_time_N + start)}
        for column, feature in log.item_fields.items():
            cells[column] = self._items[self._schema.feature(feature).column].take(pa.array(logs.touched_N))
        # The cube of a uniform draw makes the first actions frequent and the last ones rare.
        cells |= {c.name: self._cells(rng, "behavior", c, rng.random(count) ** (3 if c.name == log.action else 1))
                  for c in _others(log, cells)}
        return _table(log, cells)

    def _rng(self, stream: Stream, users: Users) -> np.random.Generator:
        return self._config.stream(stream, users.first_id // BLOCK)

    def _item_cells(self, items: Items) -> dict[str, pa.Array]:
        raw, log, rng = self._schema.items, self._schema.behaviors, self._config.stream(Stream.ITEM_CELLS)
        shared = {self._schema.feature(feature).column: log.column(column)
                  for column, feature in log.item_fields.items()}
        known = [items.category_I + 1, items.brand_I, items.customer_I, items.campaign_I]
        signals = [*items.latent_IK.T, items.effect_I, np.log(items.weight_I), np.log(items.price_I)]
        cells, ids = {raw.key: pa.array(np.arange(len(items.brand_I)) + 1)}, 0
        for i, column in enumerate(_others(raw, cells)):
            nullable = bool(column.nulls) and (column.name not in shared or bool(shared[column.name].nulls))
            if self._is_id(column, column.name in shared):
                code_I, ids = known[ids % len(known)], ids + 1
                cells[column.name] = _emptied(rng, pa.array(code_I, mask=(code_I == NO_BRAND) & nullable), nullable)
                continue
            signal_I = signals[i % len(signals)]
            noisy_I = signal_I + _NOISE * signal_I.std() * rng.standard_normal(len(signal_I))
            quantile_I = (noisy_I.argsort(kind="stable").argsort() + 0.5) / len(noisy_I)
            cells[column.name] = _emptied(rng, self._values(rng, "item", column, quantile_I), nullable)
        return cells

    def _is_id(self, column: Column, of_behavior: bool) -> bool:
        """Whether an item's column holds IDs of something that has many items."""
        bounded = column.values or column.separator or column.minimum is not None or column.maximum is not None
        fits = of_behavior or column.type in ("int", "long")
        return fits and not bounded and ("item", column.name) not in self._dense

    def _cells(self, rng: np.random.Generator, group: str, column: Column, quantile_N: np.ndarray) -> pa.Array:
        return _emptied(rng, self._values(rng, group, column, quantile_N), bool(column.nulls))

    def _values(self, rng: np.random.Generator, group: str, column: Column, quantile_N: np.ndarray) -> pa.Array:
        """A column whose values rise with the quantiles (N,) in [0, 1)."""
        if column.separator:
            return _several(rng, column, quantile_N)
        if (group, column.name) in self._dense or column.type in ("double", "epoch_seconds"):
            return pa.array(_numbers(column, np.clip(quantile_N, 1e-6, 1 - 1e-6)))
        return _levels(column, quantile_N)


Rows: TypeAlias = AlimamaRows | SchemaRows


def raw_rows(schema: Schema, config: WorldConfig, items: Items) -> Rows:
    """Alimama's rows for a schema with Alimama's profile columns, else rows made by the schema alone."""
    published = {"userid", *(attribute.name for attribute in ATTRIBUTES)}
    if {column.name for column in schema.users.columns} == published:
        return AlimamaRows(schema, items)
    return SchemaRows(schema, config, items)


def _emptied(rng: np.random.Generator, cells: pa.Array, nullable: bool) -> pa.Array:
    """`cells` with an empty share where they may be NULL."""
    empty_N = (rng.random(len(cells)) < _EMPTY_SHARE) & nullable
    return pc.if_else(pa.array(empty_N), pa.scalar(None, cells.type), cells)


def _others(raw: RawFile, cells: Mapping[str, pa.Array]) -> list[Column]:
    """The columns that have no cells yet."""
    return [column for column in raw.columns if column.name not in cells]


def _table(raw: RawFile, cells: Mapping[str, pa.Array]) -> pa.Table:
    """The schema's columns as the texts of a file."""
    texts = {column.name: cells[column.name].cast(pa.string()) for column in raw.columns}
    return pa.table({c.name: texts[c.name].fill_null(c.nulls[0]) if c.nulls else texts[c.name] for c in raw.columns})


def _levels(column: Column, quantile_N: np.ndarray) -> pa.Array:
    """Equally many rows for each value: the schema's, whole numbers within its bounds, or `_LEVELS` made up."""
    if column.values:
        return pa.array(column.values).take(pa.array((quantile_N * len(column.values)).astype(np.int64)))
    low = 0 if column.minimum is None else int(column.minimum)
    high = low + _LEVELS - 1 if column.maximum is None else int(column.maximum)
    level_N = low + (quantile_N * (high - low + 1)).astype(np.int64)
    return pa.array([f"{column.name}_{level}" for level in level_N]) if column.type == "string" else pa.array(level_N)


def _numbers(column: Column, quantile_N: np.ndarray) -> np.ndarray:
    """Even between two bounds, else skewed like counts and prices; normal where nothing bounds a fraction."""
    low, high = column.minimum, column.maximum
    if low is not None and high is not None:
        number_N = low + (high - low) * quantile_N
    elif low is None and column.type == "double":
        number_N = ndtri(quantile_N)
    else:
        number_N = (low or 0) + np.exp(2 + 1.2 * ndtri(quantile_N))
    return np.round(number_N, 4) if column.type == "double" else number_N.astype(np.int64)


def _several(rng: np.random.Generator, column: Column, quantile_N: np.ndarray) -> pa.Array:
    """Cells of one to `_SEVERAL` values, the first by the quantile."""
    cells = joined = _levels(column, quantile_N).cast(pa.string())
    count_N = rng.integers(_SEVERAL, size=len(quantile_N))
    for further in range(1, _SEVERAL):
        value = _levels(column, (quantile_N + further / _SEVERAL) % 1).cast(pa.string())
        joined = pc.binary_join_element_wise(joined, value, column.separator)
        cells = pc.if_else(pa.array(count_N >= further), joined, cells)
    return cells
