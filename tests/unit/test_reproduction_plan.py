"""What the paper's tables need, the choice of learning rates, and the estimate of time."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from mail_core.errors import InputError
from mail_core.evaluation.paper_numbers import TABLE_2, TABLE_3
from mail_core.reproduction.config import ReproductionConfig
from mail_core.reproduction.measure import warm_up_lengths
from mail_core.reproduction.pace import Pace, in_words
from mail_core.reproduction.plan import MAIL_BASE, PLANNED, REFERENCE, Version, planned_tables, versions_of
from mail_core.reproduction.run import run_trials
from mail_core.training.presets import PRESETS


def config(**changes) -> ReproductionConfig:
    return ReproductionConfig(schema="alimama", lake_uri="/lake", end_date=date(2017, 5, 13), new_users="natural",
                              out=Path("out"), **changes)


def test_the_tables_have_the_papers_methods_in_its_order_and_reference_rows():
    for table, paper in ((PLANNED[2], TABLE_2), (PLANNED[3], TABLE_3)):
        assert [row.name for row in table.rows if row.kind == "paper"] == list(paper)
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names) and {row.reference for row in table.rows} <= set(names)
        assert {row.scores for row in table.rows if row.kind == REFERENCE} >= {"revealed", "permuted"}
        assert "mean over BaseDNN" in names
    assert {f"{method} over {tower}" for method in ("gated", "mean_token") for tower in ("BaseDNN", "DMR")} <= {
        row.name for row in PLANNED[2].rows}
    for gap in PLANNED[2].gaps:
        assert {gap.method, gap.alone, gap.oracle} <= {row.name for row in PLANNED[2].rows}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_version_can_be_built_and_has_a_label_of_its_own(preset):
    versions = versions_of(list(PLANNED.values()), (4, 5, 6))
    assert len({version.label(preset) for version in versions}) == len(versions) == 17


def test_a_version_is_trained_once_for_all_tables_and_figures():
    assert versions_of(planned_tables([1]), ()) == []
    assert versions_of(planned_tables([1]), (4,)) == [MAIL_BASE]
    few = planned_tables([2, 3], ["BaseDNN", "MAIL-Base", "BaseDNN, oracle"])
    assert versions_of(few, (5,)) == [Version(method="off", tower="base_dnn"), MAIL_BASE]
    with pytest.raises(InputError, match="MAIL-Bass"):
        planned_tables([2], ["MAIL-Bass"])


def test_a_tower_alone_is_measured_with_everything_and_a_warm_up_with_powers_of_two():
    assert warm_up_lengths(100) == (1, 2, 4, 8, 16, 32, 64, 100) and warm_up_lengths(8) == (1, 2, 4, 8)
    assert warm_up_lengths(1) == (1,)
    assert Version(method="off", tower="emb_lr").shown(8) == (8,)
    assert Version(method="gated", tower="dmr").shown(8) == (1, 2, 4, 8)
    assert Version(method="meta_emb", tower="base_dnn").shown(8) == ()


class Played:
    """Trials with given validation scores, of which some cannot be trained any more."""

    def __init__(self, scores, absent=()):
        self.scores, self.absent, self.asked, self.stopped = scores, absent, [], bool(absent)

    def outcome(self, trial):
        self.asked.append((trial.version.method, trial.seed, trial.learning_rate))
        if (trial.version.method, trial.learning_rate) in self.absent:
            return None
        return SimpleNamespace(trial=trial, validation=self.scores.get((trial.version.method, trial.learning_rate)))


VERSIONS = [Version(method="off", tower="base_dnn"), MAIL_BASE]


def test_each_version_gets_its_own_best_learning_rate_which_the_other_seeds_keep():
    trials = Played({("off", 1e-3): 0.6, ("off", 1e-2): 0.7, ("base", 1e-3): 0.8, ("base", 1e-2): 0.7})
    results = run_trials(trials, VERSIONS, config(seeds=3, learning_rates=(1e-3, 1e-2)))
    assert trials.asked[:4] == [("off", 1, 1e-3), ("off", 1, 1e-2), ("base", 1, 1e-3), ("base", 1, 1e-2)]
    assert trials.asked[4:] == [(m, seed, rate) for seed in (2, 3) for m, rate in (("off", 1e-2), ("base", 1e-3))]
    assert {(v.method, seed): o.trial.learning_rate for (v, seed), o in results.chosen.items()} == {
        (m, seed): rate for m, rate in (("off", 1e-2), ("base", 1e-3)) for seed in (1, 2, 3)}
    assert len(results.tried) == 8


def test_a_version_whose_rates_were_not_all_tried_is_not_chosen():
    trials = Played({("off", 1e-3): 0.6, ("base", 1e-3): 0.8, ("base", 1e-2): 0.7}, absent={("off", 1e-2)})
    results = run_trials(trials, VERSIONS, config(seeds=2, learning_rates=(1e-3, 1e-2)))
    assert {version.method for version, _ in results.chosen} == {"base"} and results.stopped
    assert ("off", 2, 1e-3) not in trials.asked and len(results.tried) == 4


@pytest.mark.parametrize("changes, message", [
    ({"seeds": 0}, "seeds"), ({"learning_rates": ()}, "learning rates"), ({"learning_rates": (0.1, 0.1)}, "once"),
    ({"learning_rates": (0.1, 0.2), "epochs": 2}, "validation day"), ({"budget_minutes": -1.0}, "budget")])
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_what_is_left_is_estimated_from_what_was_done():
    pace = Pace()
    assert pace.expected("din") == 0 and pace.left([]) == 0
    pace.add("din", 10)
    pace.add("din", 20)
    pace.add("dmr", 60)
    assert pace.expected("din") == 15 and pace.expected("dmr") == 60 and pace.expected("llae") == 30
    assert pace.left(["din", "dmr", "llae"]) == 105
    assert [in_words(s) for s in (12.4, 600, 7_500)] == ["12 s", "10 min", "2 h 05 min"]
