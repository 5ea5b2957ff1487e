"""AUC with bfloat16 autocast and without it, over seeds: is the difference within noise?

bench_autocast_auc.py [zero_shot] [din]: MAIL on BaseDNN with its zero-shot tower in bfloat16; DIN alone with its
attention in bfloat16. Trains on the export that `make quickstart` leaves in runs/quickstart (tiny preset). Prints a
Markdown table and writes it to docs/benchmarks.md. BENCH_SEEDS changes the number of seeds.
"""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from report import machine, table, write_section

from mail_core.evaluation.metrics import auc
from mail_core.loading.manifest import TEST, find_export
from mail_core.models.mail import MailConfig
from mail_core.schema.reader import load_schema
from mail_core.training.data import Export, open_export
from mail_core.training.loop import fit
from mail_core.training.predict import predict
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks

LAKE = Path(__file__).resolve().parents[2] / "runs" / "quickstart" / "lake"
SEEDS, EPOCHS = int(os.environ.get("BENCH_SEEDS", "5")), 2
COHORTS = ("new users", "all users")


def configs(part: str) -> tuple[MailConfig, MailConfig]:
    """In float32 and with autocast."""
    if part == "din":
        plain = model_config("tiny", "din", "off")
        return plain, replace(plain, tower_config=replace(plain.tower_config, autocast=True))
    plain = model_config("tiny", "base_dnn", "base")
    assert plain.zero_shot is not None
    return plain, replace(plain, zero_shot=replace(plain.zero_shot, autocast=True))


def aucs(export: Export, model: MailConfig, seed: int) -> list[float]:
    """AUC of COHORTS on the test day."""
    settings = TrainingConfig(model=model, epochs=EPOCHS, seed=seed)
    trained = fit(export, settings, Ranks.alone(), lambda values, step: None).model
    found = predict(trained, export, TEST, Ranks.alone())
    assert found is not None
    new = found.is_new.astype(bool)
    values = [auc(found.labels[rows], found.probabilities[rows]) for rows in (new, new | True)]
    return [value for value in values if value is not None]


def lines(export: Export, part: str) -> list[list[str]]:
    """A table row a cohort."""
    pairs = [tuple(aucs(export, config, seed) for config in configs(part)) for seed in range(1, SEEDS + 1)]
    rows = []
    for number, cohort in enumerate(COHORTS):
        plain, rounded = ([run[which][number] for run in pairs] for which in (0, 1))
        differences = [b - a for a, b in zip(plain, rounded)]
        rows.append([part, cohort, *(f"{statistics.mean(v):+.4f} ± {statistics.stdev(v):.4f}".lstrip("+")
                                     for v in (plain, rounded)),
                     f"{statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f}"])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    schema, before = load_schema("alimama"), machine(1)
    export = open_export(find_export(str(LAKE), date(2017, 5, 13)), schema)
    rows = [row for part in sys.argv[1:] or ("zero_shot", "din") for row in lines(export, part)]
    body = ("`make quickstart`, then `python tests/benchmarks/bench_autocast_auc.py`: tiny preset, "
            f"{EPOCHS} epochs, seeds 1 to {SEEDS}, mean and standard deviation; differences are paired by seed. "
            f"{before} at the start.\n\n"
            + table(["part in bfloat16", "rows", "AUC, float32", "AUC, bfloat16", "difference"], rows))
    print(body)
    write_section("AUC with bfloat16", body)


if __name__ == "__main__":
    main()
