"""Codes worked out by hand, and encoders that do not depend on batches or their order."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_core.encoding.encode import encode, encoded_schema, encoded_widths, to_arrow
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit, fit_encoders, merge, tally
from mail_core.errors import InputError
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import Schema


def rows_of(schema: Schema, *rows: dict) -> pa.Table:
    """Complete input rows; what a row does not name is NULL."""
    return pa.Table.from_pylist([{name: row.get(name) for name in input_schema(schema).names} for row in rows],
                                schema=input_schema(schema))


def behaviors(actions: list, cates: list, brands: list) -> dict:
    return {"behavior_btag": actions, "behavior_cate": cates, "behavior_brand": brands}


def with_feature(schema: Schema, name: str, **changes) -> Schema:
    features = tuple(replace(f, **changes) if f.name == name else f for f in schema.features)
    return replace(schema, features=features)


@pytest.fixture(scope="module")
def fitted(alimama) -> Encoders:
    rows = rows_of(
        alimama,
        {"userid": 7, "pid": "b", "cate_id": 50, "brand": None, "campaign_id": 1, "price": math.e - 1,
         **behaviors(["pv", "buy", "pv"], [60, 70, 60], [9, None, 9])},
        {"userid": 9, "pid": "a", "cate_id": 50, "brand": 8, "campaign_id": 1, "price": math.e ** 3 - 1,
         **behaviors(["pv"], [60], [8])},
        {"userid": 9, "pid": "a", "cate_id": 50, "brand": 8, "campaign_id": 2, "price": None, **behaviors([], [], [])})
    return fit_encoders(rows, alimama)


def test_codes_follow_count_descending_then_value_ascending(fitted):
    # cate_id: 50 three times, 60 three times (behaviours count too), 70 once. brand: 8 three times, 9 twice.
    assert fitted.vocabularies["cate_id"].to_pylist() == [50, 60, 70]
    assert fitted.vocabularies["brand"].to_pylist() == [8, 9]
    assert fitted.vocabularies["userid"].to_pylist() == [9, 7]
    assert fitted.vocabularies["pid"].to_pylist() == ["a", "b"]
    assert fitted.vocabularies["behavior_btag"].to_pylist() == ["pv", "buy"]


def test_integers_are_ordered_as_numbers_not_as_texts(alimama):
    encoders = fit_encoders(rows_of(alimama, {"userid": 10}, {"userid": 9}), alimama)
    assert encoders.vocabularies["userid"].to_pylist() == [9, 10]


def test_known_unknown_and_null_values_get_their_codes(alimama, fitted):
    encoded = encode(rows_of(alimama, {"userid": 7, "pid": "a", "brand": 9}, {"userid": 9, "pid": "zzz"},
                             {"userid": 1234, "brand": 77}), fitted)
    assert encoded["userid"].tolist() == [4, 3, 1]
    assert encoded["pid"].tolist() == [3, 1, 2]
    assert encoded["brand"].tolist() == [4, 2, 1]
    assert encoded["userid"].dtype == np.int32


def test_values_rarer_than_min_count_are_unknown(alimama, fitted):
    assert alimama.feature("campaign_id").min_count == 2
    assert encode(rows_of(alimama, {"campaign_id": 1}, {"campaign_id": 2}), fitted)["campaign_id"].tolist() == [3, 1]


def test_behaviours_share_the_item_features_codes_and_are_padded_at_the_end(alimama, fitted):
    encoded = encode(rows_of(alimama, behaviors(["buy", "cart"], [70, 50], [None, 9]), behaviors(None, None, None),
                             behaviors(["pv"], [60], [8])), fitted)
    expected = np.zeros((3, alimama.sequence_length), dtype=np.int32)
    expected[0, :2], expected[2, 0] = [5, 3], 4
    np.testing.assert_array_equal(encoded["behavior_cate"], expected)
    assert encoded["behavior_brand"][:, :3].tolist() == [[2, 4, 0], [0, 0, 0], [3, 0, 0]]
    assert encoded["behavior_btag"][:, :3].tolist() == [[4, 1, 0], [0, 0, 0], [3, 0, 0]]


def test_behaviours_longer_than_the_sequence_keep_the_first(alimama):
    schema = replace(alimama, sequence_length=2)
    rows = rows_of(schema, behaviors(["pv"] * 3, [1, 2, 3], [None] * 3), behaviors(["pv"], [2], [None]))
    encoders = fit_encoders(rows, schema)
    assert encoders.vocabularies["cate_id"].to_pylist() == [2, 1]    # 3 is never read
    assert encode(rows, encoders)["behavior_cate"].tolist() == [[4, 3], [3, 0]]


def test_slices_encode_as_the_rows_they_are(alimama, fitted):
    rows = rows_of(alimama, *({"userid": user, **behaviors(["pv"] * length, [60] * length, [9] * length)}
                              for user, length in ((1, 2), (9, 0), (7, 3))))
    whole, part = encode(rows, fitted), encode(rows.slice(1).combine_chunks().to_batches()[0], fitted)
    for name, array in whole.items():
        np.testing.assert_array_equal(array[1:], part[name])


def test_behaviour_lists_of_unequal_length_are_refused(alimama, fitted):
    with pytest.raises(InputError, match="row 1: 'behavior_cate' has 1 behaviours, 'behavior_btag' 2"):
        encode(rows_of(alimama, behaviors([], [], []), behaviors(["pv", "pv"], [1], [1, 1])), fitted)


def test_hashed_features_have_no_vocabulary_and_stable_codes(alimama):
    schema = with_feature(alimama, "cate_id", hash_buckets=10)
    rows = rows_of(schema, *({"cate_id": v, **behaviors(["pv"], [v], [1])} for v in range(200)), {"cate_id": None})
    encoders = fit_encoders(rows, schema)
    codes = encode(rows, encoders)["cate_id"]
    assert "cate_id" not in encoders.vocabularies and encoders.vocabulary_sizes["cate_id"] == 13
    assert codes[-1] == 2 and set(codes[:-1]) == set(range(3, 13))
    np.testing.assert_array_equal(encode(rows, encoders)["behavior_cate"][:-1, 0], codes[:-1])
    assert codes[:5].tolist() == [7, 10, 6, 3, 10]    # written down once: the codes of stored versions must not move


def test_multi_valued_features_pad_and_mark_missing(movielens):
    rows = rows_of(movielens, {"genres": ["Drama", "Comedy"]}, {"genres": ["Drama"]}, {"genres": []}, {"genres": None},
                   {"genres": list("abcdefgh")})
    encoders = fit_encoders(rows, movielens)
    genres = encode(rows, encoders)["genres"]
    assert movielens.feature("genres").max_values == 6 and genres.shape == (5, 6)
    assert encoders.vocabularies["genres"].to_pylist() == ["Drama", "Comedy", *"abcdef"]    # g, h: beyond max_values
    assert genres[:4].tolist() == [[3, 4, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]]
    assert genres[4].tolist() == [5, 6, 7, 8, 9, 10]


def test_dense_features_are_transformed_and_standardised_with_training_statistics(alimama, fitted):
    # log1p of the training prices: 1 and 3, so mean 2 and standard deviation 1; NULL does not count.
    assert fitted.dense["price"].mean == pytest.approx(2) and fitted.dense["price"].std == pytest.approx(1)
    rows = rows_of(alimama, {"price": math.e ** 5 - 1}, {"price": None}, {"price": -5.0}, {"price": 0.0})
    price = encode(rows, fitted)["price"]
    assert price.dtype == np.float32
    np.testing.assert_allclose(price, [3, 0, 0, -2], atol=1e-6)


def test_a_constant_dense_feature_is_divided_by_one(alimama):
    encoders = fit_encoders(rows_of(alimama, *[{"price": 0.1}] * 7), alimama)
    assert encoders.dense["price"].std == 1.0
    assert encode(rows_of(alimama, {"price": 0.1}), encoders)["price"].tolist() == pytest.approx([0], abs=1e-7)


def test_a_table_with_some_columns_encodes_those(alimama, fitted):
    users = pa.table({"userid": pa.array([7], pa.int32()), "other": ["x"]})
    assert {name: array.tolist() for name, array in encode(users, fitted).items()} == {"userid": [4]}


def test_a_column_of_another_type_is_refused_by_name(fitted):
    with pytest.raises(InputError, match="column 'userid'.*string does not fit int64"):
        encode(pa.table({"userid": ["seven"]}), fitted)


def test_no_training_rows_make_every_value_unknown(alimama):
    encoders = fit_encoders(rows_of(alimama), alimama)
    encoded = encode(rows_of(alimama, {"userid": 1, "price": 2.0}), encoders)
    assert encoded["userid"].tolist() == [1] and encoded["price"].tolist() == pytest.approx([math.log(3)])
    assert encode(rows_of(alimama), encoders)["behavior_cate"].shape == (0, alimama.sequence_length)


def test_saved_encoders_load_as_they_were(alimama, fitted, tmp_path):
    fitted.save(tmp_path / "encoders")
    loaded = Encoders.load(str(tmp_path / "encoders"), alimama)
    assert loaded.fingerprint == fitted.fingerprint and loaded.vocabulary_sizes == fitted.vocabulary_sizes
    assert loaded.dense == fitted.dense
    assert all(loaded.vocabularies[n].equals(v) for n, v in fitted.vocabularies.items())
    assert {p.suffix for p in (tmp_path / "encoders").iterdir()} == {".arrow", ".json"}


def test_encoders_of_another_schema_or_changed_files_are_refused(alimama, fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(InputError, match="another schema"):
        Encoders.load(tmp_path, replace(alimama, sequence_length=7))
    with pytest.raises(InputError, match="no encoders here"):
        Encoders.load(tmp_path / "absent", alimama)
    description = json.loads((tmp_path / "encoders.json").read_text())
    description["dense"]["price"]["mean"] = 3.0
    (tmp_path / "encoders.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="differ from those that were saved"):
        Encoders.load(tmp_path, alimama)


def test_the_fingerprint_sees_values_order_and_statistics(alimama):
    def fingerprint(*rows):
        return fit_encoders(rows_of(alimama, *rows), alimama).fingerprint
    prints = [fingerprint({"userid": 1}, {"userid": 2}), fingerprint({"userid": 1}, {"userid": 2}, {"userid": 2}),
              fingerprint({"userid": 1}), fingerprint({"userid": 1, "price": 4.0})]
    assert len(set(prints)) == 4


def test_encoded_rows_fit_the_encoded_schema(movielens):
    rows = rows_of(movielens, {"user_id": 1, "genres": ["a"], "age": 30})
    encoded = encode(rows, fit_encoders(rows, movielens))
    assert to_arrow(encoded).schema.equals(encoded_schema(movielens))
    assert {n: a.shape[1] if a.ndim > 1 else 0 for n, a in encoded.items()} == encoded_widths(movielens)
    assert to_arrow(encoded).column("genres").to_pylist() == encoded["genres"].tolist()


NUMBERS = st.floats(-1e12, 1e12, allow_nan=False, width=64)


@given(st.lists(st.tuples(st.integers(0, 5), NUMBERS), min_size=1, max_size=40), st.randoms(), st.integers(1, 6))
def test_encoders_do_not_depend_on_batches_or_their_order(plain_dense, values, random, size):
    rows = [{"userid": u, "price": p, **behaviors(["pv"], [u], [None])} for u, p in values]
    whole = fit_encoders(rows_of(plain_dense, *rows), plain_dense)
    random.shuffle(rows)
    parts = [tally(rows_of(plain_dense, *rows[i:i + size]), plain_dense) for i in range(0, len(rows), size)]
    assert fit(merge(pa.concat_tables(parts)), plain_dense).fingerprint == whole.fingerprint
    prices = [p for _, p in values]
    assert whole.dense["price"].mean == pytest.approx(math.fsum(prices) / len(prices), rel=1e-12, abs=1e-300)
    if np.std(prices) > 1e-6 * max(map(abs, prices)):    # below, squares in float64 do not tell it from a constant
        assert whole.dense["price"].std == pytest.approx(np.std(prices), rel=1e-3)


@pytest.fixture(scope="module")
def plain_dense(alimama) -> Schema:
    return with_feature(alimama, "price", transform="identity")
