"""Methods over seeds as tables: what stands in which cell."""

from __future__ import annotations

import pytest

from mail_core.evaluation.grid_tables import Grid, grid_curves, grid_numbers, grid_table
from mail_core.evaluation.method_tables import (Gap, MethodRow, cohort_table, diagnostics_table, headline_table,
                                                numbers_table)
from mail_core.evaluation.paper_numbers import TABLE_2, TABLE_3


def row(name, reference, new, old, **diagnostics):
    return MethodRow(name=name, kind="paper", reference=reference, diagnostics=diagnostics, scores={
        ("new", "auc"): new, ("old", "auc"): old, ("new", "gauc"): {}, ("old", "gauc"): {}})


ROWS = [row("BaseDNN", "BaseDNN", {1: 0.60, 2: 0.62}, {1: 0.7, 2: 0.7}),
        row("MAIL-Base", "BaseDNN", {1: 0.61, 2: 0.65}, {1: 0.7, 2: 0.7}, r2={1: 0.1, 2: 0.3}, gate={}),
        row("BaseDNN, oracle", "BaseDNN", {1: 0.70}, {})]


def cells(table, name):
    return dict(zip(table.header, next(line for line in table.rows if line[0] == name)))


def test_a_cohort_table_has_means_ri_differences_and_the_papers_figures():
    table = cohort_table("Table 2", ROWS, "new", TABLE_2)
    mail = next(line for line in table.rows if line[0] == "MAIL-Base")
    # Differences .01 and .03: .02 ± 12.7062 * .01.
    assert mail[1:7] == ("paper", "BaseDNN", "2", "0.6300 ± 0.0283", "+3.28", "+0.0200 [-0.1071, +0.1471]")
    assert cells(table, "MAIL-Base")["paper AUC, public (RI %)"] == "0.5934 (+1.22)"
    assert cells(table, "MAIL-Base")["paper GAUC, industrial (RI %)"] == "0.6413 (+0.51)"
    base, oracle = (next(line for line in table.rows if line[0] == n) for n in ("BaseDNN", "BaseDNN, oracle"))
    assert base[2] == "-" and base[5:7] == ("-", "-")
    assert oracle[3:7] == ("1", "0.7000", "+16.67", "+0.1000 [-, -]") and oracle[-1] == "-"


def test_a_row_without_any_seed_stands_there_with_none():
    table = cohort_table("Table 2", [*ROWS, row("DMR", "DMR", {}, {})], "old", TABLE_2)
    assert cells(table, "DMR")["seeds"] == "0" and cells(table, "DMR")["AUC"] == "-"
    assert cells(table, "DMR")["paper AUC, public (RI %)"] == "0.6302 (+0.00)"


def test_diagnostics_stand_for_the_rows_that_make_behaviour():
    table = diagnostics_table("virtual", ROWS)
    assert [line[0] for line in table.rows] == ["MAIL-Base"]
    assert cells(table, "MAIL-Base")["R²"] == "0.2000 ± 0.1414" and cells(table, "MAIL-Base")["gate g"] == "-"


def test_the_headline_divides_by_the_gap_and_leaves_out_rows_that_are_not_there():
    gap = Gap(method="MAIL-Base", alone="BaseDNN", oracle="BaseDNN, oracle")
    [line] = headline_table(ROWS, [gap, Gap(method="MAIL-DMR", alone="DMR", oracle="DMR, oracle")], TABLE_2).rows
    assert line[:3] == ("MAIL-Base", "BaseDNN", "1") and line[6] == "10%"  # .01 of .1, seed 1
    assert line[-2:] == ("+1.22", "+1.15")


def test_the_numbers_keep_all_digits_and_a_line_a_figure():
    table = numbers_table(ROWS, TABLE_2)
    lines = {(line[0], line[2], line[3]): dict(zip(table.header, line)) for line in table.rows}
    assert len(lines) == 3 * 4 + 2
    mail = lines["MAIL-Base", "new", "auc"]
    assert float(mail["mean"]) == pytest.approx(0.63) and float(mail["difference"]) == pytest.approx(0.02)
    assert mail["paper_public"] == "0.5934" and mail["paper_public_ri_percent"] == "1.22"
    assert lines["MAIL-Base", "new", "r2"]["seeds"] == "2" and lines["MAIL-Base", "old", "gauc"]["mean"] == ""


def test_the_papers_ri_follows_from_its_own_figures():
    def check(table, reference):
        for name, datasets in table.items():
            for dataset, cohorts in datasets.items():
                for cohort, figures in cohorts.items():
                    own = table[reference(name)][dataset][cohort]
                    for metric in ("auc", "gauc"):
                        value, base = getattr(figures, metric), getattr(own, metric)
                        if value is not None:
                            ri = (value - base) / base * 100
                            assert getattr(figures, f"{metric}_ri") == pytest.approx(ri, abs=0.02), (name, dataset)

    over = {"LLAE": "EmbLR", "MetaEmb": "BaseDNN", "MAIL-Base": "BaseDNN", "MAIL-DMR": "DMR"}
    check(TABLE_2, lambda name: over.get(name, name))
    check(TABLE_3, lambda name: "MAIL-Base")


def test_a_grid_compares_place_by_place():
    grid = Grid(title="Warm-up", scale="revealed", places=("0", "1"), compared={"MAIL": "tower", "absent": "tower"},
                columns={"tower": [{1: 0.5, 2: 0.5}, {1: 0.6, 2: 0.6}], "MAIL": [{1: 0.6, 2: 0.6}, {}]})
    table = grid_table(grid)
    assert table.header == ("revealed", "tower", "MAIL", "MAIL less tower [95%]")
    assert table.rows[0] == ("0", "0.5000 ± 0.0000", "0.6000 ± 0.0000", "+0.1000 [+0.1000, +0.1000]")
    assert table.rows[1][2:] == ("-", "-")
    assert grid_curves(grid) == {"tower": [(0.0, 0.5), (1.0, 0.6)], "MAIL": [(0.0, 0.6)]}
    assert ("MAIL", "1", "0", "", "") in grid_numbers(grid).rows
