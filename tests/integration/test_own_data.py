"""A data set of 201 features that is one YAML and no code, from simulated logs to scores (docs/own-data.md)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from raw_tables import call_job

from mail_core.encoding.encoders import Encoders
from mail_core.job import DONE
from mail_core.lake.files import join
from mail_core.lake.tables import Lake
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TRAIN, VALIDATION, Manifest, find_export, read_manifest
from mail_core.package.scoring import Package
from mail_core.package.store import load_package
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import FIRST_CODE, Schema
from mail_core.schema.reader import load_schema
from mail_core.spark.candidates import seen_candidates
from mail_core.tracking.registry import resolve_model
from mail_core.tracking.runs import configure_tracking
from mail_core.training import options
from mail_core.training.ranks import Ranks
from mail_core.training.run import train_and_register

DAYS, MODEL = 8, "models:/livestream-mail-base_dnn/1"
WORLD = ("--users", "300", "--items", "80", "--days", str(DAYS), "--behavior-days", str(DAYS + 1),
         "--impressions-per-user", "8", "--behaviors-per-user", "12", "--seed", "2")
BAD = {"out_of_range:battery": {"battery": "1.7"}, "unknown_value:scene": {"scene": "kiosk"},
       "not_a_number:online_rooms": {"online_rooms": "many"}, "null_value:position": {"position": ""},
       "contradictory_conversion": {"entered": "0", "followed": "1"}}


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema("livestream")


@pytest.fixture(scope="module")
def root(spark, schema, tmp_path_factory) -> Path:
    """Logs with some bad rows, a lake with everything up to the scores of one version, and MLflow's store."""
    root, end = tmp_path_factory.mktemp("livestream"), schema.last_day
    jobs = ("--schema", schema.name, "--lake", str(root / "lake"))
    assert call_job("simulate_logs", "--schema", schema.name, "--out", str(root / "logs"), *WORLD) == DONE
    [part] = (root / "logs" / schema.impressions.file).iterdir()
    part.write_text(part.read_text() + "".join(f"{line}\n" for line in bad_lines(schema, part)))
    for name, *arguments in (
            ("ingest_logs", "--source", str(root / "logs")),
            ("build_features", "--date", str(end), "--days", str(DAYS)),
            ("export_training", "--end-date", str(end), "--days", str(DAYS), "--new-users", "masked:0.4:1")):
        assert call_job(name, *jobs, *arguments) == DONE
    asked = options.parser(None).parse_args([*jobs, "--end-date", str(end), "--preset", "tiny", "--epochs", "1",
                                             "--batch-size", "256"])
    train_and_register(options.request_of(asked), Ranks.alone())
    assert call_job("score", *jobs, "--date", str(end + timedelta(days=1)), "--model", MODEL) == DONE
    return root


def bad_lines(schema: Schema, part: Path) -> list[str]:
    """The first impression again with other cells, for each of BAD."""
    cells = dict(zip((c.name for c in schema.impressions.columns), part.read_text().splitlines()[1].split(",")))
    return [",".join({**cells, **change}.values()) for change in BAD.values()]


@pytest.fixture
def lake(root, spark, schema) -> Lake:
    configure_tracking(None, str(root / "lake"))  # another module may have set it elsewhere
    return Lake(spark, str(root / "lake"), schema)


@pytest.fixture(scope="module")
def export(root, schema) -> tuple[str, Manifest]:
    uri = find_export(str(root / "lake"), schema.last_day)
    return uri, read_manifest(uri)


@pytest.fixture(scope="module")
def encoders(export, schema) -> Encoders:
    uri, manifest = export
    return Encoders.load(join(uri, manifest.data, "encoders"), schema)


@pytest.fixture(scope="module")
def trained(export) -> dict[str, np.ndarray]:
    """Every row that the encoders were fitted on, encoded."""
    uri, manifest = export
    batches = list(epoch_batches(uri, manifest, (TRAIN, VALIDATION), seed=0, epoch=0, world_size=1, rank=0,
                                 batch_size=512, shuffle=False))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def package(lake) -> Package:
    return load_package(resolve_model(MODEL).package_folder)


def written(root: Path, file: str) -> pd.DataFrame:
    [part] = (root / "logs" / file).iterdir()
    return pd.read_csv(part, dtype=str, keep_default_na=False)


def test_every_row_of_the_four_files_is_in_a_table_or_in_quarantine_with_its_reason(root, lake, schema):
    found = lake.read("quarantine").collect()
    assert {row["reason"] for row in found} == set(BAD) and len(found) == len(BAD)
    for raw, table in ((schema.impressions, "raw_impressions"), (schema.behaviors, "raw_behaviors"),
                       (schema.users, "users"), (schema.items, "items")):
        bad = len(BAD) if raw is schema.impressions else 0
        assert lake.read(table).count() == len(written(root, raw.file)) - bad > 70


