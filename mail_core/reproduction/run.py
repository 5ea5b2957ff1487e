"""The whole paper on one export: what jobs/reproduce_paper.py calls."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Sequence

from mail_core.loading.manifest import manifest_fingerprint, manifest_text
from mail_core.reproduction.config import ReproductionConfig
from mail_core.reproduction.plan import Version, planned_tables, versions_of
from mail_core.reproduction.report import write_report
from mail_core.reproduction.sources import prepared
from mail_core.reproduction.trials import Outcome, Results, Trial, Trials
from mail_core.tracking.runs import configure_tracking, found_run, tracked_run

REPRODUCTION = "reproduction"
"""Tag of the run that all trials are nested in: the fingerprint of their export."""
FIRST_SEED = 1

logger = logging.getLogger(__name__)


def reproduce(config: ReproductionConfig) -> str:
    """Train, measure and write all that the configuration asks for; the closing sentence.

    Finished trainings of an earlier call are not done again, whatever its commit was.

    Raises:
        InputError: an unknown table, figure or row, no features, or a training that found its input bad.
        RuntimeError: a training failed.
    """
    tables = planned_tables(config.tables, config.rows)
    versions = versions_of(tables, config.figures)
    sources = prepared(config)
    configure_tracking(config.tracking_uri, config.lake_uri, sources.schema.name)
    text = manifest_text(sources.export.uri)
    assert text is not None, "the export has been opened"
    tags = {REPRODUCTION: manifest_fingerprint(text)}
    earlier = found_run(sources.schema.name, tags, finished=False)
    with tracked_run("reproduce-paper", tags, earlier.run_id if earlier else None) as parent:
        trials = Trials(config, sources, parent.run_id, versions)
        try:
            results = run_trials(trials, versions, config)
        finally:
            trials.close()
        files = write_report(config, sources, tables, results, trials)
        for file in files:
            parent.artifact(file)
    end = ", stopped by the budget" if results.stopped else ""
    return (f"{len(results.tried)} trainings of {len(versions)} versions on {sources.export.uri}, {len(files)} files "
            f"in {config.out}{end}")


def run_trials(trials: Trials, versions: Sequence[Version], config: ReproductionConfig) -> Results:
    """Choose each version's learning rate with the first seed, then train the other seeds with it."""
    chosen: dict[tuple[Version, int], Outcome] = {}
    tried: list[Outcome] = []
    for version in versions:
        outcomes = [trials.outcome(Trial(version=version, seed=FIRST_SEED, learning_rate=rate))
                    for rate in config.learning_rates]
        finished = [outcome for outcome in outcomes if outcome is not None]
        tried += finished
        if len(finished) == len(outcomes):  # a choice among some of the rates would not be the same tuning
            chosen[version, FIRST_SEED] = best_of(finished)
    for seed in range(FIRST_SEED + 1, FIRST_SEED + config.seeds):
        for version in versions:
            first = chosen.get((version, FIRST_SEED))
            outcome = None if first is None else trials.outcome(replace(first.trial, seed=seed))
            if outcome is not None:
                tried.append(outcome)
                chosen[version, seed] = outcome
    return Results(chosen=chosen, tried=tried, stopped=trials.stopped)


def best_of(outcomes: Sequence[Outcome]) -> Outcome:
    """The best on the validation day; the first at a tie, or where there is one only."""
    return max(outcomes, key=lambda outcome: float("-inf") if outcome.validation is None else outcome.validation)
