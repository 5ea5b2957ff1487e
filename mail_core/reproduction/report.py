"""Tables, figures and the page of a reproduction."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Sequence

from mail_core.evaluation import figures
from mail_core.evaluation.figures import Clouds
from mail_core.evaluation.grid_tables import Grid, grid_curves, grid_numbers, grid_table
from mail_core.evaluation.method_tables import COHORTS, cohort_table, diagnostics_table, headline_table, numbers_table
from mail_core.evaluation.page import markdown
from mail_core.reproduction.book import Book
from mail_core.reproduction.config import ReproductionConfig
from mail_core.reproduction.measure import CALIBRATED
from mail_core.reproduction.plan import LENGTHS_OF, MAIL_BASE, PlannedTable
from mail_core.reproduction.rows import (calibrated, calibration_table, first_outcome, lengths_grid, method_row,
                                         settings_table, statistics_tables, warm_up_grid)
from mail_core.reproduction.samples import hidden_behavior, samples
from mail_core.reproduction.sources import Sources
from mail_core.reproduction.trials import Outcome, Results, Trials
from mail_core.tracking.runs import curve
from mail_core.training.step import LOSSES

_OLD_NEW = ("old users", "new users")

logger = logging.getLogger(__name__)


def write_report(config: ReproductionConfig, sources: Sources, tables: Sequence[PlannedTable], results: Results,
                 trials: Trials) -> list[Path]:
    """Write all of it to `config.out`, print the tables; the files."""
    book, manifest = Book(config.out), sources.export.manifest
    book.section(f"{manifest.schema_name}: {manifest.end_date}, new users {manifest.new_users}", _introduction(
        config, results))
    if 1 in config.tables:
        statistics = statistics_tables(manifest)
        book.tables("table1", statistics, statistics[0])
    for planned in tables:
        _comparison(book, planned, results)
    if results.chosen:
        _curves(book, config, sources, results)
        _paper_figures(book, config, sources, results, trials)
        settings = settings_table(results, config.preset)
        book.section("Settings")
        book.tables("settings", [settings], settings)
    book.close(f"The MAIL paper on {manifest.schema_name}")
    return book.files


def _introduction(config: ReproductionConfig, results: Results) -> str:
    rates = ", ".join(f"{rate:g}" for rate in config.learning_rates)
    epochs = "chosen on the validation day" if config.epochs is None else f"{config.epochs}"
    end = (" The budget of time ended before all was trained: each row says how many seeds it has."
           if results.stopped else "")
    return (f"Preset {config.preset}, {config.seeds} seeds, batch {config.batch_size}, learning rates {rates}, epochs "
            f"{epochs}; every tower alone is tuned as it is under MAIL.{end}")


def _comparison(book: Book, planned: PlannedTable, results: Results) -> None:
    """One of Tables 2 and 3, with what the diagnostics say, and the headline where it has one."""
    rows = [method_row(row, results) for row in planned.rows]
    title = f"Table {planned.number}: {planned.title.lower()}"
    tables = [cohort_table(f"{title}, {cohort} users", rows, cohort, planned.paper) for cohort in COHORTS]
    headline = [headline_table(rows, planned.gaps, planned.paper)] if planned.gaps else []
    book.section(title[0].upper() + title[1:])
    everything = [*headline, *tables, diagnostics_table(f"{title}, virtual behaviour", rows)]
    book.tables(f"table{planned.number}", everything, numbers_table(rows, planned.paper))
    print("\n".join(map(markdown, [*headline, *tables])), flush=True)


def _curves(book: Book, config: ReproductionConfig, sources: Sources, results: Results) -> None:
    """Warm-up, AUC by number of behaviours, calibration."""
    for name, grid in (("warm_up", warm_up_grid(results, sources.schema.sequence_length)),
                       ("lengths", lengths_grid(results))):
        if grid.columns:
            book.section(grid.title.split(":")[0])
            _grid(book, name, grid)
    table = calibration_table(results, LENGTHS_OF)
    if table.rows:
        book.section("Calibration")
        book.tables("calibration", [table], table)
        book.figure("calibration", figures.calibration({
            f"{cohort} users": calibrated(results, LENGTHS_OF, cohort) for cohort in CALIBRATED}),
            "Clicks against predictions, ten groups of equally many rows each, lowest seed.")


def _grid(book: Book, name: str, grid: Grid) -> None:
    book.tables(name, [grid_table(grid)], grid_numbers(grid))
    curves = grid_curves(grid)
    if curves:
        places = [place.replace(" (", "\n(") for place in grid.places]
        book.figure(name, figures.lines(curves, grid.scale, "AUC", places), f"{grid.title}, means over seeds.")


def _paper_figures(book: Book, config: ReproductionConfig, sources: Sources, results: Results, trials: Trials) -> None:
    """Figures 4 to 6, of MAIL-Base with its lowest seed."""
    outcome = first_outcome(results, MAIL_BASE)
    if outcome is None or not config.figures:
        return
    book.section("Figures 4 to 6", f"Of MAIL-Base, seed {outcome.trial.seed}.")
    if 4 in config.figures:
        book.figure("figure4", figures.loss_curves({name: curve(outcome.run_id, name) for name in LOSSES}),
                    "Figure 4: training losses by step: ranking, attributes, behaviour, alignment.")
    drawn = _clouds(sources, outcome, trials) if {5, 6} & set(config.figures) else {}
    for number, (clouds, description) in drawn.items():
        if number in config.figures:
            book.figure(f"figure{number}", figures.planes(clouds, outcome.trial.seed), description)


def _clouds(sources: Sources, outcome: Outcome, trials: Trials) -> dict[int, tuple[list[Clouds], str]]:
    """Number of a figure -> its panels and what it shows."""
    found = samples(trials.package(outcome.run_id), sources.revealed)
    if set(found) != {"old", "new"}:
        logger.warning("no Figures 5 and 6: the test day has no users of both kinds with what they show")
        return {}
    old, new = found["old"], found["new"]
    five = [Clouds(title="(a) old users' behaviour", names=("virtual", "real"), vectors=(old.virtual_BD, old.real_BD))]
    if hidden_behavior(sources.revealed):
        five.append(Clouds(title="(b) new users' behaviour", names=("virtual", "real, hidden from the model"),
                           vectors=(new.virtual_BD, new.real_BD)))
    six = [Clouds(title="(a) hidden attribute features", names=_OLD_NEW, vectors=(old.hidden_BD, new.hidden_BD)),
           Clouds(title="(b) virtual behaviour", names=_OLD_NEW, vectors=(old.virtual_BD, new.virtual_BD))]
    pooled = "t-SNE; behaviour as the mean over all positions of the sequence, a point a user."
    return {5: (five, f"Figure 5: virtual and real behaviour of old users (a) and of masked users (b). {pooled}"),
            6: (six, f"Figure 6: old and new users' hidden attribute features (a) and virtual behaviour (b). {pooled}")}