def test_features_have_a_row_an_impression_with_the_values_of_its_files(root, lake, schema):
    shown = written(root, schema.impressions.file).iloc[:-len(BAD)]
    table = lake.read("features")
    assert set(table.columns) >= set(input_schema(schema).names) and len(input_schema(schema).names) == 201 + 4
    assert table.agg(F.count("*"), F.sum("label"), F.sum("conversion")).first() == (
        len(shown), (shown["entered"] == "1").sum(), (shown["followed"] == "1").sum())
    rooms = written(root, schema.items.file).set_index("room_id")
    rows = table.select("item", "ctr_7d", "guild_id", "fans", "tags").limit(200).toPandas()
    for row in rows.itertuples():
        room = rooms.loc[str(row.item)]
        assert room["ctr_7d"] == "" or row.ctr_7d == float(room["ctr_7d"])
        assert (room["guild_id"], room["fans"]) == tuple(
            "" if pd.isna(value) else str(int(value)) for value in (row.guild_id, row.fans))
        assert room["tags"] == ("" if row.tags is None else "|".join(row.tags))


def test_dense_features_arrive_standardised(schema, trained):
    dense = [f.name for f in schema.features if f.kind == "dense"]
    assert len(dense) == 141
    for name in dense:
        assert trained[name].dtype == np.float32
        assert abs(trained[name].mean()) < 1e-3 and 0.8 < trained[name].std() < 1.001, name


def test_categorical_and_multi_valued_features_arrive_as_codes_of_their_vocabularies(schema, trained, encoders):
    for feature in schema.features:
        if feature.kind == "dense":
            continue
        codes = trained[feature.name]
        assert codes.shape[1:] == ((feature.max_values,) if feature.kind == "multi" else ())
        known = (codes[:, 0] if feature.kind == "multi" else codes) >= FIRST_CODE
        assert known.mean() > 0.6 and codes.max() < encoders.vocabulary_sizes[feature.name], feature.name
    assert encoders.vocabulary_sizes["home_city"] == 512 + FIRST_CODE and "home_city" not in encoders.vocabularies
    assert set(encoders.vocabularies["scene"].to_pylist()) == {"home_feed", "song_page", "search", "profile", "message"}


def test_behaviors_of_every_kind_share_the_rooms_vocabularies(schema, trained, encoders):
    assert set(encoders.vocabularies[schema.action_column].to_pylist()) == {
        "enter", "watch", "like", "comment", "share", "follow", "gift"}
    real = trained[schema.action_column] > 0
    assert 0.2 < real.any(axis=1).mean() < 0.65, "of rows; four users in ten have none"
    room_BL, category_BL = trained["behavior_room_id"], trained["behavior_category_id"]
    category_of = {room: category for room, category in zip(trained["room_id"], trained["category_id"]) if room >= 3}
    pairs = [(room, category) for room, category in zip(room_BL[real], category_BL[real]) if room in category_of]
    assert len(pairs) > 100 and all(category_of[room] == category for room, category in pairs)


def test_the_model_takes_each_feature(package, schema):
    layout = package.model.tables.layout
    assert [len(layout.user), len(layout.context), len(layout.item), len(layout.dense)] == [21, 29, 16, 46 + 89]
    dense = [f.name for f in schema.features if f.kind == "dense"]
    rows = pa.concat_tables([package.input_example.slice(0, 1)] * (len(dense) + 1))
    for changed, name in enumerate(dense):  # in a row of its own; the last row stays as it is
        place, values = rows.schema.get_field_index(name), rows.column(name).to_pylist()
        values[changed] = 1000
        rows = rows.set_column(place, rows.field(place), pa.array(values, rows.field(place).type))
    ctr = package.predict(rows)
    for name, other in zip(dense, ctr):
        assert abs(other - ctr[-1]) > 1e-6, name


def test_each_pair_of_the_last_day_is_scored_once_in_a_context_that_is_null_where_the_yaml_gives_none(lake, schema):
    shown = lake.read("raw_impressions").where(F.col("day") == F.lit(schema.last_day))
    pairs = {(row[0], row[1]) for row in shown.select("user_id", "room_id").collect()}
    scores = lake.read("ctr_scores").toPandas()
    assert {(row.user, row.item) for row in scores.itertuples()} == pairs and len(scores) == len(pairs) > 100
    assert scores["ctr"].between(0, 1).all() and scores["ctr"].nunique() > 0.9 * len(pairs)
    context = {**schema.serving.context, "song_tags": ("rock", "live")}
    tagged = replace(schema, serving=replace(schema.serving, context=context))
    row = seen_candidates(tagged, shown.limit(1), schema.last_day).rows.first()
    assert row["scene"] == "home_feed" and row["scene_ctr_1d"] is None
    assert row["song_tags"] == ["rock", "live"]
