"""Rows per second of a training step at Alimama's vocabularies: one process, no Spark, nothing read from disk.

Every step is gather, forward, backward, gradients by row and both optimisers on batches of 1,024 rows that are in
memory.

bench_training_step.py [PART ...] takes the parts named, or all: base_dnn, vocabulary, din, towers, zero_shot. It prints
Markdown tables and writes them to docs/benchmarks.md. BENCH_THREADS and BENCH_ROUNDS change threads and timed steps.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import statistics
import sys
import time
from dataclasses import replace
from typing import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from alimama_batches import ROWS, SCHEMA, batches, labels, vocabulary_sizes
from peers import fuxictr_din
from report import WARM_UP, interleaved, machine, spread, table, write_section
from torch import Tensor, nn

from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.inputs import InputShape, TowerInputs, no_virtual
from mail_core.models.mail import MailModel
from mail_core.models.ranking import TOWERS
from mail_core.models.ranking.base_dnn import BaseDnn, BaseDnnConfig
from mail_core.models.ranking.din import DinConfig
from mail_core.models.zero_shot import ZeroShotConfig, ZeroShotTower
from mail_core.training.optimizers import RowSparseAdam
from mail_core.training.presets import model_config

# The allocator settings of the training launcher (design: no page faults for every large temporary).
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2 ** 33)}
PHASES = ("gather", "forward", "backward", "row gradients", "table optimiser", "tower optimiser")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
THREADS = int(os.environ.get("BENCH_THREADS", str(os.cpu_count())))
MEANS = (34, 100)
PAUSE = 0.3  # OpenMP's threads spin for 0.2 s after their work

logger = logging.getLogger(__name__)
Batch = Mapping[str, Tensor]


class OurStep:
    """A step of ours: fused table looked up outside autograd, row-sparse Adam."""

    def __init__(self, tower: str, data: Sequence[Batch], share: float = 1.0, autocast: bool = False):
        torch.manual_seed(1)
        layout = EmbeddingLayout.from_schema(SCHEMA, vocabulary_sizes(share))
        config = model_config("paper", tower, "off")
        if autocast:
            config = replace(config, tower_config=DinConfig(autocast=True))
        self.model = MailModel(config, layout).train()
        self.table = RowSparseAdam(self.model.tables.weight, 1e-3)
        self.adam = torch.optim.Adam(self.model.ranking.parameters(), lr=1e-3, fused=True)
        self.batches, self.labels = itertools.cycle(data), labels()
        self.phases: list[list[float]] = []

    def __call__(self) -> float:
        batch, at = next(self.batches), [time.perf_counter()]
        gathered = self.model.tables.gather(batch)
        at.append(time.perf_counter())
        loss = F.binary_cross_entropy_with_logits(self.model.ranking(gathered.inputs).logits_B, self.labels)
        at.append(time.perf_counter())
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        at.append(time.perf_counter())
        rows_R, grad_RD = gathered.row_gradients()
        at.append(time.perf_counter())
        self.table.step(rows_R, grad_RD)
        at.append(time.perf_counter())
        self.adam.step()
        at.append(time.perf_counter())
        self.phases.append([end - start for start, end in zip(at, at[1:])])
        return at[-1] - at[0]


class TorchStep:
    """BaseDNN on torch's own nn.Embedding: sparse=True with SparseAdam, or dense gradients with fused Adam."""

    def __init__(self, data: Sequence[Batch], sparse: bool):
        torch.manual_seed(1)
        layout = self.layout = EmbeddingLayout.from_schema(SCHEMA, vocabulary_sizes())
        dim = 32
        self.embedding = nn.Embedding(layout.rows, dim, sparse=sparse)
        self.tower = BaseDnn(BaseDnnConfig(), layout.shape(dim)).train()
        weights = list(self.embedding.parameters())
        self.table = (torch.optim.SparseAdam(weights, lr=1e-3) if sparse else
                      torch.optim.Adam(weights, lr=1e-3, fused=True))
        self.adam = torch.optim.Adam(self.tower.parameters(), lr=1e-3, fused=True)
        self.batches, self.labels = itertools.cycle(data), labels()

    def inputs(self, batch: Batch) -> TowerInputs:
        layout = self.layout
        fields = layout.user + layout.context + layout.item
        x_BGD = self.embedding(torch.stack([batch[f.name] + f.offset for f in fields], 1))
        a_BAD, c_BCD, t_BTD = x_BGD.split([len(layout.user), len(layout.context), len(layout.item)], dim=1)
        first, second = (self.embedding(batch[f.name] + f.offset) for f in layout.behavior_items)
        v_BLD = (first + second) * self.embedding(batch[layout.action.name] + layout.action.offset)
        mask_BL = batch[layout.action.name] != 0
        return TowerInputs(a_BAD=a_BAD, v_BLD=v_BLD, mask_BL=mask_BL, c_BCD=c_BCD, t_BTD=t_BTD,
                           dense_BF=torch.stack([batch[name] for name in layout.dense], 1),
                           is_virtual_B=no_virtual(mask_BL))

    def __call__(self) -> float:
        batch, start = next(self.batches), time.perf_counter()
        loss = F.binary_cross_entropy_with_logits(self.tower(self.inputs(batch)).logits_B, self.labels)
        self.table.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.table.step()
        self.adam.step()
        return time.perf_counter() - start


