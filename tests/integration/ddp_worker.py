"""Run as a script by the tests of DDP: starts itself as two gloo ranks, which write what they found to a folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_export import small_schema
from stepping import BATCH, CASES, OPTIMIZERS, ZERO_SHOT, batch_for, batch_of, fresh_step, state_of, take

from mail_core.loading.manifest import TEST
from mail_core.training.data import open_export
from mail_core.training.launcher import is_rank, launch
from mail_core.training.loop import fit
from mail_core.training.predict import predict
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks

WORLD_SIZE = 2


def steps(folder: Path, ranks: Ranks) -> None:
    """Each rank steps on its half of two batches, the first mostly of old rows; then rank 1 on a filler."""
    half = slice(0, BATCH) if ranks.rank == 0 else slice(BATCH, 2 * BATCH)
    for optimizer, tower in CASES:
        step = fresh_step(optimizer, ranks, tower=tower)
        for seed in (1, 2):
            step(*take(batch_of(seed), half))
        save_file(state_of(step), folder / f"{optimizer}-{tower}-{ranks.rank}.safetensors")
    for optimizer in OPTIMIZERS:
        step = fresh_step(optimizer, ranks)
        encoded, *others = take(batch_of(3), slice(0, BATCH))
        if ranks.rank:
            encoded = {name: torch.zeros_like(column[:1]) for name, column in encoded.items()}
            others = [torch.zeros_like(column[:1]) for column in others]
        step(encoded, *others)
        save_file(state_of(step), folder / f"{optimizer}-base_dnn-filler-{ranks.rank}.safetensors")
    for zero_shot in ZERO_SHOT:
        step = fresh_step("row_sparse", ranks, zero_shot)
        for seed in (1, 2):
            step(*take(batch_for(zero_shot, seed), half))
        save_file(state_of(step), folder / f"{zero_shot}-{ranks.rank}.safetensors")


def epochs(folder: Path, ranks: Ranks) -> None:
    """Choose epochs, train and score on every export below `folder`."""
    found = {}
    for uri in sorted(folder.glob("*/exports/*")):
        export = open_export(str(uri), small_schema())
        config = TrainingConfig(model=model_config("tiny", "base_dnn", "base"), batch_size=32, max_epochs=2, seed=5)
        drawn: list[int] = []
        fitted = fit(export, config, ranks, lambda values, step: drawn.append(step))
        again = fit(export, replace(config, epochs=fitted.epochs), ranks, lambda values, step: None)
        predictions = predict(fitted.model, export, TEST, ranks, batch_rows=16)
        state, same = fitted.model.state_dict(), again.model.state_dict()
        save_file(dict(state), folder / f"{uri.parents[1].name}-{ranks.rank}.safetensors")
        found[uri.parents[1].name] = {
            "epochs": fitted.epochs, "points": len(drawn),
            "repeats": all(torch.equal(state[n], same[n]) for n in state),
            "predictions": predictions and [predictions.user_keys.tolist(), predictions.probabilities.tolist()]}
    (folder / f"found-{ranks.rank}.json").write_text(json.dumps(found))


def main() -> None:
    task, folder = sys.argv[1:]
    if not is_rank():
        launch(Path(__file__).resolve(), sys.argv[1:], WORLD_SIZE)
        return
    ranks = Ranks.from_environment()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with ranks.process_group():
        {"steps": steps, "epochs": epochs}[task](Path(folder), ranks)


if __name__ == "__main__":
    main()
