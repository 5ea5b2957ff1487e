"""Other projects' code in environments of their own under runs/bench, one training step at a time."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Iterable, Mapping, Sequence

import numpy as np
import torch
from alimama_batches import SCHEMA, labels, vocabulary_sizes
from torch import Tensor

BENCH = Path(__file__).resolve().parents[2] / "runs" / "bench"
FUXICTR = ("fuxictr==2.3.10", f"torch=={torch.__version__.split('+')[0]}")

logger = logging.getLogger(__name__)


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of runs/bench/NAME, made on first use with `requirements` from the package index."""
    folder, python = BENCH / name, BENCH / name / "bin" / "python"
    wanted, done = "\n".join(requirements), BENCH / name / "requirements.txt"
    if not done.exists() or done.read_text() != wanted:
        logger.info("installing %s into %s", ", ".join(requirements), folder)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(wanted)
    return python


class Peer:
    """A process that runs once for each line it is sent and answers with its seconds; calling it is one run."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.line()

    def line(self) -> str:
        """What it says next. Raises RuntimeError where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended; its message stands above")
        return line

    def start(self, request: str = "") -> None:
        """Begin a run; `line` waits for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()

    def __call__(self) -> float:
        self.start()
        return float(self.line())

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.process.communicate()


def fuxictr_din(batches: Sequence[Mapping[str, Tensor]], threads: int, without: Iterable[str] = ()) -> Peer:
    """FuxiCTR's DIN on these batches, a training step a call.

    `without`: variables of our environment that it shall not have.
    """
    python = environment("fuxictr", FUXICTR)
    arrays = {f"{i}/{name}": value.numpy() for i, batch in enumerate(batches) for name, value in batch.items()}
    arrays.update({f"{i}/label": labels().numpy() for i in range(len(batches))})
    np.savez(BENCH / "batches.npz", **arrays)  # type: ignore[arg-type]
    sizes = {f.name: vocabulary_sizes()[f.name] for f in SCHEMA.features if f.kind != "dense"}
    (BENCH / "sizes.json").write_text(json.dumps({
        "sizes": sizes, "dense": [f.name for f in SCHEMA.features if f.kind == "dense"], "batches": len(batches)}))
    kept = {name: value for name, value in os.environ.items() if name not in set(without)}
    return Peer([str(python), str(Path(__file__).with_name("fuxictr_din.py")), str(BENCH / "batches.npz"),
                 str(BENCH / "sizes.json"), str(threads)], kept)