class ZeroShotStep:
    """Forward, backward and G_A's step of the zero-shot tower at the paper's sizes, every row old."""

    def __init__(self, mean_length: int, autocast: bool):
        torch.manual_seed(1)
        config = ZeroShotConfig(autocast=autocast)
        self.tower = ZeroShotTower(config, InputShape(attributes=9, length=100, contexts=4, targets=5, dense=1, dim=32))
        self.adam = torch.optim.Adam(self.tower.parameters(), lr=1e-3, fused=True)
        draw = torch.Generator().manual_seed(2)
        self.mask_NL = batches(1, mean_length)[0][SCHEMA.action_column] != 0
        self.a_NAD = 0.5 * torch.randn(ROWS, 9, 32, generator=draw)
        self.v_NLD = 0.5 * torch.randn(ROWS, 100, 32, generator=draw) * self.mask_NL.unsqueeze(2)

    def losses(self) -> Tensor:
        """(3,): L_a and L_v of a row, L_d."""
        found = self.tower(self.a_NAD, self.v_NLD, self.mask_NL)
        return torch.stack([found.attribute / ROWS, found.behavior / ROWS, found.alignment])

    def __call__(self) -> float:
        start = time.perf_counter()
        loss = self.losses().sum()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return time.perf_counter() - start

    @torch.no_grad()
    def evaluated(self) -> Tensor:
        """The losses without dropout."""
        self.tower.eval()
        found = self.losses()
        self.tower.train()
        return found


def compared(variants: Mapping[str, Callable[[], float]], where: str, base: str, pause: float = 0.0) -> list[list[str]]:
    """Table rows of interleaved variants; the ratio is rows/s over those of `base`."""
    logger.info("%s: %s", where, ", ".join(variants))
    seconds = interleaved(variants, ROUNDS, pause)
    reference = statistics.median(seconds[base])
    return [[where, name, spread(s), f"{ROWS / statistics.median(s):,.0f}", f"{reference / statistics.median(s):.2f}"]
            for name, s in seconds.items()]


def base_dnn() -> tuple[list[list[str]], list[list[str]]]:
    """BaseDNN against torch's own embeddings, and the phases of a step."""
    rows, phases = [], []
    for ids, mean in (("zipf", 34), ("zipf", 100), ("uniform", 100)):
        data = batches(6, mean, ids)
        ours = OurStep("base_dnn", data)
        variants = {"row-sparse Adam": ours, "torch sparse=True, SparseAdam": TorchStep(data, True),
                    "torch dense, fused Adam": TorchStep(data, False)}
        rows += compared(variants, f"BaseDNN, {ids}, mean length {mean}", "torch sparse=True, SparseAdam")
        phases.append(_phases(f"BaseDNN, {ids}, {mean}", ours))
        del variants, ours
        gc.collect()
    return rows, phases


def vocabulary() -> list[list[str]]:
    """The whole vocabulary against a hundredth of it."""
    rows = []
    for mean in MEANS:
        variants = {f"{share:.0%} of the vocabulary": OurStep("base_dnn", batches(6, mean, share=share), share)
                    for share in (0.01, 1.0)}
        rows += compared(variants, f"BaseDNN, zipf, mean length {mean}", "1% of the vocabulary")
    return rows


def towers() -> tuple[list[list[str]], list[list[str]]]:
    """Every ranking tower, ours only."""
    rows, phases = [], []
    data = batches(6, 34)
    for tower in TOWERS:
        step = OurStep(tower, data)
        rows += compared({f"tower `{tower}`": step}, "zipf, mean length 34", f"tower `{tower}`")
        phases.append(_phases(tower, step))
    return [row[:-1] for row in rows], phases


