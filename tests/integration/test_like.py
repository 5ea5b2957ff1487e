"""A version's training run again from its lineage, after its tables have changed: the same metrics, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from raw_tables import JOBS, call_job
from small_export import END, schema_text, small_schema
from test_export import feature_rows

from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.loading.manifest import PAST_EXPORTS, export_uri, manifest_text
from mail_core.package.store import load_package
from mail_core.tracking.registry import resolve_model
from mail_core.tracking.runs import configure_tracking
from mail_core.training.like import Original, changed_circumstances, differing_metrics, original

MODE, TABLE_DAYS, NAME = NewUserMode.parse("masked:0.4:7"), 4, "alimama-mail-din"


def train(lake: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, str(JOBS / "train.py"), "--lake", str(lake), *arguments],
                          capture_output=True, text=True, timeout=400, env=environment)


def with_other_rows(rows: pa.Table) -> pa.Table:
    """The same impressions with other clicks and users' attributes."""
    draw = np.random.default_rng(3)
    for name in ("label", "cms_segid"):
        at = rows.schema.get_field_index(name)
        values = pa.array(draw.integers(0, 2, len(rows)), rows.schema.field(at).type)
        rows = rows.set_column(at, rows.schema.field(at), values)
    return rows


def export_features(spark, lake: Path, rows: pa.Table) -> str:
    from mail_core.lake.tables import Lake
    from mail_core.spark.export import ExportWindow, export_training

    tables = Lake(spark, str(lake), small_schema())
    tables.replace_days("features", spark.createDataFrame(rows), sorted(set(rows["day"].to_pylist())))
    return export_training(small_schema(), tables, ExportWindow(end_date=END, days=TABLE_DAYS), MODE)[0]


@pytest.fixture(scope="module")
def trained(spark, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A version trained by two ranks, and again by one while its export stood; then `features` and today's export got
    other rows, and the schema's file went."""
    root = tmp_path_factory.mktemp("like")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    rows = feature_rows(small_schema())
    export_features(spark, root / "lake", rows)
    done = train(root / "lake", "--schema", str(root / "small.yaml"), "--end-date", END.isoformat(), "--preset", "tiny",
                 "--tower", "din", "--batch-size", "32", "--seed", "5", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    again = train(root / "lake", "--like", f"models:/{NAME}/1", "--ranks", "1")
    export_features(spark, root / "lake", with_other_rows(rows))
    (root / "small.yaml").unlink()
    return root / "lake", again


@pytest.fixture(scope="module")
def lake(trained) -> Path:
    return trained[0]


@pytest.fixture
def on_same_export(trained) -> subprocess.CompletedProcess:
    return trained[1]


@pytest.fixture
def first(lake) -> Original:
    configure_tracking(None, str(lake))
    return original(f"models:/{NAME}/1")


def test_a_version_trained_again_after_its_tables_changed_has_the_same_metrics(lake, first):
    today = export_uri(str(lake), END, TABLE_DAYS, MODE)
    before = manifest_text(today)
    assert first.standing_export(str(lake)) is None

    done = train(lake, "--like", f"models:/{NAME}@challenger")
    assert done.returncode == 0, done.stderr
    assert f"the same metrics as models:/{NAME}/1" in done.stdout
    assert f"models:/{NAME}/3 registered, the same metrics as models:/{NAME}/1" in done.stderr
    third = load_package(resolve_model(f"models:/{NAME}/3").package_folder)
    assert third.metrics == first.metrics and third.lineage["like"] == first.uri
    assert third.lineage["training"] == first.lineage["training"]
    assert third.schema.text == first.schema.text and third.config == first.model
    client = mlflow.MlflowClient()
    assert client.get_model_version(NAME, "3").tags["like"] == first.uri
    assert str(client.get_model_version_by_alias(NAME, "challenger").version) == "1", "no alias moves"
    assert manifest_text(today) == before, "today's export stays"
    assert first.standing_export(str(lake)) == first.export_again_uri(str(lake))


def test_a_version_whose_export_stands_was_trained_on_it_and_other_circumstances_are_named(lake, first, on_same_export):
    assert on_same_export.returncode == 0, on_same_export.stderr
    assert f"not trained as {first.uri} was: ranks: 2 then, 1 now" in on_same_export.stderr
    assert "made again of" not in on_same_export.stderr
    second = load_package(resolve_model(f"models:/{NAME}/2").package_folder)
    assert second.lineage["export"] == first.lineage["export"] and second.lineage["training"]["ranks"] == 1
    differing = differing_metrics(first.metrics, second.metrics)
    assert len(differing) == on_same_export.stdout.count(f"differs from {first.uri}")


@pytest.mark.parametrize("arguments, named", [
    (("--like", f"models:/{NAME}/1", "--seed", "1", "--cold-start", "off"), "--cold-start, --seed: not with --like"),
    (("--like", f"models:/{NAME}/9"), f"models:/{NAME}/9"), (("--epochs", "1"), "--schema and --end-date")])
def test_options_that_do_not_go_together_are_refused(lake, first, arguments, named, caplog):
    assert call_job("train", "--lake", str(lake), *arguments) == 2
    assert named in caplog.text


def test_files_that_were_vacuumed_and_versions_that_are_not_there_are_named(spark, lake, first, tmp_path):
    from mail_core.lake.tables import Lake
    from mail_core.spark.reruns import export_again

    copy = tmp_path / "lake"
    shutil.copytree(lake / "features", copy / "features")
    tables, version = Lake(spark, str(copy), small_schema()), first.delta_versions["features"]
    assert tables.read("features", version).count() == tables.read("features").count()
    live = {Path(name).name for name in tables.read("features").inputFiles()}
    for file in copy.glob(f"features/day={END}/*.parquet"):
        if file.name not in live:
            file.unlink()
    with pytest.raises(InputError, match=rf"table features at .*version {version} for {END} have been removed .VACUUM"):
        export_again(first, str(copy))
    with pytest.raises(InputError, match=r"no version 99 of table features at .*Available versions: .0, 2."):
        tables.read("features", 99)
    with pytest.raises(InputError, match="exports-as-of.*no export to train like"):
        first.export_of(str(copy))


def test_a_table_made_anew_is_told_by_the_encoders_fingerprint(spark, lake, first):
    from mail_core.spark.reruns import export_again

    # The version's number is there, its rows are others: those that the table has now.
    export = {**first.lineage["export"], "delta_versions": {"features": first.delta_versions["features"] + 1}}
    other = replace(first, lineage={**first.lineage, "export": export})
    with pytest.raises(InputError, match=f"is not the export of {first.uri}: fingerprint of the encoders"):
        export_again(other, str(lake))
    export["manifest_fingerprint"] = "that of another run"
    assert other.standing_export(str(lake)) is None
    assert len(list((lake / PAST_EXPORTS).iterdir())) == 2, "each version of the table has a root of its own"


def test_every_differing_bit_and_circumstance_is_named(first):
    other = json.loads(json.dumps(first.metrics))
    assert differing_metrics(first.metrics, other) == []
    old = other["cohorts"][0]
    old["logloss"] = float(np.nextafter(old["logloss"], 1))
    [said] = differing_metrics(first.metrics, other)
    assert said.startswith(f"{old['cohort']}/logloss: ")
    assert changed_circumstances(first.lineage, {**first.lineage, "commit": "abc"}) == [
        f"commit: {first.lineage['commit']} then, abc now"]
