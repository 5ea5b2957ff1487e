"""A version trained on, the next day, with grown vocabularies: where it starts, what it registers, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from raw_tables import JOBS, call_job
from safetensors.torch import load_file, save_file
from small_export import DAYS, END, SPLIT_FILES, planted_rows, schema_text, small_schema, write_export

from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit_encoders
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.loading.manifest import TRAIN, VALIDATION, export_uri
from mail_core.package.store import load_package
from mail_core.schema.definition import FIRST_CODE
from mail_core.tracking.registry import resolve_model
from mail_core.tracking.runs import configure_tracking
from mail_core.training.checkpoints import Checkpoints
from mail_core.training.data import open_export
from mail_core.training.like import original
from mail_core.training.loop import build_model, fit
from mail_core.training.moments import MOMENTS, moments_of
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks
from mail_core.training.run import TrainRequest, request_from, request_key, request_like, train_and_register
from mail_core.training.step import TrainStep
from mail_core.training.warm_start import WarmStart, warm_start

NAME, MODE = "alimama-mail-base_dnn", NewUserMode.parse("masked:0.4:7")
CONFIG = TrainingConfig(model=model_config("tiny", "base_dnn", "base"), batch_size=32, epochs=2)
NEXT = END + timedelta(days=1)
MOVED = 5
"""IDs that have left the vocabularies the next day, and as many that are new in them."""


def later_encoders() -> Encoders:
    """Of rows with other frequencies, in which users and items have moved by MOVED."""
    schema = small_schema()
    rows, _ = planted_rows(schema, 500, MODE, seed=9)
    for name in ("userid", "adgroup_id"):
        field = rows.schema.field(name)
        moved = pc.add(rows.column(name), pa.scalar(MOVED, field.type))
        rows = rows.set_column(rows.schema.get_field_index(name), field, moved)
    return fit_encoders(rows, schema)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    """The exports of three days, and a champion of the first one's."""
    root = tmp_path_factory.mktemp("warm")
    (root / "small.yaml").write_text(schema_text(), encoding="utf-8")
    write_export(root / "lake")
    for seed, end in ((1, NEXT), (2, END + timedelta(days=3))):
        write_export(root / "lake", seed=seed, end=end, encoders=later_encoders())
    try:
        train_and_register(request_on(root / "lake", END), Ranks.alone())
    finally:
        torch.use_deterministic_algorithms(False)
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    return root / "lake"


def request_on(lake: Path, end) -> TrainRequest:
    return TrainRequest(schema=small_schema(), lake_uri=str(lake), end_date=end, new_users=None, preset="tiny",
                        config=CONFIG)


@pytest.fixture
def start(lake) -> WarmStart:
    configure_tracking(None, str(lake))
    return warm_start(f"models:/{NAME}/1")


def export_of(lake: Path, end=NEXT):
    return open_export(export_uri(str(lake), end, DAYS, MODE), small_schema())


def arguments(lake: Path, *others: str, end=NEXT) -> list[str]:
    return ["--lake", str(lake), "--schema", str(lake.parent / "small.yaml"), "--preset", "tiny", "--batch-size", "32",
            "--end-date", end.isoformat(), *others]


def train(*given: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, str(JOBS / "train.py"), *given], capture_output=True, text=True, timeout=400,
                          env=environment)


def by_value(encoders: Encoders, layout, table_VD: torch.Tensor) -> dict[tuple, torch.Tensor]:
    """(vocabulary, value or code that means the same everywhere) -> its row."""
    rows = {}
    for field in layout.vocabularies:
        values = encoders.vocabularies[field.name].to_pylist() if field.kind != "dense" else ["itself"]
        names = [*(f"code {code}" for code in range(field.size - len(values))), *values]
        rows |= {(field.name, name): table_VD[field.offset + at] for at, name in enumerate(names)}
    return rows


