"""What a run shows while it trains: loss curves over all ranks, a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Callable, Mapping

import torch
from tqdm import tqdm

from mail_core.training.ranks import Ranks
from mail_core.training.step import LOSSES, StepLosses

LOG_SECONDS = 10.0
CURVE_STEPS = 20
"""Steps a point of the loss curves."""

CurveSink = Callable[[int, Mapping[str, float]], None]
"""(step, loss name -> per-row mean since the last point); called on rank 0 only."""

logger = logging.getLogger(__name__)


class Progress:
    """One phase of training: all its epochs. `advance` and `flush` are called on every rank at the same steps."""

    def __init__(self, title: str, steps: int, ranks: Ranks, sink: CurveSink):
        self.title, self.total, self.ranks, self.sink = title, steps, ranks, sink
        self.steps = 0
        self.last: dict[str, float] = {}
        self._window = torch.zeros(2, len(LOSSES), device=ranks.device)
        self._rows, self._rows_since, self._since = 0.0, 0.0, time.monotonic()
        self._bar = tqdm(total=steps, desc=title, unit="step", file=sys.stderr,
                         disable=not (ranks.is_first and sys.stderr.isatty()))

    def advance(self, losses: StepLosses) -> None:
        """Count a step."""
        self._window += torch.stack([losses.sums, losses.counts])
        self.steps += 1
        self._bar.update()
        if self.steps % CURVE_STEPS == 0:
            self.flush()

    def flush(self) -> None:
        """A point of the curves from the steps since the last one: means over all ranks' rows."""
        sums, counts = self.ranks.sum(self._window).tolist()
        self._window.zero_()
        if not any(counts):
            return
        self._rows += counts[0]
        # A loss that no row had (no old row, no zero-shot tower) has no point.
        self.last = {name: value / count for name, value, count in zip(LOSSES, sums, counts) if count}
        if self.ranks.is_first:
            self.sink(self.steps, self.last)
            self._show()

    def close(self) -> None:
        """End the bar and log the last line."""
        self._bar.close()
        if self.ranks.is_first:
            self._log()

    def _show(self) -> None:
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in self.last.items()}, refresh=False)
        if self._bar.disable and time.monotonic() - self._since >= LOG_SECONDS:
            self._log()

    def _log(self) -> None:
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = (self._rows - self._rows_since) / seconds
        self._since, self._rows_since = time.monotonic(), self._rows
        logger.info("%s: step %d of %d, %.0f rows/s, %s", self.title, self.steps, self.total, rate,
                    ", ".join(f"{name} {value:.4f}" for name, value in self.last.items()))
