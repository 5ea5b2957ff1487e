"""What a warm start carries over by value, and which versions it cannot start from."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from encoded_batches import short_schema
from hypothesis import given
from hypothesis import strategies as st

from mail_core.encoding.encoders import DenseStatistics, Encoders, hash_buckets, vocabulary_names
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.loading.manifest import FileEntry, Manifest, export_columns
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.package.store import NEW_USERS
from mail_core.schema.arrow import vocabulary_type
from mail_core.schema.definition import FIRST_CODE, Schema
from mail_core.training.data import Export
from mail_core.training.like import Original
from mail_core.training.presets import METHODS, method_of, model_config
from mail_core.training.warm_start import WarmStart, carry_rows, days_trained, known_rows

BUCKETS, DIM = 5, 2
MOVIELENS = short_schema("movielens")  # has a dense user attribute and a multi-valued feature
SCHEMA = replace(MOVIELENS, features=tuple(replace(f, hash_buckets=BUCKETS) if f.name == "zip_prefix" else f
                                           for f in MOVIELENS.features))
FRESH = -1.0
VALUES = st.lists(st.integers(0, 12), unique=True, max_size=10)


def encoders_of(vocabularies: dict[str, list[int]], schema: Schema = SCHEMA) -> Encoders:
    arrays = {name: pa.array([str(v) if pa.types.is_string(kind) else v for v in values], kind)
              for name, values in vocabularies.items() for kind in (vocabulary_type(schema, name),)}
    return Encoders(schema, arrays, {f.name: DenseStatistics(mean=0.0, std=1.0) for f in schema.features
                                     if f.kind == "dense"})


def layout_of(encoders: Encoders) -> EmbeddingLayout:
    return EmbeddingLayout.from_schema(encoders.schema, encoders.vocabulary_sizes)


def own_vocabularies() -> list[str]:
    assert any(hash_buckets(SCHEMA, name) for name in vocabulary_names(SCHEMA)), "one of them is hashed"
    return [name for name in vocabulary_names(SCHEMA) if not hash_buckets(SCHEMA, name)]


@given(st.fixed_dictionaries({name: st.tuples(VALUES, VALUES) for name in own_vocabularies()}))
def test_every_row_goes_over_by_its_value_and_new_values_stay_fresh(vocabularies):
    old, new = (encoders_of({name: pair[at] for name, pair in vocabularies.items()}) for at in (0, 1))
    before, after = layout_of(old), layout_of(new)
    old_WD = torch.arange(before.rows * DIM, dtype=torch.float32).view(-1, DIM)
    new_VD = torch.full((after.rows, DIM), FRESH)
    carry_rows(new_VD, old_WD, known_rows(before, old, after, new))

    offsets = {field.name: field.offset for field in before.vocabularies}
    checked = 0
    for field in after.vocabularies:
        if field.name in vocabularies:
            then, now = vocabularies[field.name]
            # Padding, unknown and missing mean what they meant.
            codes = [0, 1, 2, *(FIRST_CODE + then.index(value) if value in then else None for value in now)]
        else:  # a dense attribute's vector and hash buckets
            codes = list(range(field.size))
        assert len(codes) == field.size
        for place, code in enumerate(codes):
            expected = torch.full((DIM,), FRESH) if code is None else old_WD[offsets[field.name] + code]
            assert torch.equal(new_VD[field.offset + place], expected), (field.name, place)
        checked += field.size
    assert checked == after.rows, "every row of the table"


def test_the_same_vocabularies_in_another_order_give_every_row_back():
    old, new = (encoders_of({name: values for name in own_vocabularies()}) for values in ([4, 7, 1], [7, 1, 4]))
    known = known_rows(layout_of(old), old, layout_of(new), new)
    assert torch.equal(known.new_K, torch.arange(layout_of(new).rows))
    assert not torch.equal(known.new_K, known.old_K) and torch.equal(known.old_K.sort().values, known.new_K)


END = date(2017, 5, 13)
MODEL = model_config("tiny", "base_dnn", "base")


def export_on(end: date, schema: Schema = SCHEMA, new_users: str = "natural") -> Export:
    encoders = encoders_of({name: [1, 2] for name in own_vocabularies()}, schema)
    days = {split: (FileEntry(path=split, rows=len(counts), days=counts),) for split, counts in (
        ("train", {str(date(2017, 5, end.day - back)): 1 for back in range(7, 1, -1)}),
        ("validation", {str(date(2017, 5, end.day - 1)): 1}), ("test", {str(end): 1}))}
    manifest = Manifest(schema_name=schema.name, schema_fingerprint=schema.fingerprint, new_users=new_users,
                        encoder_fingerprint=encoders.fingerprint, end_date=end, days=8, delta_versions={"features": 3},
                        sequence_length=schema.sequence_length, data="data-1", columns=export_columns(schema),
                        splits=days, statistics={})
    return Export(uri="here", manifest=manifest, schema=schema, encoders=encoders)


def start_of(model=MODEL, end: date = END, schema: Schema = SCHEMA, new_users: str = "natural") -> WarmStart:
    lineage = {"export": {"end_date": end.isoformat(), "days": 8}, NEW_USERS: str(NewUserMode.parse(new_users))}
    version = Original(uri="models:/champion/3", name="champion", schema=schema, model=model, lineage=lineage,
                       metrics={})
    return WarmStart(version=version, folder=Path("nowhere"), moments=None)


@pytest.mark.parametrize("day, rows, trained", [
    (14, 1, (13, 13)), (15, 2, (13, 14)), (19, 6, (13, 18)), (20, 7, (13, 19)), (21, 7, (14, 20)), (28, 7, (21, 27))])
def test_the_days_from_the_versions_test_day_on_are_trained(day, rows, trained, caplog):
    export = start_of().part_of(export_on(date(2017, 5, day)), MODEL)
    assert export.rows("train", "validation") == rows and export.rows("test") == 1
    assert [d.day for d in days_trained(export)] == list(trained)
    assert ("neither in the export nor known" in caplog.text) == (day > 20)
    assert start_of().lineage(export)["first_day"] == f"2017-05-{trained[0]}"


@pytest.mark.parametrize("changes, asked, named", [
    ({"schema": MOVIELENS}, {}, "the schema 'movielens' has the fingerprint"),
    ({"model": model_config("tiny", "din", "base")}, {}, "tower base_dnn, but din in the model of models:/champion/3"),
    ({"model": model_config("tiny", "base_dnn", "off")}, {}, "cold start base, but off in the model"),
    ({"model": model_config("tiny", "base_dnn", "llae")}, {}, "cold start base, but llae in the model"),
    ({"model": model_config("paper", "base_dnn", "base")}, {}, "dim 16, but 32 in the model"),
    ({"model": replace(MODEL, tower_config=replace(MODEL.tower_config, hidden=(64, 32)))}, {},
     r"tower_config.hidden \[128, 64\], but \[64, 32\]"),
    ({"new_users": "masked:0.4:1"}, {}, "new users natural, but masked:0.4:1"),
    ({"end": date(2017, 5, 15)}, {}, "ends on 2017-05-15, after the export, which ends on 2017-05-14"),
    ({"end": date(2017, 5, 14)}, {}, "has seen all training days of the export, which end on 2017-05-13")])
def test_a_version_of_another_kind_or_without_days_left_is_refused_by_name(changes, asked, named):
    with pytest.raises(InputError, match=named):
        start_of(**changes).part_of(export_on(date(2017, 5, 14), **asked), MODEL)


@pytest.mark.parametrize("method", METHODS)
def test_a_models_method_has_the_name_that_it_was_asked_for_by(method):
    assert method_of(model_config("tiny", "base_dnn", method)) == method
