"""`jobs/reproduce_paper.py` on a small lake: killed and called again, its tables, and what it measures versions on."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import kill, start
from raw_tables import call_job
from small_export import END, schema_text, small_schema
from test_export import feature_rows

from mail_core.encoding.masking import NewUserMode
from mail_core.lake.tables import Lake
from mail_core.loading.manifest import TEST, export_uri, read_manifest, revealed_uri
from mail_core.reproduction.measure import AS_IS, REVEALED, Measured
from mail_core.schema.definition import MASKED, USER_KEY
from mail_core.tracking.runs import local_artifact

MODE, DAYS = "masked:0.4:7", 4
ROWS = ("BaseDNN", "MAIL-Base", "BaseDNN, oracle", "MAIL-Base, shuffled")
TRAINED = {"base_dnn": 2, "mail-base_dnn": 2}


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory) -> Path:
    """Four days of `features`, of which a call that trains nothing has made the export and Table 1."""
    root = tmp_path_factory.mktemp("reproduction")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    rows = feature_rows(small_schema(), per_day=120)
    Lake(spark, str(root / "lake"), small_schema()).replace_days(
        "features", spark.createDataFrame(rows), sorted(set(rows["day"].to_pylist())))
    assert call_job("reproduce_paper", *arguments(root / "lake", "--tables", "1", "--figures", "none")) == 0
    assert {path.name for path in (root / "out").iterdir()} == {"report.html", "table1.md", "table1.csv"}
    return root / "lake"


def arguments(lake: Path, *more: str) -> tuple[str, ...]:
    return ("--schema", str(lake.parent / "small.yaml"), "--lake", str(lake), "--end-date", END.isoformat(),
            "--new-users", MODE, "--days", str(DAYS), "--preset", "tiny", "--epochs", "1", "--batch-size", "64",
            "--tables", "1,2", "--rows", *ROWS, "--out", str(lake.parent / "out"), *more)


def runs(lake: Path) -> list:
    """The trainings' runs in the order of their start."""
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("alimama").experiment_id],
                               order_by=["attributes.start_time ASC"])
    return [run for run in found if "run_key" in run.data.tags]


@pytest.fixture(scope="module")
def killed(lake) -> list:
    """The runs that a call has left that was killed in its second training."""
    log = lake.parent / "killed.log"
    process = start("reproduce_paper", *arguments(lake, "--seeds", "2"), log=log)
    try:
        until = time.monotonic() + 300
        while [run.info.status for run in runs(lake)] != ["FINISHED", "RUNNING"]:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
    finally:
        kill(process)
    return runs(lake)


@pytest.fixture(scope="module")
def finished(lake, killed) -> list:
    assert call_job("reproduce_paper", *arguments(lake, "--seeds", "2")) == 0
    return runs(lake)


def test_a_finished_training_is_not_done_again_and_a_killed_one_is_gone_on_with(lake, killed, finished):
    assert [run.info.run_id for run in finished[:2]] == [run.info.run_id for run in killed]
    assert finished[0].info.end_time == killed[0].info.end_time
    assert [run.info.status for run in finished] == ["FINISHED"] * 4
    assert {name: sum(run.data.tags["model"] == name for run in finished) for name in TRAINED} == TRAINED
    assert len({run.data.tags["run_key"] for run in finished}) == 4
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in finished}
    client = mlflow.MlflowClient()
    assert client.get_run(parent).info.status == "FINISHED"
    assert {"table2.md", "report.html"} <= {file.path for file in client.list_artifacts(parent)}
    assert client.search_registered_models() == []


