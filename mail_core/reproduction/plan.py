"""What stands in the paper's Tables 2 and 3, and what must be trained for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from mail_core.errors import InputError
from mail_core.evaluation.method_tables import Gap
from mail_core.evaluation.paper_numbers import TABLE_2, TABLE_3, PaperTable
from mail_core.reproduction.measure import AS_IS, PERMUTED, REVEALED, warm_up_lengths
from mail_core.training.presets import ALONE, model_config, model_label

PAPER, REFERENCE, OURS = "paper", "reference", "ours"
"""Why a row is there: the paper has it; to judge the others by; a variant of this project."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """What is trained, but for seed and learning rate."""

    method: str
    tower: str
    pooling: str | None = None
    """None: what the method takes."""

    def label(self, preset: str) -> str:
        """Its name in tables of settings, as registered models have it."""
        return model_label(model_config(preset, self.tower, self.method, pooling=self.pooling))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of jobs/train.py."""
        pooling = () if self.pooling is None else ("--pooling", self.pooling)
        return "--tower", self.tower, "--cold-start", self.method, *pooling

    def shown(self, length: int) -> tuple[int, ...]:
        """Numbers of behaviours that it is measured with: a tower alone with all (its oracle); of the towers that MAIL
        completes, alone and under MAIL, with more and more of them (the warm-up curve)."""
        if self.tower in MAIL_TOWERS and self.method in WARM_UP_METHODS:
            return warm_up_lengths(length)
        return (length,) if self.method == ALONE else ()


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One line of a table."""

    name: str
    kind: str
    version: Version
    reference: str
    """Row that RI is over; its own name where others are compared with it."""
    scores: str = AS_IS
    """Which of the version's scores."""


@dataclass(frozen=True, kw_only=True)
class PlannedTable:
    """A table of the paper with more rows."""

    number: int
    title: str
    rows: tuple[PlannedRow, ...]
    paper: PaperTable
    gaps: tuple[Gap, ...] = ()
    """What the headline compares."""

    def versions(self) -> tuple[Version, ...]:
        """What its rows need, each once, in their order."""
        return tuple(dict.fromkeys(row.version for row in self.rows))

    def only(self, names: Sequence[str]) -> PlannedTable:
        """The table with the named rows alone."""
        return PlannedTable(number=self.number, title=self.title, paper=self.paper, gaps=self.gaps,
                            rows=tuple(row for row in self.rows if row.name in names))


MAIL_TOWERS = ("base_dnn", "dmr")
MEAN_POOLED = "BaseDNN, mean pooling"
WARM_UP_METHODS = (ALONE, "base", "gated")
EMB_LR, BASE_DNN, DMR = (Version(method=ALONE, tower=tower) for tower in ("emb_lr", "base_dnn", "dmr"))
MAIL_BASE, MAIL_DMR = (Version(method="base", tower=tower) for tower in MAIL_TOWERS)
WARM_UP_OF: Mapping[str, str] = {"MAIL-Base": "BaseDNN", "gated over BaseDNN": MEAN_POOLED, "MAIL-DMR": "DMR",
                                 "gated over DMR": "DMR"}
"""Rows of Table 2 in the warm-up curve -> their tower alone."""
LENGTHS_OF = ("BaseDNN", "MAIL-Base", MEAN_POOLED, "gated over BaseDNN", "DMR", "MAIL-DMR", "gated over DMR")
"""Rows of Table 2 in the figures of calibration and of AUC by the number of behaviours."""


def _row(name: str, kind: str, version: Version, reference: str | None = None, scores: str = AS_IS) -> PlannedRow:
    return PlannedRow(name=name, kind=kind, version=version, reference=reference or name, scores=scores)


def _oracle(alone: str, version: Version, reference: str) -> PlannedRow:
    return _row(f"{alone}, oracle", REFERENCE, version, reference, REVEALED)


def _shuffled(name: str, version: Version, reference: str) -> PlannedRow:
    return _row(f"{name}, shuffled", REFERENCE, version, reference, PERMUTED)


def _tokens(tower: str, title: str, reference: str) -> tuple[PlannedRow, ...]:
    """The rows whose virtual behaviour is one token: the control and ours."""
    return tuple(_row(f"{method} over {title}", kind, Version(method=method, tower=tower), reference)
                 for method, kind in (("mean", REFERENCE), ("mean_token", OURS), ("gated", OURS)))


