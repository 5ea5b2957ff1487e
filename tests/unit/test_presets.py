"""Presets and settings of training, and the dropout of IDs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mail_core.errors import InputError
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailModel
from mail_core.models.ranking import TOWERS
from mail_core.models.zero_shot import VARIANTS, ZeroShotConfig
from mail_core.schema.definition import UNKNOWN
from mail_core.training.data import IdDropout
from mail_core.training.presets import METHODS, PRESETS, TrainingConfig, model_config, model_label

CPU = torch.device("cpu")


def test_paper_has_the_sizes_and_settings_of_section_4_2():
    config = TrainingConfig(model=model_config("paper", "base_dnn", "base"))
    assert (config.batch_size, config.learning_rate, config.model.dim) == (1024, 1e-3, 32)
    assert config.model.tower_config.hidden == (512, 256) and config.model.tower_config.dropout == 0.5
    assert config.model.zero_shot == ZeroShotConfig(hidden=(1024, 512), latent=512, attention=128, dropout=0.5,
                                                    variant="base", kernel="fixed")


def test_tiny_differs_from_paper_in_embedding_and_hidden_sizes_only():
    paper, tiny = (model_config(name, "base_dnn", "base") for name in ("paper", "tiny"))
    assert tiny != paper
    assert replace(tiny, dim=paper.dim, tower_config=replace(tiny.tower_config, hidden=paper.tower_config.hidden),
                   zero_shot=replace(tiny.zero_shot, hidden=paper.zero_shot.hidden, latent=paper.zero_shot.latent,
                                     attention=paper.zero_shot.attention)) == paper


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_builds_every_tower_with_every_method(alimama, preset, method):
    vocabularies = (*(f.name for f in alimama.features), alimama.action_column)
    layout = EmbeddingLayout.from_schema(alimama, {name: 10 for name in vocabularies})
    for tower in TOWERS:
        with torch.device("meta"):
            model = MailModel(model_config(preset, tower, method), layout)
        assert (model.zero_shot is not None) == (method in VARIANTS)
        assert (model.cold_start is not None) == (method in ("llae", "meta_emb"))


def test_a_method_with_a_token_pools_by_the_mean_and_others_as_the_paper_does():
    pooling = {method: model_config("tiny", "base_dnn", method).tower_config.pooling for method in METHODS}
    assert pooling == {m: "mean" if m in ("mean_token", "gated", "mean") else "sum" for m in METHODS}
    assert model_config("tiny", "base_dnn", "off", pooling="mean").tower_config.pooling == "mean"
    with pytest.raises(InputError, match="zero_shot.variant: 'gated'"):
        model_config("tiny", "base_dnn", "gated", pooling="sum")
    with pytest.raises(InputError, match="a DinConfig has none"):
        model_config("tiny", "din", "off", pooling="mean")


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"epochs": 0}, {"max_epochs": 0}, {"patience": 0}, {"seed": -1},
                                     {"learning_rate": 0.0}, {"embedding_optimizer": "sgd"}])
def test_settings_out_of_range_are_refused_by_name(changes):
    [name] = changes
    with pytest.raises(InputError, match=name):
        TrainingConfig(model=model_config("tiny", "base_dnn", "base"), **changes)


def test_unknown_presets_and_towers_are_refused_with_what_there_is():
    with pytest.raises(InputError, match="large.*paper, tiny"):
        model_config("large", "base_dnn", "base")
    with pytest.raises(InputError, match="no_tower.*base_dnn"):
        model_config("paper", "no_tower", "base")
    with pytest.raises(InputError, match="'triple'.*off, none, single, dual, base.*llae, meta_emb"):
        model_config("paper", "base_dnn", "triple")


@pytest.mark.parametrize("options, label", [
    ({"method": "off"}, "base_dnn"), ({"method": "base"}, "mail-base_dnn"),
    ({"method": "gated"}, "mail-gated-base_dnn"), ({"method": "off", "pooling": "mean"}, "base_dnn-mean"),
    ({"method": "llae", "tower": "emb_lr"}, "llae-emb_lr"),
    ({"method": "meta_emb"}, "meta_emb-base_dnn"), ({"method": "base", "tower": "dmr"}, "mail-dmr"),
    ({"method": "base", "alignment": "mse", "joint": True}, "mail-mse-joint-base_dnn"),
    ({"method": "base", "kernel": "median", "pooling": "mean"}, "mail-median-base_dnn-mean")])
def test_every_kind_of_model_has_a_name_of_its_own(options, label):
    assert model_label(model_config("tiny", **{"tower": "base_dnn", **options})) == label


@pytest.mark.parametrize("options, message", [
    ({"method": "dual", "alignment": "mse"}, "alignment: the method 'dual' has no alignment loss"),
    ({"method": "off", "kernel": "median"}, "kernel: the method 'off'"),
    ({"method": "llae", "joint": True}, "joint: the method 'llae' has no zero-shot tower")])
def test_a_setting_that_a_method_cannot_use_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        model_config("tiny", "base_dnn", **options)


def test_the_global_batch_is_split_evenly_or_refused():
    config = TrainingConfig(model=model_config("tiny", "base_dnn", "base"), batch_size=1024)
    assert [config.batch_of(ranks) for ranks in (1, 2, 4)] == [1024, 512, 256]
    with pytest.raises(InputError, match="1024 is not a multiple of the 3 ranks"):
        config.batch_of(3)


def test_id_dropout_makes_a_share_of_known_ids_unknown_and_touches_nothing_else(alimama):
    codes = torch.arange(20_000, dtype=torch.int32) % 10
    encoded = {"userid": codes, "adgroup_id": codes, "cate_id": codes, "behavior_cate": codes[:, None]}
    dropped = IdDropout(alimama, 7, CPU)(encoded)
    for name in ("cate_id", "behavior_cate"):
        assert dropped[name] is encoded[name]
    for name in ("userid", "adgroup_id"):
        changed = dropped[name] != codes
        assert dropped[name].dtype == codes.dtype
        assert (dropped[name][changed] == UNKNOWN).all() and (codes[changed] >= 3).all()
        assert 0.01 < float(changed[codes >= 3].float().mean()) < 0.03  # the schema says 0.02
    assert not torch.equal(dropped["userid"], dropped["adgroup_id"])
    again, other = IdDropout(alimama, 7, CPU)(encoded), IdDropout(alimama, 8, CPU)(encoded)
    assert torch.equal(again["userid"], dropped["userid"]) and not torch.equal(other["userid"], dropped["userid"])
