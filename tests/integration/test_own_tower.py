"""A model of a public library, its code unchanged, as MAIL's ranking tower: docs/own-tower.md's example."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Iterator

import pytest
import torch
from tower_contract import CHECKS, Case

from mail_core.models.ranking import TOWERS
from mail_core.training.presets import TrainingConfig
from mail_core.training.ranks import Ranks
from mail_core.training.step import TrainStep

REQUIREMENTS = Path(__file__).with_name("own_tower") / "requirements.txt"


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Iterator[Case]:
    """torch-rechub in a folder of its own: all that it needs is installed here already."""
    folder = str(tmp_path_factory.mktemp("torch_rechub"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--require-hashes", "--target", folder, "--requirement", str(REQUIREMENTS)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from own_tower.rechub_dcn_v2 import RechubDcnV2, RechubDcnV2Config

        patch.setitem(TOWERS, "rechub_dcn_v2", RechubDcnV2)
        yield Case(tower="rechub_dcn_v2", config=RechubDcnV2Config(cross_layers=2, hidden=(11, 8)))


@pytest.mark.parametrize("schema, method", [("alimama", "base"), ("alimama", "off"), ("alimama", "gated"),
                                            ("movielens", "base")])
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_librarys_model_keeps_the_contract(case, check, schema, method):
    check(replace(case, schema=schema, method=method))


def test_mail_trains_the_librarys_model_on_old_and_new_users(case):
    model = case.model(stirred=False).train()
    assert type(model.ranking.model).__module__ == "torch_rechub.models.ranking.dcn_v2"
    encoded = case.encoded(200)
    labels_B = (encoded["cate_id"] % 2).float()  # what the tower is to learn
    new_B = case.is_new(encoded)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = TrainStep(model, TrainingConfig(model=model.config, learning_rate=0.03), Ranks.alone())
    for _ in range(30):
        step(encoded, labels_B, torch.ones_like(labels_B))
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {"tables", "zero_shot", "ranking"}
    right_B = (model.eval()(encoded) > 0) == (labels_B > 0)
    assert new_B.sum() > 30 and right_B[new_B].float().mean() > 0.9 and right_B[~new_B].float().mean() > 0.9
