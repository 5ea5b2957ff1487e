"""Every cold-start method trained on a real export: what it changes, and for whom."""

from __future__ import annotations

import numpy as np
import pytest
from small_export import SPLIT_FILES, small_schema, write_export

from mail_core.loading.manifest import TEST
from mail_core.training.data import open_export
from mail_core.training.loop import fit
from mail_core.training.predict import Predictions, predict
from mail_core.training.presets import METHODS, TrainingConfig, model_config
from mail_core.training.ranks import Ranks


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    uri = write_export(tmp_path_factory.mktemp("lake"), {**SPLIT_FILES, "train": (300, 200), "test": (200, 100)})
    return open_export(uri, small_schema())


@pytest.fixture(scope="module")
def alone(export) -> Predictions:
    return trained(export, "off", "emb_lr")[1]


def trained(export, method: str, tower: str = "base_dnn"):
    config = TrainingConfig(model=model_config("tiny", tower, method), batch_size=64, epochs=2)
    model = fit(export, config, Ranks.alone(), lambda values, step: None).model
    return model, predict(model, export, TEST, Ranks.alone(), variants=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_scores_every_row(export, method):
    model, predictions = trained(export, method)
    assert np.isfinite(predictions.probabilities).all() and len(np.unique(predictions.probabilities)) > 50
    assert bool(predictions.variants) == (method not in ("off", "meta_emb"))
    if model.zero_shot is not None and model.zero_shot.gate is not None:
        assert float(model.zero_shot.gate.weight) > 0 and 0 <= float(model.zero_shot.gate.g) <= 1


@pytest.mark.parametrize("method", ["llae", "meta_emb"])
def test_a_peer_is_its_ranking_tower_for_old_users_and_another_model_for_new_ones(export, alone, method):
    model, predictions = trained(export, method, "emb_lr")
    new = predictions.is_new.astype(bool)
    np.testing.assert_array_equal(predictions.probabilities[~new], alone.probabilities[~new])
    assert (predictions.probabilities[new] != alone.probabilities[new]).mean() > 0.9
    assert bool(model.cold_start.fitted)