def test_a_call_without_time_trains_nothing_and_its_tables_say_how_many_seeds_there_are(lake, finished, caplog):
    assert call_job("reproduce_paper", *arguments(lake, "--seeds", "3", "--budget-minutes", "0")) == 0
    assert len(runs(lake)) == 4 and "no further training is started" in caplog.text
    with (lake.parent / "out" / "table2.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["metric"] == "auc" and row["cohort"] == "new"]
    assert [(row["row"], row["seeds"]) for row in lines] == [
        (name, "2") for name in ("BaseDNN", "MAIL-Base", "BaseDNN, oracle", "MAIL-Base, shuffled")]


def test_tables_figures_and_the_page_are_there_with_the_papers_numbers(lake, finished):
    out = lake.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        "report.html", *(f"{name}.{end}" for name in ("table1", "table2", "settings", "warm_up", "lengths",
                                                      "calibration") for end in ("md", "csv")),
        *(f"{name}.png" for name in ("figure4", "figure5", "figure6", "warm_up", "lengths", "calibration"))}
    table = (out / "table2.md").read_text()
    for words in ("| MAIL-Base | paper | BaseDNN | 2 |", "| BaseDNN, oracle | reference |", "0.5934 (+1.22)",
                  "| MAIL-Base, shuffled | reference |", "gap closed", "R²"):
        assert words in table
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6 and "src=\"http" not in page and "<script" not in page


def test_versions_are_measured_on_the_rows_of_their_test_split(lake, finished):
    for run in finished:
        measured = Measured.from_json(local_artifact(run.info.run_id, "measured.json").read_text())
        for cohort in ("old", "new", "unseen", "all"):
            for metric in ("auc", "gauc", "rows"):
                recorded = run.data.metrics.get(f"test/{cohort}/{metric}")  # what is undefined is not there
                assert measured.value(AS_IS, cohort, metric) == (
                    None if recorded is None else pytest.approx(recorded, abs=1e-6)), (cohort, metric)
        assert measured.value(REVEALED, "old", "logloss") == measured.value(AS_IS, "old", "logloss")
        assert measured.value(REVEALED, "new_masked", "logloss") != measured.value(AS_IS, "new_masked", "logloss")
        assert measured.value(REVEALED, "new_natural", "logloss") == measured.value(AS_IS, "new_natural", "logloss")
        assert bool(measured.fit) == (run.data.tags["model"] == "mail-base_dnn")


def test_the_revealed_day_is_the_test_split_with_the_hidden_behaviour(lake, finished):
    uri = export_uri(str(lake), END, DAYS, NewUserMode.parse(MODE))
    hidden, shown = (sorted_rows(root) for root in (uri, revealed_uri(uri)))
    assert hidden.column_names == shown.column_names and len(hidden) == len(shown) == 120
    lists = set(small_schema().behavior_vocabularies)
    masked = np.flatnonzero(hidden[MASKED].to_numpy())
    for name in hidden.column_names:
        if name not in lists:
            assert hidden[name].equals(shown[name]), name
        else:
            own = [row for row in range(120) if row not in set(masked)]
            assert hidden[name].take(own).equals(shown[name].take(own)), name
    assert not np.any(hidden["behavior_btag"].take(masked).to_pylist())
    assert np.any(shown["behavior_btag"].take(masked).to_pylist(), axis=1).sum() > 10


def sorted_rows(uri: str) -> pa.Table:
    manifest = read_manifest(uri)
    assert manifest.splits[TEST]
    table = pa.concat_tables([pq.read_table(f"{uri}/{entry.path}") for entry in manifest.splits[TEST]])
    return table.sort_by([(name, "ascending") for name in (USER_KEY, "hour", "cate_id", "price", "label")])


@pytest.mark.parametrize("more, message", [
    (("--tables", "2,7"), "table 7"), (("--figures", "1"), "figure 1"), (("--rows", "MAIL-Bass"), "MAIL-Bass"),
    (("--learning-rates", "0.1,0.2"), "validation day"), (("--end-date", "2017-05-12"), "2017-05-0"),
    (("--seeds", "0"), "seeds")])
def test_bad_arguments_end_with_exit_code_2(lake, more, message, caplog):
    assert call_job("reproduce_paper", *arguments(lake), *more) == 2
    assert message in caplog.text
