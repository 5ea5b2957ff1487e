"""A model version as a folder: what comes back is what was saved, and rows are checked before they are scored."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from small_package import raw_rows, small_model, small_package

from mail_core.encoding.encode import encode
from mail_core.encoding.fit import fit_encoders
from mail_core.errors import InputError
from mail_core.package import scoring
from mail_core.package.store import load_package, save_package
from mail_core.schema.reader import load_schema


@pytest.fixture(params=["alimama", "movielens"])
def schema(request):
    return load_schema(request.param)


@pytest.fixture
def package(tmp_path, schema):
    return load_package(small_package(tmp_path / "package", schema))


def test_a_loaded_package_scores_as_the_model_that_was_saved(tmp_path, schema):
    rows = raw_rows(schema, 300, seed=1)
    encoders = fit_encoders(rows, schema)
    model = small_model(schema, encoders)
    save_package(tmp_path / "p", model=model, encoders=encoders, lineage={"new_users": "masked:0.4:7"},
                 metrics={"auc": 0.5})
    loaded = load_package(tmp_path / "p")
    with torch.no_grad():
        expected = model({n: torch.from_numpy(a) for n, a in encode(rows, encoders).items()}).sigmoid().numpy()
    found = loaded.predict(rows)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found) > 0.01
    assert loaded.lineage["new_users"] == "masked:0.4:7" and loaded.metrics == {"auc": 0.5}
    assert loaded.schema == schema and not loaded.model.training


@pytest.mark.parametrize("chunk", [1, 7, 100, 4096])
def test_the_chunk_size_does_not_change_the_ctr(package, chunk):
    rows = raw_rows(package.schema, 101, seed=2)
    np.testing.assert_allclose(package.predict(rows, chunk_rows=chunk), package.predict(rows), atol=1e-6)


@pytest.mark.parametrize("variant", ["base", "mean_token"])
def test_with_virtual_behavior_switched_off_the_tower_reads_new_rows_as_they_are(tmp_path, alimama, variant):
    package = load_package(small_package(tmp_path / "p", alimama, variant=variant))
    rows = raw_rows(alimama, 80, seed=6)
    inputs = package.model.tables.gather({n: torch.from_numpy(a) for n, a in encode(rows, package.encoders).items()})
    alone = package.model.ranking(inputs.inputs).logits_B.sigmoid().numpy()
    found, on = package.predict(rows, virtual_behavior=False), package.predict(rows)
    np.testing.assert_allclose(found, alone, atol=1e-6)
    is_new = np.array([not values for values in rows.column("behavior_btag").to_pylist()])
    assert 10 < is_new.sum() < 70 and np.abs(found - on)[is_new].max() > 1e-3
    # A token stands behind every row's behaviour, virtual positions in new rows alone.
    assert (np.abs(found - on)[~is_new].max() > 1e-3) == (variant == "mean_token")


def test_no_rows_give_no_ctr(package):
    assert package.predict(raw_rows(package.schema, 0)).shape == (0,)


@pytest.mark.parametrize("zero_shot", [True, False])
def test_candidates_get_the_ctr_of_their_joined_rows(tmp_path, schema, zero_shot, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_USERS", 4)  # several blocks of users
    package = load_package(small_package(tmp_path / "p", schema, zero_shot=zero_shot))
    rows = raw_rows(schema, 60, seed=3)
    users = rows.slice(0, 11).select(package.user_schema.names)
    index = np.random.default_rng(0).integers(0, 9, 60)  # two users have no candidate
    candidates = rows.select(package.candidate_schema.names)
    joined = pa.table({**{n: users.column(n).take(index) for n in users.schema.names},
                       **{n: candidates.column(n) for n in candidates.schema.names}})
    found = package.score_candidates(users, index, candidates, chunk_rows=5).ctr
    np.testing.assert_allclose(found, package.predict(joined), atol=1e-6)
    with pytest.raises(InputError, match="expected 0 to 10"):
        package.score_candidates(users, index + 5, candidates)


def test_pandas_rows_score_as_arrow_rows(package):
    rows = raw_rows(package.schema, 50, seed=4)
    frame = rows.to_pandas()
    np.testing.assert_array_equal(package.predict_frame(frame), package.predict(rows))
    as_lists = frame.map(lambda v: v.tolist() if isinstance(v, np.ndarray) else v)
    as_lists["unused"] = "x"
    np.testing.assert_array_equal(package.predict_frame(as_lists[as_lists.columns[::-1]]), package.predict(rows))


@pytest.mark.parametrize("column, values, message", [
    ("adgroup_id", [1.5, 2.0], "adgroup_id.*expected int64.*1.5"),
    ("adgroup_id", [2.0 ** 60, 2.0], "adgroup_id.*too large to be exact"),
    ("cms_segid", [2 ** 40, 1], "cms_segid.*expected int32"),
    ("pid", [1, 2], "pid.*expected string, found int64"),
    ("userid", ["1", "2"], "userid.*expected int64, found string"),
    ("behavior_cate", [1, 2], "behavior_cate.*expected list"),
    ("behavior_cate", [["a"], []], "behavior_cate.*found string"),
    ("price", [True, False], "price.*expected double, found bool")])
def test_values_that_do_not_fit_are_refused_by_name(tmp_path, column, values, message):
    package = load_package(small_package(tmp_path / "p", load_schema("alimama")))
    frame = raw_rows(package.schema, 2).to_pandas()
    frame[column] = pd.Series(values)
    with pytest.raises(InputError, match=message):
        package.predict_frame(frame)


def test_a_missing_column_is_named(package):
    rows = raw_rows(package.schema, 2)
    name = rows.schema.names[3]
    with pytest.raises(InputError, match=f"{name}.* is missing"):
        package.predict(rows.drop_columns([name]))
    with pytest.raises(InputError, match=f"{name}.* is missing"):
        package.predict_frame(rows.to_pandas().drop(columns=name))


def test_pooled_behavior_sums_over_positions_and_divides_by_the_length(package):
    rows = raw_rows(package.schema, 20, seed=5)
    real, virtual = package.pooled_behavior(rows)
    encoded = {n: torch.from_numpy(a) for n, a in encode(rows, package.encoders).items()}
    with torch.no_grad():
        inputs = package.model.tables.gather(encoded).inputs
        expected = package.model.zero_shot.virtual_behavior(inputs.a_BAD).sum(1) / package.schema.sequence_length
    np.testing.assert_allclose(real, (inputs.v_BLD.sum(1) / package.schema.sequence_length).numpy(), atol=1e-6)
    np.testing.assert_allclose(virtual, expected.numpy(), atol=1e-6)


def test_a_tokens_counterpart_is_the_mean_of_real_behaviour(tmp_path, alimama):
    package = load_package(small_package(tmp_path / "p", alimama, variant="mean_token"))
    rows = raw_rows(alimama, 20, seed=5)
    real, virtual = package.pooled_behavior(rows)
    encoded = {n: torch.from_numpy(a) for n, a in encode(rows, package.encoders).items()}
    inputs = package.model.tables.gather(encoded).inputs
    for row, mask in enumerate(inputs.mask_BL):
        expected = inputs.v_BLD[row, mask].mean(0).numpy() if mask.any() else np.zeros(package.config.dim)
        np.testing.assert_allclose(real[row], expected, atol=1e-6)
    np.testing.assert_allclose(virtual, package.model.zero_shot.virtual_behavior(inputs.a_BAD)[:, 0].numpy(), atol=1e-6)
    by_user = package.score_candidates(rows, np.arange(20), rows).ctr
    np.testing.assert_allclose(package.predict(rows), by_user, atol=1e-6)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "schema.yaml", "lineage.json", "metrics.json",
                                  "input_example.arrow"])
def test_a_missing_or_damaged_file_is_named(tmp_path, name):
    folder = small_package(tmp_path / "p", load_schema("movielens"))
    (folder / name).write_bytes(b"\x80nonsense: [")
    with pytest.raises(InputError, match=name):
        load_package(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load_package(folder)


def test_pickled_weights_are_refused_and_never_run(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return open, (str(ran), "w")

    folder = small_package(tmp_path / "p", load_schema("movielens"))
    weights = folder / "weights.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="weights.safetensors"):
        load_package(folder)
    weights.write_bytes(original)
    (folder / "weights.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="weights.pt"):
        load_package(folder)
    assert not ran.exists()


def test_weights_of_another_configuration_are_refused(tmp_path):
    folder = small_package(tmp_path / "p", load_schema("movielens"))
    config = json.loads((folder / "config.json").read_text())
    config["model"]["dim"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="tensor .*shape"):
        load_package(folder)


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    folder = small_package(tmp_path / "p", load_schema("movielens"))
    with pytest.raises(InputError, match="new or empty"):
        small_package(folder, load_schema("movielens"))


def test_the_input_example_is_scored_and_holds_a_new_row(package):
    assert package.predict(package.input_example).shape == (2,)
    action = package.input_example.column(package.schema.action_column).to_pylist()
    assert len(action[0]) > 0 and action[1] == []
