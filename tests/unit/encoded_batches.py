"""Small layouts and random encoded batches for the tests of the models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailConfig
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.zero_shot import ZeroShotConfig
from mail_core.schema.definition import Schema
from mail_core.schema.reader import load_schema

LENGTH = 5
CODES = 9  # of every feature's vocabulary
ACTIONS = 7


def short_schema(name: str) -> Schema:
    """`movielens` has a dense user attribute and a multi-valued feature, `alimama` a dense item feature."""
    return replace(load_schema(name), sequence_length=LENGTH)


def layout_of(schema: Schema) -> EmbeddingLayout:
    return EmbeddingLayout.from_schema(schema, sizes_of(schema))


def sizes_of(schema: Schema) -> dict[str, int]:
    return {f.name: CODES for f in schema.features if f.kind != "dense"} | {schema.action_column: ACTIONS}


def encoded_batch(schema: Schema, lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """One row for each behaviour length; multi-valued features have 0 to 3 values, dense ones any value."""
    draw, rows = torch.Generator().manual_seed(seed), len(lengths)
    encoded = {}
    for feature in schema.features:
        if feature.kind == "dense":
            encoded[feature.name] = torch.randn(rows, generator=draw)
        elif feature.kind == "multi":
            values = torch.randint(1, CODES, (rows, 3), generator=draw, dtype=torch.int32)
            filled = torch.arange(3) < torch.randint(0, 4, (rows, 1), generator=draw)
            encoded[feature.name] = values * filled
        else:
            encoded[feature.name] = torch.randint(1, CODES, (rows,), generator=draw, dtype=torch.int32)
    real = torch.arange(LENGTH) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    for column in schema.behavior_vocabularies:
        size = ACTIONS if column == schema.action_column else CODES
        encoded[column] = torch.randint(1, size, (rows, LENGTH), generator=draw, dtype=torch.int32) * real
    return encoded


def small_config(zero_shot: bool = True, dropout: float = 0.5) -> MailConfig:
    tower = ZeroShotConfig(hidden=(12, 10), latent=6, attention=7, dropout=dropout) if zero_shot else None
    return MailConfig(dim=4, tower_config=BaseDnnConfig(hidden=(11, 8), dropout=dropout), zero_shot=tower)
