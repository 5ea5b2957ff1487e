"""A saved planted world: the truth behind simulated logs, for `evaluate` and for A/B simulation. No engine needed.

A folder of world.json (configuration, click function), items.parquet and users/part-*.parquet.

Shapes: N rows, U distinct users, A attributes, K latent dimensions, P particles.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join
from mail_core.simulation.attributes import ATTRIBUTES, MISSING_LEVEL, level_bounds, posterior
from mail_core.simulation.draws import Users
from mail_core.simulation.planted import Items, Stream, WorldConfig, sigmoid

FORMAT = "mail-planted-world-1"
PARTICLES = 1_024
_CONVERSION_EFFECT = "conversion_effect"
_CELLS = 1_000_000  # rows x particles of one step of the attribute-only predictor


@dataclass(frozen=True, kw_only=True)
class World:
    """Truth by user and item ID. IDs are those of the simulated logs."""

    config: WorldConfig
    intercept: float
    interest_scale: float
    attribute_weights_AK: np.ndarray
    user_ids_U: np.ndarray
    """Ascending."""
    user_latent_UK: np.ndarray
    levels_UA: np.ndarray
    """Observed attribute levels; MISSING_LEVEL for empty cells and for users without a profile row."""
    item_ids_I: np.ndarray
    """Ascending."""
    item_latent_IK: np.ndarray
    item_effect_I: np.ndarray
    conversion_effect_I: np.ndarray | None
    """None in a world that an older simulator wrote."""

    @classmethod
    def load(cls, folder: str) -> World:
        """Read the world beside simulated logs (`DIR/world`), local or in an object store.

        Raises:
            InputError: no world there, one of an unfinished simulation, or one of another format.
        """
        files, path = filesystem(folder)
        try:
            with files.open_input_stream(f"{path}/world.json") as stream:
                document = json.loads(stream.read())
        except (FileNotFoundError, ValueError) as error:
            raise InputError(f"{join(folder, 'world.json')}: not a finished simulation's world ({error})") from error
        if document.get("format") != FORMAT:
            raise InputError(f"{join(folder, 'world.json')}: format {document.get('format')!r}, expected {FORMAT!r}")
        config = WorldConfig(**document["config"])
        parts = sorted(info.path for info in files.get_file_info(fs.FileSelector(f"{path}/users")))
        users = pa.concat_tables([pq.read_table(part, filesystem=files) for part in parts]).sort_by("user")
        items = pq.read_table(f"{path}/items.parquet", filesystem=files).sort_by("item")
        levels = np.stack([users[a.name].fill_null(MISSING_LEVEL).to_numpy() for a in ATTRIBUTES], axis=1)
        return cls(config=config, intercept=document["intercept"], interest_scale=document["interest_scale"],
                   attribute_weights_AK=np.array(document["attribute_weights"]),
                   user_ids_U=users["user"].to_numpy(), user_latent_UK=_latents(users, config.dimensions),
                   levels_UA=levels, item_ids_I=items["item"].to_numpy(),
                   item_latent_IK=_latents(items, config.dimensions), item_effect_I=items["effect"].to_numpy(),
                   conversion_effect_I=(items[_CONVERSION_EFFECT].to_numpy() if _CONVERSION_EFFECT in items.column_names
                                        else None))

    def click_probability(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N,) float64: the probability that clicks were drawn from, of user IDs (N,) on item IDs (N,).

        Raises:
            InputError: an ID that is not in this world.
        """
        interest_N, item_N = self._interest(users, items)
        return sigmoid(self.intercept + self.interest_scale * interest_N + self.item_effect_I[item_N])

    def conversion_probability(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N,) float64: the probability that a conversion follows a click of user IDs (N,) on item IDs (N,).

        Raises:
            InputError: an ID that is not in this world, or a world without conversions.
        """
        if self.conversion_effect_I is None:
            raise InputError("this world was written before the simulator knew conversions; run simulate_logs again")
        interest_N, item_N = self._interest(users, items)
        return sigmoid(self.config.conversion_interest_scale * interest_N + self.conversion_effect_I[item_N])

    def attribute_only_probability(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N,) float64: E[click probability | the user's observed attributes], by importance sampling.

        The best that a predictor can do which knows the world and the item but of the user only the profile (that an
        item was shown is taken to tell nothing about the user).

        Raises:
            InputError: an ID that is not in this world.
        """
        user_N, item_N = self._rows(users, items)
        distinct_U, inverse_N = np.unique(user_N, return_inverse=True)
        normal_PK = self.config.stream(Stream.ORACLE).standard_normal((PARTICLES, self.config.dimensions))
        order_N = np.argsort(inverse_N, kind="stable")
        start_U = np.searchsorted(inverse_N[order_N], np.arange(len(distinct_U) + 1))
        result_N, first = np.empty(len(user_N)), 0
        while first < len(distinct_U):
            # As many users as fit by their rows, at least one; a heavy user's rows are cut below.
            fitting = np.searchsorted(start_U, start_U[first] + _CELLS // PARTICLES, side="right") - 1
            last = min(max(int(fitting), first + 1), first + _CELLS // PARTICLES)
            lower_UA, upper_UA = level_bounds(self.levels_UA[distinct_U[first:last]])
            sample = posterior(lower_UA, upper_UA, self.attribute_weights_AK, self.config.attribute_strength, normal_PK)
            for begin in range(start_U[first], start_U[last], _CELLS // PARTICLES):
                row = order_N[begin:min(begin + _CELLS // PARTICLES, start_U[last])]
                who, item = inverse_N[row] - first, item_N[row]
                interest_NP = np.einsum("npk,nk->np", sample.latent_UPK[who], self.item_latent_IK[item])
                constant_N = self.intercept + self.item_effect_I[item]
                chance_NP = sigmoid(self.interest_scale * interest_NP + constant_N[:, None])
                result_N[row] = np.einsum("np,np->n", chance_NP, sample.weight_UP[who])
            first = last
        return result_N

    def _interest(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u . z, and the items' positions, (N,) each."""
        user_N, item_N = self._rows(users, items)
        return np.einsum("nk,nk->n", self.user_latent_UK[user_N], self.item_latent_IK[item_N]), item_N

    def _rows(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        users, items = np.asarray(users), np.asarray(items)
        if users.ndim != 1 or users.shape != items.shape:
            raise InputError(f"users {users.shape} and items {items.shape}: expected two vectors of one length")
        return _positions(users, self.user_ids_U, "user"), _positions(items, self.item_ids_I, "item")


def _positions(ids: np.ndarray, known: np.ndarray, kind: str) -> np.ndarray:
    position = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    wrong = np.flatnonzero(known[position] != ids)
    if len(wrong):
        raise InputError(f"{kind} {ids[wrong[0]]} (row {wrong[0]}) is not in this world of {len(known)} {kind}s, "
                         f"{known[0]} to {known[-1]}")
    return position


def _latents(table: pa.Table, dimensions: int) -> np.ndarray:
    return np.stack([table[f"latent_{k}"].to_numpy() for k in range(dimensions)], axis=1)


def _latent_columns(latent: np.ndarray) -> dict[str, np.ndarray]:
    return {f"latent_{k}": np.ascontiguousarray(latent[:, k]) for k in range(latent.shape[1])}


def items_table(items: Items) -> pa.Table:
    """items.parquet."""
    return pa.table({"item": np.arange(len(items.effect_I)) + 1, "effect": items.effect_I,
                     _CONVERSION_EFFECT: items.conversion_effect_I, "newcomer": items.newcomer_I,
                     **_latent_columns(items.latent_IK)})


def users_table(users: Users) -> pa.Table:
    """users/part-*.parquet, one block: latents and the observed attribute levels (counted from 0)."""
    columns: dict[str, Any] = {"user": np.arange(len(users.activity_U)) + users.first_id, "newcomer": users.newcomer_U,
                               "silent": users.silent_U, "has_profile": users.has_profile_U,
                               **_latent_columns(users.latent_UK)}
    for i, attribute in enumerate(ATTRIBUTES):
        hidden = ~users.has_profile_U | (users.levels_UA[:, i] == MISSING_LEVEL)
        columns[attribute.name] = pa.array(users.levels_UA[:, i], mask=hidden)
    return pa.table(columns)


def world_document(config: WorldConfig, items: Items) -> str:
    """world.json."""
    return json.dumps({"format": FORMAT, "config": asdict(config), "intercept": items.intercept,
                       "interest_scale": items.interest_scale,
                       "attributes": [a.name for a in ATTRIBUTES],
                       "attribute_weights": items.attribute_weights_AK.tolist()}, indent=1) + "\n"