@pytest.mark.parametrize("optimizer", EMBEDDING_OPTIMIZERS)
def test_known_rows_and_moments_are_the_champions_and_new_ones_are_fresh(lake, start, optimizer):
    export = start.part_of(export_of(lake), CONFIG.model)
    model, fresh = (build_model(export, CONFIG, Ranks.alone()) for _ in range(2))
    champion = load_package(start.folder)
    carried = start.carried(model.layout, export.encoders)
    carried.give_weights(model)
    step = TrainStep(model, replace(CONFIG, embedding_optimizer=optimizer), Ranks.alone())
    carried.give_moments(step)
    moments, kept = moments_of(step), load_file(start.moments)

    for found, before, untouched in (
            (model.tables.weight, champion.model.tables.weight, fresh.tables.weight),
            *((moments[f"tables.weight.{k}"], kept[f"tables.weight.{k}"], torch.zeros_like(model.tables.weight))
              for k in ("m", "v"))):
        then = by_value(champion.encoders, champion.model.layout, before)
        now, new = (by_value(export.encoders, model.layout, table) for table in (found, untouched))
        assert {key[0] for key in set(now) - set(then)} == {key[0] for key in set(then) - set(now)} == {
            "userid", "adgroup_id"}
        assert all(torch.equal(row, then[key] if key in then else new[key]) for key, row in now.items())
    assert kept["tables.weight.m"].any() and int(moments["tables.weight.steps"]) == int(kept["tables.weight.steps"]) > 0
    others = champion.model.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in model.state_dict().items()
               if name != "tables.weight")
    assert set(moments) == set(kept) and all(torch.equal(moments[name], kept[name]) for name in kept
                                             if not name.startswith("tables"))
    codes = export.encoders.codes("userid", champion.encoders.vocabularies["userid"])
    assert 0 < (codes < FIRST_CODE).sum() <= MOVED, "some have left"


