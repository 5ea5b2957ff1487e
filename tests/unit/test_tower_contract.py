"""The tower contract for every tower of TOWERS, alone and under MAIL, on both shipped schemas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tower_contract import CHECKS, Case

from mail_core.models.mail import MailModel
from mail_core.models.ranking import TOWERS
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.ranking.dcn_v2 import DcnV2Config
from mail_core.models.ranking.din import DinConfig
from mail_core.models.ranking.dmr import DmrConfig
from mail_core.models.ranking.dnn_concat import DnnConcatConfig
from mail_core.models.ranking.emb_lr import EmbLrConfig
from mail_core.training.presets import METHODS, PRESETS, model_config

HIDDEN = (11, 8)
CASES = {
    "base_dnn": Case(tower="base_dnn", config=BaseDnnConfig(hidden=HIDDEN)),
    "dnn_concat": Case(tower="dnn_concat", config=DnnConcatConfig(hidden=HIDDEN)),
    "dnn_concat, mean": Case(tower="dnn_concat", config=DnnConcatConfig(hidden=HIDDEN, pooling="mean")),
    "emb_lr": Case(tower="emb_lr", config=EmbLrConfig()),
    "emb_lr, mean": Case(tower="emb_lr", config=EmbLrConfig(pooling="mean")),
    "din": Case(tower="din", config=DinConfig(attention=(7, 6), hidden=HIDDEN)),
    "dmr": Case(tower="dmr", config=DmrConfig(attention=7, hidden=(11, 8, 7))),
    "dcn_v2": Case(tower="dcn_v2", config=DcnV2Config(hidden=HIDDEN)),
    "dcn_v2, stacked, low rank": Case(tower="dcn_v2", config=DcnV2Config(hidden=HIDDEN, structure="stacked", rank=3)),
}
TWO_TOWERS = {name: replace(case, head="esmm") for name, case in {
    **CASES, **{m: replace(CASES["base_dnn"], method=m) for m in METHODS if m != "base"}}.items()}
"""ESMM of every tower under the paper's MAIL, and of one with every other method."""


@pytest.mark.parametrize("schema, method", [*(("alimama", method) for method in METHODS), ("movielens", "off"),
                                            ("movielens", "base"), ("movielens", "gated")])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_tower(check, case, schema, method):
    check(replace(case, schema=schema, method=method))


@pytest.mark.parametrize("case", TWO_TOWERS.values(), ids=TWO_TOWERS)
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_two_towers_as_one(check, case):
    check(case)


def test_every_tower_is_under_the_contract():
    assert {case.tower for case in CASES.values()} == set(TOWERS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_every_tower(preset):
    assert set(PRESETS[preset].towers) == set(TOWERS)
    layout = CASES["base_dnn"].layout()
    for tower in TOWERS:
        with torch.device("meta"):
            assert MailModel(model_config(preset, tower, "base"), layout).config.tower == tower