def _table_2() -> PlannedTable:
    # A token needs mean pooling, so that its tower alone is measured with mean pooling, too.
    pooled = Version(method=ALONE, tower="base_dnn", pooling="mean")
    rows = (
        _row("EmbLR", PAPER, EMB_LR),
        _row("LLAE", PAPER, Version(method="llae", tower="emb_lr"), "EmbLR"),
        _oracle("EmbLR", EMB_LR, "EmbLR"),
        _shuffled("LLAE", Version(method="llae", tower="emb_lr"), "EmbLR"),
        _row("BaseDNN", PAPER, BASE_DNN),
        _row("MetaEmb", PAPER, Version(method="meta_emb", tower="base_dnn"), "BaseDNN"),
        _row("MAIL-Base", PAPER, MAIL_BASE, "BaseDNN"),
        _oracle("BaseDNN", BASE_DNN, "BaseDNN"),
        _shuffled("MAIL-Base", MAIL_BASE, "BaseDNN"),
        _row(MEAN_POOLED, REFERENCE, pooled),
        *_tokens("base_dnn", "BaseDNN", MEAN_POOLED),
        _oracle(MEAN_POOLED, pooled, MEAN_POOLED),
        _row("DMR", PAPER, DMR),
        _row("MAIL-DMR", PAPER, MAIL_DMR, "DMR"),
        _oracle("DMR", DMR, "DMR"),
        _shuffled("MAIL-DMR", MAIL_DMR, "DMR"),
        *_tokens("dmr", "DMR", "DMR"))
    towers = {"EmbLR": ("LLAE",), "BaseDNN": ("MetaEmb", "MAIL-Base", "MAIL-Base, shuffled"),
              MEAN_POOLED: tuple(f"{m} over BaseDNN" for m in ("mean", "mean_token", "gated")),
              "DMR": ("MAIL-DMR", "MAIL-DMR, shuffled", *(f"{m} over DMR" for m in ("mean", "mean_token", "gated")))}
    gaps = tuple(Gap(method=method, alone=alone, oracle=f"{alone}, oracle")
                 for alone, methods in towers.items() for method in methods)
    return PlannedTable(number=2, title="Results", rows=rows, paper=TABLE_2, gaps=gaps)


def _table_3() -> PlannedTable:
    zero_shot = {f"MAIL-{variant.capitalize()}": Version(method=variant, tower="base_dnn")
                 for variant in ("none", "single", "dual")}
    rows = (
        _row("BaseDNN", PAPER, BASE_DNN, "MAIL-Base"),
        *(_row(name, PAPER, version, "MAIL-Base") for name, version in zero_shot.items()),
        _row("MAIL-Base", PAPER, MAIL_BASE),
        _oracle("BaseDNN", BASE_DNN, "MAIL-Base"),
        _shuffled("MAIL-Base", MAIL_BASE, "MAIL-Base"),
        _row("mean over BaseDNN", REFERENCE, Version(method="mean", tower="base_dnn"), "MAIL-Base"))
    return PlannedTable(number=3, title="Ablation study", rows=rows, paper=TABLE_3)


PLANNED: Mapping[int, PlannedTable] = {2: _table_2(), 3: _table_3()}
TABLES = (1, *PLANNED)
"""Table 1 is the data's statistics, for which nothing is trained."""
FIGURES = (4, 5, 6)
"""All of MAIL-Base, of the first seed."""


def planned_tables(numbers: Sequence[int], rows: Sequence[str] | None = None) -> list[PlannedTable]:
    """Those of `numbers` that compare methods, with the named rows; None: with all.

    Raises:
        InputError: a table or a row that there is not.
    """
    for number in numbers:
        if number not in TABLES:
            raise InputError(f"table {number}: expected some of {', '.join(map(str, TABLES))}")
    tables = [PLANNED[number] for number in sorted(set(numbers)) if number in PLANNED]
    if rows is None:
        return tables
    known = list(dict.fromkeys(row.name for table in PLANNED.values() for row in table.rows))
    for name in rows:
        if name not in known:
            raise InputError(f"row {name!r}: expected some of {'; '.join(known)}")
    return [table.only(rows) for table in tables]


def versions_of(tables: Sequence[PlannedTable], figures: Sequence[int]) -> list[Version]:
    """All that must be trained, each once."""
    for number in figures:
        if number not in FIGURES:
            raise InputError(f"figure {number}: expected some of {', '.join(map(str, FIGURES))}")
    drawn = (MAIL_BASE,) if figures else ()
    return list(dict.fromkeys([version for table in tables for version in table.versions()] + list(drawn)))
