"""Simulated logs as Spark writes them."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from mail_core.errors import InputError
from mail_core.schema.definition import Schema
from mail_core.simulation.logs import SimulationSummary, simulate_logs
from mail_core.simulation.planted import WorldConfig
from mail_core.simulation.world import World

JOB = Path(__file__).resolve().parents[2] / "jobs" / "simulate_logs.py"
CONFIG = WorldConfig(users=5_000, items=300, impressions_per_user=10.0, behaviors_per_user=12.0, seed=7)
ARGUMENTS = ["--users", "5000", "--items", "300", "--impressions-per-user", "10", "--behaviors-per-user", "12",
             "--seed", "7"]


@pytest.fixture(scope="module")
def made(spark: SparkSession, alimama: Schema, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path,
                                                                                                  SimulationSummary]:
    out = tmp_path_factory.mktemp("simulated")
    return out, simulate_logs(spark, alimama, CONFIG, str(out))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def table(out: Path, file: str) -> pd.DataFrame:
    parts = [pd.read_csv(p, dtype=str, keep_default_na=False) for p in sorted((out / file).glob("part-*.csv"))]
    return pd.concat(parts, ignore_index=True)


def run(*arguments: str, cores: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": f"--master local[{cores}] pyspark-shell"}
    return subprocess.run([sys.executable, str(JOB), *arguments], capture_output=True, text=True, env=environment)


def test_the_job_on_one_core_writes_the_same_bytes(made: tuple[Path, SimulationSummary], tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"), *ARGUMENTS, cores=1)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(made[0])
    assert len(contents(made[0])) == 12  # two parts of three logs and of the world's users, items, three of the world
    assert f"impressions {made[1].impressions:,}" in done.stdout
    assert f"AUC of the true probability: {made[1].auc_truth:.4f}" in done.stdout
    assert f"AUC of the best attribute-only predictor: {made[1].auc_attributes:.4f}" in done.stdout


def test_one_partition_and_gzip_hold_the_same_rows_and_a_simulation_is_replaced(
        spark: SparkSession, alimama: Schema, made: tuple[Path, SimulationSummary], tmp_path: Path) -> None:
    simulate_logs(spark, alimama, WorldConfig(users=100, items=50), str(tmp_path))
    simulate_logs(spark, alimama, CONFIG, str(tmp_path), compress=True, files=1)
    unzipped = {name.removesuffix(".gz"): gzip.decompress(data) if name.endswith(".gz") else data
                for name, data in contents(tmp_path).items()}
    assert sum(name.endswith(".gz") for name in contents(tmp_path)) == 7
    assert unzipped == contents(made[0])


def test_files_have_the_published_shape(alimama: Schema, made: tuple[Path, SimulationSummary]) -> None:
    out, summary = made
    for raw in (alimama.impressions, alimama.behaviors, alimama.users, alimama.items):
        for part in (out / raw.file).iterdir():
            assert part.read_text().split("\n", 1)[0] == ",".join(c.header for c in raw.columns)
    profiles, ads = table(out, "user_profile.csv"), table(out, "ad_feature.csv")
    assert (profiles["pvalue_level"] == "").mean() == pytest.approx(0.54, abs=0.03)
    assert (profiles["new_user_class_level "] == "").mean() == pytest.approx(0.32, abs=0.03)
    assert len(profiles) == summary.profiles == pytest.approx(0.93 * summary.users, rel=0.01)
    assert (ads["brand"] == "NULL").mean() == pytest.approx(0.29, abs=0.09) and len(ads) == 300
    assert set(table(out, "behavior_log.csv")["btag"]) == {"pv", "cart", "fav", "buy"}


def test_impressions_are_labelled_and_lie_in_the_schemas_days(alimama: Schema,
                                                              made: tuple[Path, SimulationSummary]) -> None:
    out, summary = made
    shown, behaved = table(out, "raw_sample.csv"), table(out, "behavior_log.csv")
    assert ((shown["clk"] == "1") == (shown["nonclk"] == "0")).all()
    assert (shown["clk"] == "1").mean() == pytest.approx(0.05, abs=0.005)
    assert not shown.duplicated(["user", "time_stamp", "adgroup_id"]).any()
    assert (len(shown), len(behaved)) == (summary.impressions, summary.behaviors)
    for log, days in ((shown, 8), (behaved, 22)):
        local = pd.to_datetime(log["time_stamp"].astype(int), unit="s", utc=True).dt.tz_convert(alimama.timezone)
        assert local.dt.date.nunique() == days and local.dt.date.max() == alimama.last_day


def test_some_users_and_items_are_first_seen_on_the_last_day(made: tuple[Path, SimulationSummary]) -> None:
    shown = table(made[0], "raw_sample.csv").astype({"time_stamp": int})
    late = shown["time_stamp"] >= shown["time_stamp"].max() // 86_400 * 86_400 - 8 * 3_600
    before, after = shown[~late], shown[late]
    for column in ("user", "adgroup_id"):
        assert set(after[column]) - set(before[column])


def test_the_saved_world_explains_the_written_clicks(made: tuple[Path, SimulationSummary]) -> None:
    out, summary = made
    shown = table(out, "raw_sample.csv")
    users, items = shown["user"].to_numpy(np.int64), shown["adgroup_id"].to_numpy(np.int64)
    probability = World.load(str(out / "world")).click_probability(users, items)
    clicks = (shown["clk"] == "1").to_numpy()
    assert clicks.sum() == pytest.approx(probability.sum(), abs=4 * np.sqrt((probability * (1 - probability)).sum()))
    top = probability > np.quantile(probability, 0.9)
    assert clicks[top].mean() == pytest.approx(probability[top].mean(), rel=0.1)
    assert summary.auc_truth is not None and summary.auc_attributes is not None
    assert 0.8 < summary.auc_truth and 0.6 < summary.auc_attributes < summary.auc_truth


def test_a_folder_with_anything_else_in_it_is_refused(spark: SparkSession, alimama: Schema, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="thesis.txt"):
        simulate_logs(spark, alimama, CONFIG, str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_days_outside_the_schema_are_refused(spark: SparkSession, alimama: Schema, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first_day"):
        simulate_logs(spark, alimama, WorldConfig(behavior_days=30), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_window_in_which_the_clocks_change_is_refused(spark: SparkSession, alimama: Schema, tmp_path: Path) -> None:
    schema = replace(alimama, timezone="Europe/Berlin", first_day=date(2017, 3, 1), last_day=date(2017, 3, 30))
    with pytest.raises(InputError, match="the clocks of Europe/Berlin change"):
        simulate_logs(spark, schema, CONFIG, str(tmp_path / "out"))


def test_a_bad_setting_ends_the_job_with_exit_code_two(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--attribute-strength", "2", cores=1)
    assert done.returncode == 2 and "attribute_strength" in done.stderr
