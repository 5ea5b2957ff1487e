"""`jobs/evaluate.py` on real Spark, Delta and MLflow, against metrics worked out from the package's own predictions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyspark.sql import functions as F
from raw_tables import call_job
from small_package import feature_rows, small_package

from mail_core.encoding.masking import NewUserMode
from mail_core.evaluation.cohorts import cohort_masks
from mail_core.evaluation.comparison import paired_differences
from mail_core.evaluation.metrics import cohort_metrics, relative_improvement
from mail_core.job import BAD_INPUT, DONE
from mail_core.lake.tables import Lake
from mail_core.package.scoring import Package
from mail_core.package.store import load_package
from mail_core.simulation.draws import calibrated, draw_users
from mail_core.simulation.planted import WorldConfig, draw_items
from mail_core.simulation.world import World, items_table, users_table, world_document
from mail_core.tracking.registry import register_package
from mail_core.tracking.runs import configure_tracking

DAY, OTHER_DAY = date(2017, 5, 13), date(2017, 5, 12)
MODE = "masked:0.4:7"


@dataclass(frozen=True)
class Made:
    """A lake with features and three registered versions."""

    lake: Lake
    rows: pa.Table
    mail: Package
    base: Package


@pytest.fixture(scope="module")
def made(spark, alimama, tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    lake = Lake(spark, str(root / "lake"), alimama)
    rows = feature_rows(alimama, DAY, 400, seed=1)
    for day, table in ((DAY, rows), (OTHER_DAY, feature_rows(alimama, OTHER_DAY, 30, seed=2))):
        lake.replace_days("features", spark.createDataFrame(table), [day])
    configure_tracking(None, lake.uri, "alimama")
    mail = small_package(root / "mail", alimama, seed=3, new_users=MODE)
    base = small_package(root / "base", alimama, zero_shot=False, seed=4, new_users=MODE)
    for folder, name in ((mail, "mail"), (base, "o'base"), (base, "third")):
        register_package(folder, name, "challenger")
    return Made(lake, rows, load_package(mail), load_package(base))


def evaluate(made, *arguments):
    return call_job("evaluate", "--schema", "alimama", "--lake", made.lake.uri, "--date", str(DAY), *arguments)


def written(made, day=DAY, **equal):
    table = made.lake.read("evaluations").where(F.col("day") == F.lit(day))
    rows = [row for row in table.collect() if all(row[k] == v for k, v in equal.items())]
    return {(row["cohort"], row["metric"]): row["value"] for row in rows}


def masked_rows(made, mode):
    """The rows as the model may see them, and who is masked, in plain Python."""
    masked = NewUserMode.parse(mode).is_masked(made.rows.column("user").combine_chunks())
    rows = made.rows
    for column in made.mail.schema.behavior_vocabularies:
        lists = [[] if hidden else values for hidden, values in zip(masked, rows.column(column).to_pylist())]
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, rows.schema.field(column), pa.array(lists, rows.schema.field(column).type))
    return rows, masked


def expected(made, package, mode):
    """Cohort masks, and what `cohort_metrics` says of the package's predictions."""
    rows, masked = masked_rows(made, mode)
    is_new = np.array([not values for values in rows.column("behavior_btag").to_pylist()])
    known = set(made.mail.encoders.vocabularies["userid"].to_pylist())
    unseen = np.array([user not in known for user in rows.column("user").to_pylist()])
    cohorts = cohort_masks(is_new, masked, unseen)
    labels, users = rows.column("label").to_numpy(), rows.column("user").to_numpy()
    return cohorts, labels, package.predict(rows), users


def close(found, value):
    assert (found is None) == (value is None)
    if value is not None:
        assert found == pytest.approx(value, abs=1e-6)


def test_the_tables_hold_the_metrics_of_the_packages_predictions(made, capsys):
    assert evaluate(made, "--model", "models:/mail@challenger", "--against", "models:/o'base/1") == DONE
    cohorts, labels, model, users = expected(made, made.mail, MODE)
    *_, other, _ = expected(made, made.base, MODE)
    own, compared = written(made, model_name="mail", against=None), written(made, model_name="mail", against="o'base/1")
    of_model, of_other = cohort_metrics(labels, model, users, cohorts), cohort_metrics(labels, other, users, cohorts)
    assert {m.rows > 10 for m in of_model} == {True}
    for metrics, against in zip(of_model, of_other):
        for metric, value in metrics.items():
            close(own[metrics.cohort, metric], value)
        close(compared[metrics.cohort, "against_auc"], against.auc)
        close(compared[metrics.cohort, "auc_ri"], relative_improvement(against.auc, metrics.auc))
        mask = cohorts[metrics.cohort]
        for d in paired_differences(metrics.cohort, labels[mask], model[mask], other[mask], users[mask]):
            close(compared[d.cohort, f"{d.metric}_difference"], d.difference)
            assert d.low < d.difference < d.high
            assert (compared[d.cohort, f"{d.metric}_difference_low"] < d.difference
                    < compared[d.cohort, f"{d.metric}_difference_high"])
    printed = capsys.readouterr().out
    for title in ("mail version 1", "o'base version 1"):
        assert f"{title}, {DAY}, new users {MODE}\ncohort" in printed
    assert "mail version 1 less o'base version 1, paired, 200 draws of users\ncohort" in printed
    new = next(m for m in of_model if m.cohort == "new")
    assert any(line.split() == ["new", f"{new.rows:,}", *(f"{v:.4f}" for v in (
        new.ctr, new.auc, new.gauc, new.logloss, new.ece))] for line in printed.splitlines())


