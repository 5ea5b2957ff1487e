"""`jobs/promote.py` and `jobs/rollback.py` on real Spark, Delta and MLflow, also when killed between two writes.

Labels are drawn from a version's own predictions, so that this version is good, and one with other random weights bad.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyspark.sql import functions as F
from raw_tables import call_job
from small_package import feature_rows, small_package

from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.package.store import load_package, save_package
from mail_core.spark.promotions import PromotionRequest, promote, roll_back
from mail_core.tracking import promotions as registry
from mail_core.tracking.registry import register_package, resolve_model
from mail_core.tracking.runs import configure_tracking

DAY, NEXT = date(2017, 5, 13), date(2017, 5, 14)
ROWS = 800


@dataclass(frozen=True)
class Made:
    lake: Lake
    good: str
    """models:/NAME/VERSION of the version whose predictions the labels are drawn from."""
    bad: str


def with_loud_virtual_behavior(folder: Path) -> Path:
    """A copy whose zero-shot tower has larger weights, so that virtual behaviour changes the order of new rows."""
    package = load_package(folder)
    for parameter in package.model.zero_shot.parameters():
        parameter.mul_(2)
    return save_package(folder.with_name("loud"), model=package.model, encoders=package.encoders,
                        lineage=package.lineage, metrics=package.metrics)


@pytest.fixture(scope="module")
def made(spark, alimama, tmp_path_factory) -> Made:
    root = tmp_path_factory.mktemp("promote")
    lake = Lake(spark, str(root / "lake"), alimama)
    folders = {"good": with_loud_virtual_behavior(small_package(root / "quiet", alimama, seed=5, test_day=DAY)),
               "bad": small_package(root / "bad", alimama, seed=4, test_day=DAY)}
    good, generator = load_package(folders["good"]), np.random.default_rng(0)
    for day, virtual_behavior in ((DAY, True), (NEXT, False)):  # on the next day virtual behaviour only does harm
        rows = feature_rows(alimama, day, ROWS, seed=day.day, users=300)
        clicks = generator.random(ROWS) < good.predict(rows, virtual_behavior=virtual_behavior)
        place = rows.schema.get_field_index("label")
        rows = rows.set_column(place, rows.schema.field(place), pa.array(clicks.astype(np.int32)))
        lake.replace_days("features", spark.createDataFrame(rows), [day])
    configure_tracking(None, lake.uri, "alimama")
    return Made(lake, *(f"models:/{name}/{register_package(folder, name)}" for name, folder in folders.items()))


@pytest.fixture
def model(made, request) -> Iterator[Any]:
    """Adds a version of `made` to this test's own registered model, as the challenger."""
    configure_tracking(None, made.lake.uri)
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]

    def challenge(uri: str) -> str:
        version = str(MlflowClient().copy_model_version(uri, name).version)
        MlflowClient().set_registered_model_alias(name, "challenger", version)
        return version

    challenge.name = name
    return challenge


def run(made, job, *arguments):
    return call_job(job, "--schema", "alimama", "--lake", made.lake.uri, *arguments)


def decide(made, name, day=DAY, *arguments):
    return run(made, "promote", "--date", str(day), "--model", name, "--resamples", "60", *arguments)


def row(made, name, day=DAY):
    found = made.lake.read("promotions").where((F.col("model_name") == name) & (F.col("day") == F.lit(day)))
    [only] = found.toArrow().to_pylist()
    return only


def state(made, name):
    """All that a promotion or rollback leaves, the time of a rollback excepted."""
    client, table = MlflowClient(), made.lake.read("promotions").where(F.col("model_name") == name)
    versions = {v.version: (v.description, set(v.tags) - {"rolled_back"}, "rolled_back" in v.tags)
                for v in client.search_model_versions(f"name = '{name}'")}
    tags = {key: value for key, value in client.get_registered_model(name).tags.items()}
    rows = [{**r, "rolled_back_at": r["rolled_back_at"] is not None} for r in table.toArrow().to_pylist()]
    return registry.aliases(name), versions, tags, sorted(rows, key=lambda r: r["day"])


def test_a_first_version_is_promoted_when_it_beats_the_constant_ctr_and_a_rerun_changes_nothing(made, model, capsys):
    assert model(made.good) == "1" and decide(made, model.name) == DONE
    printed, before = capsys.readouterr().out, state(made, model.name)
    found = row(made, model.name)
    assert (found["decision"], found["model_version"], found["champion"]) == ("promoted", "1", None)
    assert found["reason"].startswith("first version, better than a constant CTR: AUC 0.")
    [everybody] = found["cohorts"]
    ctr = everybody["clicks"] / everybody["rows"]
    assert everybody["against_logloss"] == pytest.approx(-ctr * np.log(ctr) - (1 - ctr) * np.log(1 - ctr))
    assert everybody["logloss_low"] < everybody["logloss_difference"] < everybody["logloss_high"] < 0
    assert registry.aliases(model.name) == {"challenger": "1", "champion": "1"}
    version = MlflowClient().get_model_version(model.name, "1")
    assert version.tags["promotion_decision"] == "promoted" and version.tags["promotion_reason"] == found["reason"]
    assert "**Promoted** on 2017-05-13 (measured against a constant CTR)" in version.description
    assert decide(made, model.name) == DONE
    assert state(made, model.name) == before and capsys.readouterr().out == printed