def test_training_begins_there_and_reads_the_unseen_days_alone(lake, start):
    later = END + timedelta(days=3)
    export = start.part_of(export_of(lake, later), CONFIG.model)
    # Of the six training days the last two, and the validation day.
    assert export.rows(TRAIN, VALIDATION) == sum(len(range(at, rows, 6)) for rows in SPLIT_FILES["train"]
                                                 for at in (0, 1)) + sum(SPLIT_FILES["validation"])
    points: list[int] = []
    still = replace(CONFIG, epochs=1, learning_rate=1e-12)
    fitted = fit(export, still, Ranks.alone(), lambda values, step: points.append(step), start=start)
    assert max(points) == -(-export.rows(TRAIN, VALIDATION) // still.batch_size)
    model = build_model(export, still, Ranks.alone())
    start.carried(model.layout, export.encoders).give_weights(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fitted.model.get_parameter(name), parameter, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def warm(lake) -> subprocess.CompletedProcess:
    return train(*arguments(lake, "--warm-start", f"models:/{NAME}@champion", "--ranks", "2"))


def test_the_job_registers_a_version_that_says_what_it_started_from(lake, warm, start):
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.strip().endswith(f"registered models:/{NAME}/2")
    assert f"training starts from models:/{NAME}/1: " in warm.stderr
    client = mlflow.MlflowClient()
    version = client.get_model_version(NAME, "2")
    assert str(client.get_model_version_by_alias(NAME, "challenger").version) == "2"
    told = {"warm_start": f"models:/{NAME}/1", "days_trained": f"{END} to {END}"}
    assert told.items() <= version.tags.items()
    assert version.description.startswith(f"Trained on {END} to {END}, starting from models:/{NAME}/1, measured on "
                                          f"{NEXT}; new users: ")
    run = client.get_run(version.run_id)
    assert told.items() <= run.data.tags.items()
    assert run.data.metrics["test/all/rows"] == sum(SPLIT_FILES["test"]) and "test/new/auc" in run.data.metrics
    assert run.data.params["epochs"] == "2", "as many as the champion had"
    assert [int(run.data.params[f"rows.{split}"]) for split in (TRAIN, VALIDATION)] == [0, sum(SPLIT_FILES[VALIDATION])]
    package = load_package(resolve_model(f"models:/{NAME}/2").package_folder)
    assert package.lineage["warm_start"] == {"version": f"models:/{NAME}/1", "first_day": END.isoformat(),
                                             "last_day": END.isoformat(), "moments": True}
    assert package.encoders.fingerprint == later_encoders().fingerprint
    following = warm_start(f"models:/{NAME}/2")
    assert following.first_day == NEXT
    steps = [int(load_file(each.moments)["tables.weight.steps"]) for each in (start, following)]
    assert steps[1] > steps[0], "its moments go on from the champion's"


def test_it_is_trained_again_like_itself_as_long_as_its_start_is_there(lake, warm, start):
    done = train("--lake", str(lake), "--like", f"models:/{NAME}/2")
    assert done.returncode == 0, done.stderr
    assert f"the same metrics as models:/{NAME}/2" in done.stdout
    assert mlflow.MlflowClient().get_model_version(NAME, "3").tags["warm_start"] == f"models:/{NAME}/1"
    hidden = start.moments.rename(start.moments.with_suffix(".hidden"))
    try:
        with pytest.raises(InputError, match=f"models:/{NAME}/1, from which it was started, has lost {MOMENTS}"):
            request_like(f"models:/{NAME}/2", str(lake))
        without = warm_start(f"models:/{NAME}/1")
        assert without.moments is None and original(f"models:/{NAME}/1") == without.version
    finally:
        hidden.rename(start.moments)


def test_a_run_that_broke_off_goes_on_and_another_start_is_another_run(lake, start, tmp_path):
    export = start.part_of(export_of(lake), CONFIG.model)

    class Killed(Exception):
        pass

    def killed_at(last: int):
        def record(values, step):
            if step > last:
                raise Killed
        return record

    undisturbed = fit(export, CONFIG, Ranks.alone(), killed_at(1000), start=start)
    with pytest.raises(Killed):
        fit(export, CONFIG, Ranks.alone(), killed_at(7), Checkpoints(tmp_path, "key", Ranks.alone()), start)
    resumed = Checkpoints(tmp_path, "key", Ranks.alone(), resume=True)
    again = fit(export, CONFIG, Ranks.alone(), killed_at(1000), resumed, start)
    expected = undisturbed.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())

    request = request_from(f"models:/{NAME}/1", replace(request_on(lake, NEXT), config=replace(CONFIG, epochs=None)))
    assert request.config == CONFIG
    other = replace(start, version=replace(start.version, uri=f"models:/{NAME}/9"))
    requests = (request, replace(request, warm_start=None), replace(request, warm_start=other),
                replace(request, warm_start=replace(start, moments=None)))
    assert len({request_key(each, export, Ranks.alone()) for each in requests}) == 4


@pytest.mark.parametrize("others, named", [
    (("--warm-start", f"models:/{NAME}/7"), f"models:/{NAME}/7"),
    (("--warm-start", f"models:/{NAME}@champion", "--tower", "din"), "tower din, but base_dnn in the model of models:"),
    (("--warm-start", f"models:/{NAME}@champion", "--cold-start", "off"), "cold start off, but base in the model"),
    (("--warm-start", f"models:/{NAME}@champion", "--end-date", END.isoformat()),
     f"models:/{NAME}/1 has seen all training days of the export, which end on {END - timedelta(days=1)}")])
def test_a_start_that_does_not_fit_ends_with_exit_code_2(lake, others, named, caplog):
    assert call_job("train", *arguments(lake, *others)) == 2
    assert named in caplog.text


def test_it_cannot_be_asked_for_beside_like(lake, caplog):
    assert call_job("train", "--lake", str(lake), "--like", f"models:/{NAME}/1", "--warm-start", "models:/x/1") == 2
    assert "--warm-start: not with --like" in caplog.text


def test_damaged_moments_and_those_of_another_model_are_refused_by_name(lake, start, tmp_path):
    export = start.part_of(export_of(lake), CONFIG.model)
    model = build_model(export, CONFIG, Ranks.alone())
    step, kept = TrainStep(model, CONFIG, Ranks.alone()), load_file(start.moments)
    bad = tmp_path / MOMENTS
    for content, named in ((b"\x80\x04pickle", "not a safetensors file"),
                           ({**kept, "tables.weight.m": kept["tables.weight.m"][1:].clone()}, "tables.weight.m: shape"),
                           ({**kept, "odd.exp_avg": torch.zeros(2)}, "tensor odd.exp_avg: .* none of that name"),
                           ({n: t for n, t in kept.items() if n != "tables.weight.v"}, "no tensor tables.weight.v")):
        bad.write_bytes(content) if isinstance(content, bytes) else save_file(content, bad)
        with pytest.raises(InputError, match=f"{MOMENTS}: .*{named}"):
            replace(start, moments=bad).carried(model.layout, export.encoders).give_moments(step)