def test_virtual_behavior_is_compared_with_the_masked_users_own(made, capsys):
    assert evaluate(made, "--model", "models:/mail@challenger") == DONE
    _, masked = masked_rows(made, MODE)
    has_behavior = np.array([bool(v) for v in made.rows.column("behavior_btag").to_pylist()])
    real, virtual = made.mail.pooled_behavior(made.rows.filter(pa.array(masked & has_behavior)))
    assert len(real) > 10
    r2 = 1 - ((real - virtual) ** 2).sum() / ((real - real.mean(0)) ** 2).sum()
    cosine = ((real * virtual).sum(1) / np.linalg.norm(real, axis=1) / np.linalg.norm(virtual, axis=1)).mean()
    own = written(made, model_name="mail", against=None)
    assert own["new_masked", "behavior_r2"] == pytest.approx(r2, rel=1e-4)
    assert own["new_masked", "behavior_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert f"({len(real)} rows): R2 {r2:.4f}" in capsys.readouterr().out


def test_a_tower_alone_has_no_virtual_behavior_and_a_mode_can_be_chosen(made, capsys):
    assert evaluate(made, "--model", "models:/third/1", "--new-users", "natural") == DONE
    cohorts, labels, probabilities, users = expected(made, made.base, "natural")
    own = written(made, model_name="third")
    for metrics in cohort_metrics(labels, probabilities, users, cohorts):
        close(own[metrics.cohort, "auc"], metrics.auc)
    assert own["new_masked", "rows"] == 0 and own["new_masked", "auc"] is None
    assert ("new_masked", "behavior_r2") not in own
    printed = capsys.readouterr().out
    assert ["new_masked", "0", "-", "-", "-", "-", "-"] in [line.split() for line in printed.splitlines()]


def test_a_second_run_writes_the_same_and_leaves_other_versions_and_aliases_alone(made):
    arguments = ("--model", "models:/mail/1", "--against", "models:/o'base@challenger")
    assert evaluate(made, "--model", "models:/third/1") == DONE and evaluate(made, *arguments) == DONE
    others, before = written(made, model_name="third"), made.lake.read("evaluations").drop("evaluated_at").collect()
    assert evaluate(made, *arguments) == DONE and evaluate(made, "--model", "models:/mail/1") == DONE
    after = made.lake.read("evaluations").drop("evaluated_at").collect()
    assert sorted(map(str, after)) == sorted(map(str, before)) and others
    assert written(made, model_name="third") == others
    versions = MlflowClient().search_model_versions()
    assert {(v.name, v.version) for v in versions} == {("mail", 1), ("o'base", 1), ("third", 1)}
    assert MlflowClient().get_registered_model("mail").aliases == {"challenger": 1}


def test_the_worlds_own_probabilities_give_the_attainable_auc(made, spark, alimama, tmp_path, capsys):
    config = WorldConfig(users=60, items=50)
    items = calibrated(config, draw_items(config))
    (tmp_path / "world" / "users").mkdir(parents=True)
    (tmp_path / "world" / "world.json").write_text(world_document(config, items))
    pq.write_table(items_table(items), tmp_path / "world" / "items.parquet")
    pq.write_table(users_table(draw_users(config, items, 0, 60)), tmp_path / "world" / "users" / "part-0.parquet")
    world = World.load(str(tmp_path / "world"))
    generator = np.random.default_rng(0)
    users, shown = generator.choice(world.user_ids_U, 400), generator.choice(world.item_ids_I, 400)
    rows = made.rows.set_column(1, made.rows.schema.field("user"), pa.array(users)).set_column(
        2, made.rows.schema.field("item"), pa.array(shown))
    lake = Lake(spark, str(tmp_path / "lake"), alimama)
    lake.replace_days("features", spark.createDataFrame(rows), [DAY])
    store = f"sqlite:///{made.lake.uri}/../mlflow/mlflow.db"
    assert call_job("evaluate", "--schema", "alimama", "--lake", lake.uri, "--date", str(DAY), "--new-users", "natural",
                    "--model", "models:/mail/1", "--world", str(tmp_path / "world"), "--tracking-uri", store) == DONE
    labels = rows.column("label").to_numpy()
    found = {(r["cohort"], r["metric"]): r["value"] for r in lake.read("evaluations").collect()}
    for metric, probability in (("attainable_auc", world.click_probability(users, shown)),
                                ("attainable_attribute_auc", world.attribute_only_probability(users, shown))):
        everybody = cohort_metrics(labels, probability, users, {"all": np.ones(400, dtype=bool)})[0]
        close(found["all", metric], everybody.auc)
    assert "best attainable AUC" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (("--date", "2017-05-10", "--model", "models:/mail/1"), "no rows of 2017-05-10; its days are 2017-05-12 to 2017"),
    (("--model", "models:/absent/1"), "models:/absent/1"),
    (("--model", "models:/mail/1", "--new-users", "masked:2:1"), "masked:2:1"),
    (("--model", "models:/mail/1", "--resamples", "0"), "0 resamples"),
    (("--model", "models:/mail/1", "--schema", "movielens"), "features")])
def test_bad_arguments_end_with_exit_code_2_and_say_why(made, arguments, message, caplog):
    assert evaluate(made, *arguments) == BAD_INPUT
    assert message in caplog.text
