"""Run as a script by the tests of checkpoints: trains on two gloo ranks, one of which may kill itself on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_export import small_schema

from mail_core.loading.manifest import TEST
from mail_core.training.checkpoints import Checkpoints
from mail_core.training.data import open_export
from mail_core.training.launcher import is_rank, launch
from mail_core.training.loop import fit
from mail_core.training.predict import predict
from mail_core.training.presets import TrainingConfig, model_config
from mail_core.training.ranks import Ranks

RESUME = "--resume"


class DyingCheckpoints(Checkpoints):
    """Ends its process where a checkpoint within an epoch would be due for the nth time of this process."""

    def __init__(self, folder: Path, ranks: Ranks, resume: bool, dies_at: int | None):
        super().__init__(folder, "key", ranks, seconds=0.0, resume=resume)
        self.asked, self.dies_at = 0, dies_at

    def due(self) -> bool:
        self.asked += 1
        if self.asked == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().due()


def main() -> None:
    out, uri, optimizer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    deaths = [int(text) for text in sys.argv[4].split(",") if text]
    if not is_rank():
        launch(Path(__file__).resolve(), sys.argv[1:], 2, max_restarts=len(deaths), restart_argument=RESUME)
        return
    ranks = Ranks.from_environment()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with (out / f"starts-{ranks.rank}").open("a") as file:
        file.write(f"{RESUME in sys.argv}\n")
    attempt = len((out / f"starts-{ranks.rank}").read_text().splitlines())
    dies_at = deaths[attempt - 1] if ranks.rank == 1 and attempt <= len(deaths) else None
    checkpoints = DyingCheckpoints(out / "checkpoints", ranks, RESUME in sys.argv, dies_at)
    export = open_export(uri, small_schema())
    config = TrainingConfig(model=model_config("tiny", "base_dnn", "base"), batch_size=32, max_epochs=2, patience=2,
                            embedding_optimizer=optimizer)
    curves: list[object] = []
    with ranks.process_group():
        fitted = fit(export, config, ranks, lambda values, step: curves.append([values, step]), checkpoints)
        predictions = predict(fitted.model, export, TEST, ranks)
    save_file(dict(fitted.model.state_dict()), out / f"model-{ranks.rank}.safetensors")
    (out / f"found-{ranks.rank}.json").write_text(json.dumps(
        {"epochs": fitted.epochs, "curves": curves, "predictions": predictions and predictions.probabilities.tolist()}))


if __name__ == "__main__":
    main()