def din() -> tuple[list[list[str]], list[list[str]]]:
    """DIN against FuxiCTR's."""
    rows, phases = [], []
    for mean in MEANS:
        data = batches(6, mean)
        ours, rounded = OurStep("din", data), OurStep("din", data, autocast=True)
        with fuxictr_din(data, THREADS, without=ALLOCATOR) as theirs, fuxictr_din(data, THREADS) as tuned:
            rows += compared({"tower `din`": ours, "tower `din`, bfloat16 attention": rounded,
                              "FuxiCTR 2.3.10 DIN": theirs, "FuxiCTR 2.3.10 DIN, our allocator settings": tuned},
                             f"DIN, zipf, mean length {mean}", "FuxiCTR 2.3.10 DIN", PAUSE)
        phases += [_phases(f"din, {mean}", ours), _phases(f"din, bfloat16 attention, {mean}", rounded)]
    return rows, phases


def zero_shot() -> tuple[list[list[str]], str]:
    """The zero-shot tower in float32 and in bfloat16 autocast, and how far the losses are apart."""
    rows, apart = [], []
    for mean in MEANS:
        variants = {"float32": ZeroShotStep(mean, False), "bfloat16 autocast": ZeroShotStep(mean, True)}
        rows += compared(variants, f"zero-shot tower, mean length {mean}", "float32")
        exact, rounded = variants.values()
        trained = [step.evaluated() for step in (exact, rounded)]
        rounded.tower.load_state_dict(exact.tower.state_dict())
        same = rounded.evaluated()
        apart.append(f"mean length {mean}: {_apart(trained[0], same)} at equal weights, {_apart(*trained)} after "
                     f"{WARM_UP + ROUNDS} steps of each from equal weights, with other dropout draws")
    return rows, "Relative difference of (L_a, L_v, L_d) between the two: " + "; ".join(apart) + ".\n"


def _apart(exact: Tensor, other: Tensor) -> str:
    return "(" + ", ".join(f"{abs(b / a - 1):.1e}" for a, b in zip(exact.tolist(), other.tolist())) + ")"


def _phases(where: str, step: OurStep) -> list[str]:
    middle = [1e3 * statistics.median(times) for times in zip(*step.phases[WARM_UP:])]
    return [where, *(f"{value:.1f}" for value in middle), f"{sum(middle):.1f}"]


HEADER = ["rows", "variant", "ms a step: median (quartiles)", "rows/s", "rows/s as a ratio"]


def _with_phases(note: str, rows: list[list[str]], phases: list[list[str]]) -> str:
    return "\n".join([note, table(HEADER[:len(rows[0])], rows), "Where a step of ours goes, median ms (reading: see "
                      "Loader; the exchange: see Exchange between two ranks):\n",
                      table(["rows", *PHASES, "sum"], phases)])


def base_dnn_section() -> str:
    rows, phases = base_dnn()
    return _with_phases("Ratios are against SparseAdam. Target: 20,000 rows/s where SparseAdam reaches 10,200.\n", rows,
                        phases)


def vocabulary_section() -> str:
    return "Target: at most 1.4 times the time at 1 %.\n\n" + table(HEADER, vocabulary())


def din_section() -> str:
    return _with_phases("Ratios are against FuxiCTR as it comes. Target: 20. FuxiCTR's DIN has our layer sizes "
                        "(attention 80 and 40, then 512 and 256, LeakyReLU, batch norm, dropout 0.5); it has no "
                        "behaviour type, joins category and brand to a key of 64 where ours is their sum (32), and "
                        f"clips gradients. It runs in a process of its own; {PAUSE} s lie between two steps.\n", *din())


def towers_section() -> str:
    return _with_phases("", *towers())


def zero_shot_section() -> str:
    rows, losses = zero_shot()
    return "Every row old. Target: 2 times float32.\n\n" + "\n".join([table(HEADER, rows), losses])


PARTS = {"base_dnn": ("BaseDNN", base_dnn_section), "vocabulary": ("share of the vocabulary", vocabulary_section),
         "din": ("DIN beside FuxiCTR's", din_section), "towers": ("every tower", towers_section),
         "zero_shot": ("zero-shot tower", zero_shot_section)}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(THREADS)
    for part in sys.argv[1:] or PARTS:
        title, section = PARTS[part]
        before = machine(THREADS)
        body = section()
        body = (f"`python tests/benchmarks/bench_training_step.py {part}`: one process, batches of {ROWS:,} rows in "
                f"memory, L = 100, D = 32, {ROUNDS} rounds after {WARM_UP} steps of warming up. {before} at the start. "
                f"Alimama's vocabularies: 3.1 million rows of the table. {body}")
        print(body)
        write_section(f"Training step: {title}", body)


if __name__ == "__main__":
    main()
