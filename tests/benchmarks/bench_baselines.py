"""Are our baselines straw men? AUC of din, dcn_v2 and dnn_concat beside FuxiCTR's models on the same encoded rows.

bench_baselines.py [TOWER ...]: trains on the export that `make quickstart` leaves in runs/quickstart (its training days
without the last, which chooses learning rate and epochs), at the sizes of the preset tiny on both sides, and measures
the test day. Each side has the best of RATES on the last training day with the first seed, then SEEDS seeds. Prints a
Markdown table and writes it to docs/benchmarks.md.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from peers import BENCH, FUXICTR, Peer, environment
from report import machine, table, write_section

from mail_core.evaluation.metrics import auc
from mail_core.loading.batches import epoch_batches
from mail_core.loading.manifest import TEST, TRAIN, VALIDATION, find_export
from mail_core.models.mail import MailConfig
from mail_core.models.ranking.dcn_v2 import DcnV2Config
from mail_core.schema.definition import LABEL
from mail_core.schema.reader import load_schema
from mail_core.training.checkpoints import Checkpoints
from mail_core.training.data import ROW_COLUMNS, Export, open_export
from mail_core.training.loop import CHOICE, train
from mail_core.training.predict import predict
from mail_core.training.presets import PRESETS, TrainingConfig, model_config
from mail_core.training.ranks import Ranks

LAKE = Path(__file__).resolve().parents[2] / "runs" / "quickstart" / "lake"
FOLDER = BENCH / "baselines"
TOWERS = {"din": "DIN", "dcn_v2": "DCNv2", "dnn_concat": "an MLP of its layers"}
RATES, SEEDS, EPOCHS, ALLOWED = (0.001, 0.003, 0.01), (1, 2, 3), 4, 0.003
THREADS = os.cpu_count() or 1

logger = logging.getLogger(__name__)
Epochs = list[list[float]]
"""(AUC of the validation day, AUC of the test day) after each epoch."""


def ours(export: Export, tower: str) -> Callable[[int, float], Epochs]:
    """Trains our tower alone with a seed and a learning rate."""
    def trained(seed: int, rate: float) -> Epochs:
        config = TrainingConfig(model=_model(tower), learning_rate=rate, seed=seed)
        alone, found = Ranks.alone(), []
        for _, step in train(export, (TRAIN,), EPOCHS, config, alone, lambda values, at: None,
                             Checkpoints(None, "", alone), CHOICE):
            predictions = [predict(step.model, export, split, alone) for split in (VALIDATION, TEST)]
            found.append([float(auc(p.labels, p.probabilities) or 0.0) for p in predictions if p is not None])
        return found

    return trained


def fuxictr(peer: Peer) -> Callable[[int, float], Epochs]:
    """Trains FuxiCTR's model with a seed and a learning rate."""
    def trained(seed: int, rate: float) -> Epochs:
        peer.start(f"{seed} {rate}")
        return json.loads(peer.line())

    return trained


def tuned(trained: Callable[[int, float], Epochs], title: str) -> tuple[float, list[float]]:
    """The learning rate that is best on the validation day, and the test day's AUC of each seed with it, after the
    epoch that is best on the validation day."""
    first = {rate: trained(SEEDS[0], rate) for rate in RATES}
    rate = max(first, key=lambda r: max(first[r]))
    logger.info("%s: validation AUC by learning rate %s", title, {r: round(max(e)[0], 4) for r, e in first.items()})
    return rate, [max(first[rate])[1], *(max(trained(seed, rate))[1] for seed in SEEDS[1:])]


def write_rows(export: Export) -> None:
    """The encoded rows of each split, and the sizes of the preset, for the other side."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for split in (TRAIN, VALIDATION, TEST):
        parts = list(epoch_batches(export.uri, export.manifest, (split,), seed=0, epoch=0, world_size=1, rank=0,
                                   batch_size=32_768, shuffle=False))
        names = [name for name in parts[0] if name not in ROW_COLUMNS] + [LABEL]
        np.savez(FOLDER / f"{split}.npz", **{n: np.concatenate([p[n] for p in parts]) for n in names})
    features, sizes = export.schema.features, PRESETS["tiny"]
    din = _model("din").tower_config
    (FOLDER / "sizes.json").write_text(json.dumps({
        "sizes": {f.name: export.encoders.vocabulary_sizes[f.name] for f in features if f.kind != "dense"},
        "dense": [f.name for f in features if f.kind == "dense"], "dim": sizes.dim, "epochs": EPOCHS,
        "hidden": din.hidden, "attention": din.attention, "cross_layers": DcnV2Config.cross_layers}))


def _model(tower: str) -> MailConfig:
    return model_config("tiny", tower, "off")


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(THREADS)
    before = machine(THREADS)
    schema = load_schema("alimama")
    export = open_export(find_export(str(LAKE), date(2017, 5, 13)), schema)
    write_rows(export)
    python, rows = environment("fuxictr", FUXICTR), []
    script = Path(__file__).with_name("fuxictr_baselines.py")
    # The allocator's settings of our ranks: it would take three times as long without.
    settings = {**os.environ, "BENCH_THREADS": str(THREADS), "MALLOC_MMAP_MAX_": "0",
                "MALLOC_TRIM_THRESHOLD_": str(2 ** 33)}
    for tower in sys.argv[1:] or TOWERS:
        mine, own = tuned(ours(export, tower), tower)
        with Peer([str(python), str(script), str(FOLDER), tower], settings) as peer:
            theirs, other = tuned(fuxictr(peer), f"FuxiCTR, {TOWERS[tower]}")
        difference = statistics.mean(own) - statistics.mean(other)
        rows.append([f"`{tower}`", f"{mine:g}", _spread(own), TOWERS[tower], f"{theirs:g}", _spread(other),
                     f"{difference:+.4f}", "yes" if difference >= -ALLOWED else "no"])
    body = (f"`make quickstart`, then `python tests/benchmarks/bench_baselines.py`: preset tiny, at most {EPOCHS} "
            f"epochs, learning rates {', '.join(f'{r:g}' for r in RATES)}, seeds {', '.join(map(str, SEEDS))}, mean "
            f"and standard deviation of the test day's AUC over all rows. {before} at the start. FuxiCTR's models "
            "join category and brand to a key of 32 where ours is their sum (16), know no behaviour type, pool by the "
            f"mean and clip gradients. Target: ours no more than {ALLOWED:g} below.\n\n"
            + table(["tower", "its rate", "AUC", "FuxiCTR 2.3.10", "its rate", "AUC", "difference", "reached"], rows))
    print(body)
    write_section("Baselines beside FuxiCTR's, by AUC", body)


if __name__ == "__main__":
    main()