def test_a_first_version_that_does_not_beat_it_is_kept(made, model):
    model(made.bad)
    assert decide(made, model.name) == DONE
    assert row(made, model.name)["decision"] == "kept" and registry.aliases(model.name) == {"challenger": "1"}
    assert "first version, not better than a constant CTR" in row(made, model.name)["reason"]


def test_an_equal_challenger_is_promoted_a_worse_one_is_not_and_the_gain_is_told_every_day(made, model, caplog):
    model(made.good)
    assert decide(made, model.name) == DONE
    gain = row(made, model.name)
    assert gain["virtual_behavior_gain_low"] < gain["virtual_behavior_gain"] < gain["virtual_behavior_gain_high"]
    assert not gain["gain_lost"] and gain["virtual_behavior_gain_low"] > 0 and gain["gain_cohort"] == "new"
    assert model(made.good) == "2" and decide(made, model.name) == DONE
    equal = row(made, model.name)
    assert (equal["decision"], equal["model_version"], equal["champion"]) == ("promoted", "2", "1")
    judged = {c["cohort"]: c for c in equal["cohorts"]}
    assert list(judged) == ["old", "new_masked", "new_natural", "new", "unseen", "all"]
    assert {(c["auc_difference"], c["auc_low"], c["logloss_high"]) for c in judged.values() if c["rows"]} == {(0, 0, 0)}
    assert registry.aliases(model.name) == {"challenger": "2", "champion": "2", "previous": "1"}

    assert model(made.bad) == "3" and "virtual behaviour gains nothing" not in caplog.text
    assert decide(made, model.name, NEXT) == DONE
    worse = row(made, model.name, NEXT)
    assert worse["decision"] == "kept" and "loses more than the margin of 0.005 AUC" in worse["reason"]
    assert registry.aliases(model.name) == {"challenger": "3", "champion": "2", "previous": "1"}
    assert row(made, model.name) == equal


def test_a_lost_gain_is_an_alarm_and_decides_nothing(made, model, caplog, capsys):
    model(made.good), MlflowClient().set_registered_model_alias(model.name, "champion", "1"), model(made.good)
    assert decide(made, model.name, NEXT) == DONE
    found = row(made, model.name, NEXT)
    new = load_package(resolve_model(made.good).package_folder)
    rows = made.lake.read("features").where(F.col("day") == F.lit(NEXT)).toArrow()
    is_new = np.array([not values for values in rows.column("behavior_btag").to_pylist()])
    label, on, off = (np.asarray(x)[is_new] for x in (rows.column("label"), new.predict(rows),
                                                      new.predict(rows, virtual_behavior=False)))
    wins = [np.mean([np.mean(p > q) for p in x[label == 1] for q in [x[label == 0]]]) for x in (on, off)]
    assert found["virtual_behavior_gain"] == pytest.approx(wins[0] - wins[1], abs=1e-4)
    assert found["virtual_behavior_gain_high"] < 0 and found["gain_lost"] and found["decision"] == "promoted"
    assert "virtual behaviour gains nothing any more" in caplog.text and "LOST" in capsys.readouterr().out
    # The champion on another day is compared with nothing; its gain is told all the same.
    assert decide(made, model.name, DAY) == DONE
    assert row(made, model.name)["reason"] == "version 2 is the champion already"
    assert row(made, model.name)["virtual_behavior_gain"] > 0 and row(made, model.name)["cohorts"] == []


def test_days_that_a_version_was_trained_on_decide_nothing(made, model, alimama, tmp_path, caplog):
    late = register_package(small_package(tmp_path / "p", alimama, seed=3, test_day=NEXT), f"{model.name}_late")
    model(f"models:/{model.name}_late/{late}")
    assert decide(made, model.name) == BAD_INPUT
    assert "was trained on the days before 2017-05-14: 2017-05-13 is no held-out day" in caplog.text
    MlflowClient().set_registered_model_alias(model.name, "champion", "1")
    model(made.good)
    assert decide(made, model.name) == DONE
    assert "the champion, version 1, was trained on the days before 2017-05-14" in row(made, model.name)["reason"]
    assert registry.aliases(model.name)["champion"] == "1"


