"""Peak memory of a model's start with deferred initialisation and without, each in a process of its own.

A fresh model to train, and a version's weights to load, at the paper's sizes and Alimama's vocabularies. Prints a
Markdown table and writes it to docs/benchmarks.md. With a GPU the models are made there, and the host's peak is shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from alimama_batches import SCHEMA, vocabulary_sizes
from report import machine, table, write_section
from safetensors.torch import load_file, save_file
from torch import nn

from mail_core.models.deferred import deferred
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailModel
from mail_core.training.presets import model_config

SHARE = float(os.environ.get("BENCH_SHARE", "1"))
"""Of the large vocabularies."""
_KIBIBYTES = 1024


def made() -> MailModel:
    """The paper's MAIL, fresh, on the current default device."""
    return MailModel(model_config("paper", "base_dnn", "base"),
                     EmbeddingLayout.from_schema(SCHEMA, vocabulary_sizes(SHARE)))


def laid_out(weights: str) -> nn.Module:
    """As `load_package` does it: no memory before the file's tensors take the places."""
    with torch.device("meta"):
        model = made()
    model.load_state_dict(load_file(weights, device=device()), assign=True)
    return model


def filled(weights: str) -> nn.Module:
    """Built with initial values, which the file's then replace."""
    model = made().to(device())
    model.load_state_dict(load_file(weights, device=device()))
    return model


STARTS = {"fresh model, deferred": lambda weights: deferred(made, device()),
          "fresh model, built directly": lambda weights: made().to(device()),
          "version loaded, laid out on meta": laid_out, "version loaded into a model built directly": filled}


def device() -> str:
    """Where models are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_mib() -> float:
    """The largest resident size of this process so far; `ru_maxrss` would count that of the process that forked it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / _KIBIBYTES


def measure(name: str, weights: str) -> None:
    """Print what one start takes beyond the imports; every value is read once, so that mapped files count."""
    if device() == "cuda":
        torch.zeros(1, device="cuda")
    before = peak_mib()
    model = STARTS[name](weights)
    total = sum(float(tensor.sum()) for tensor in model.state_dict().values())
    assert total == total, "a value that is no number"
    print(peak_mib() - before)


def main() -> None:
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.safetensors")
        model = deferred(made)
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / _KIBIBYTES ** 2
        save_file(dict(model.state_dict()), weights)
        del model
        for name in STARTS:
            done = subprocess.run([sys.executable, __file__, name, weights], check=True, capture_output=True, text=True)
            peak = float(done.stdout)
            lines.append([name, f"{peak:,.0f}", f"{peak / size:.2f}"])
    body = "\n".join([
        f"`python tests/benchmarks/bench_deferred.py`, {machine(torch.get_num_threads())}, on {device()}. MAIL on "
        f"BaseDNN, paper preset, {SHARE:.0%} of Alimama's vocabularies: {size:,.0f} MiB of weights. Peak resident "
        "memory of the host above what the imports take, every weight read once; one run each.\n",
        table(["start", "peak MiB", "of the weights' size"], lines)])
    print(body)
    write_section("Deferred initialisation", body)


if __name__ == "__main__":
    main()