class Killed(BaseException):
    """What no handler of the job catches."""


@contextmanager
def killed_before(monkeypatch, write: int) -> Iterator[None]:
    """End at the write of this number, counted from 0 over MLflow's registry and the lake."""
    left = [write]

    def counted(function):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*args, **kwargs)
        return call

    with monkeypatch.context() as patch:
        for name in ("set_model_version_tag", "delete_model_version_tag", "set_registered_model_alias",
                     "set_registered_model_tag", "delete_registered_model_tag", "update_model_version"):
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        patch.setattr(Lake, "replace_days", counted(Lake.replace_days))
        yield


@pytest.fixture(scope="module")
def decision(made):
    """A promotion of version 2 over version 1, to be carried out again and again under other names."""
    configure_tracking(None, made.lake.uri)
    for _ in range(2):
        version = MlflowClient().copy_model_version(made.good, "decided").version
        MlflowClient().set_registered_model_alias("decided", "challenger", version)
        assert decide(made, "decided") == DONE
    promotion = registry.recorded("decided", "2", DAY)
    assert promotion is not None and promotion.promoted and promotion.champion == "1"
    return promotion


def expected_state(made, name):
    """The undisturbed state, under another name."""
    aliases, versions, tags, rows = state(made, "decided")
    return aliases, versions, tags, [{**r, "model_name": name} for r in rows]


@pytest.mark.parametrize("write", [6, 7], ids=["between the aliases", "before the table"])
def test_a_promotion_that_is_killed_between_its_writes_is_finished_by_a_rerun(made, model, decision, monkeypatch,
                                                                              write):
    model(made.good), model(made.good)
    client, name = MlflowClient(), model.name
    client.set_registered_model_alias(name, "champion", "1")
    mine = replace(decision, model_name=name)
    # The first version's promotion, as the undisturbed model has it.
    first = replace(registry.recorded("decided", "1", DAY), model_name=name)
    registry.record(first)
    registry.carry_out(first)
    request = PromotionRequest(day=DAY, name=name)
    with killed_before(monkeypatch, write), pytest.raises(Killed):
        registry.record(mine)
        promote(made.lake, request)
    assert promote(made.lake, request) == mine == promote(made.lake, request)
    assert state(made, name) == expected_state(made, name)


def test_a_rollback_puts_the_previous_version_back_and_says_so(made, model, decision, monkeypatch, caplog):
    assert run(made, "rollback", "--model", "decided", "--reason", "CTR fell") == DONE
    assert registry.aliases("decided") == {"challenger": "2", "champion": "1", "previous": "2"}
    found = row(made, "decided")
    assert (found["model_version"], found["decision"]) == ("2", "promoted")
    assert (found["rolled_back_to"], found["rollback_reason"]) == ("1", "CTR fell")
    assert "**Rolled back** to version 1" in MlflowClient().get_model_version("decided", "2").description
    assert decide(made, "decided") == DONE and registry.aliases("decided")["champion"] == "1"  # the day stands
    assert decide(made, "decided", NEXT) == DONE
    assert "version 2 was rolled back" in row(made, "decided", NEXT)["reason"]

    rolled_back = state(made, "decided")
    assert run(made, "rollback", "--model", "decided", "--reason", "it was not the model") == DONE
    assert registry.aliases("decided") == {"challenger": "2", "champion": "2", "previous": "1"}
    assert row(made, "decided")["rolled_back_to"] is None and not registry.is_rolled_back("decided", "2")
    for write in (2, 7):  # between the aliases, before the table
        with killed_before(monkeypatch, write), pytest.raises(Killed):
            roll_back(made.lake, "decided", "CTR fell")
        if write == 2:
            assert registry.aliases("decided") == {"challenger": "2", "champion": "1", "previous": "1"}
            assert decide(made, "decided", NEXT + timedelta(days=1)) == BAD_INPUT
            assert "a rollback was not finished" in caplog.text
        roll_back(made.lake, "decided", "another reason, which does not count")
        found = state(made, "decided")
        assert found[0] == rolled_back[0] and found[2:] == rolled_back[2:], write
        roll_back(made.lake, "decided", "forward again")


def test_there_must_be_something_to_go_back_to(made, model, caplog):
    assert run(made, "rollback", "--model", "nobody", "--reason", "x") == BAD_INPUT and "'nobody'" in caplog.text
    model(made.good)
    for alias, said in (("champion", "no version has the alias champion"), ("previous", "the alias previous"),
                        (None, "version 1 is champion and previous alike")):
        assert run(made, "rollback", "--model", model.name, "--reason", "x") == BAD_INPUT and said in caplog.text
        if alias is not None:
            MlflowClient().set_registered_model_alias(model.name, alias, "1")
