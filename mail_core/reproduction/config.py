"""What a reproduction of the paper is made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from mail_core.errors import InputError
from mail_core.models.config import check_positive, check_size
from mail_core.reproduction.plan import FIGURES, TABLES
from mail_core.training.presets import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ReproductionConfig:
    """Tables and figures of one export; the defaults are the paper's settings."""

    schema: str
    """Name or path of the schema."""
    lake_uri: str
    """As of `validated_lake_uri`."""
    end_date: date
    """The test day."""
    new_users: str
    """natural, or masked:FRACTION:SEED."""
    out: Path
    """Folder for tables, figures and report.html."""
    days: int = 8
    """Of the export."""
    seeds: int = 5
    """Trainings of each method: with the seeds 1, 2, ..."""
    preset: str = "paper"
    tables: tuple[int, ...] = TABLES
    figures: tuple[int, ...] = FIGURES
    rows: tuple[str, ...] | None = None
    """Names of the rows of Tables 2 and 3; None: all."""
    learning_rates: tuple[float, ...] = (TrainingConfig.learning_rate,)
    """Of several, the one that is best on the validation day is chosen for each method with the first seed."""
    batch_size: int = TrainingConfig.batch_size
    epochs: int | None = None
    """None: chosen on the validation day, for each training."""
    ranks: int = 1
    """Processes of a training."""
    budget_minutes: float | None = None
    """After which no training is started; None: no end."""
    tracking_uri: str | None = None
    """MLflow's store; None: beside a local lake."""

    def __post_init__(self) -> None:
        for name in ("seeds", "ranks", "batch_size"):
            check_size(getattr(self, name), name)
        if not self.learning_rates:
            raise InputError("learning rates: none (expected one or more)")
        for rate in self.learning_rates:
            check_positive(rate, "learning rates")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise InputError(f"learning rates: {self.learning_rates} (expected each once)")
        if self.epochs is not None and len(self.learning_rates) > 1:
            raise InputError("epochs: not with several learning rates, which are compared on the validation day while "
                             "the epochs are chosen there")
        if self.budget_minutes is not None and not self.budget_minutes >= 0:
            raise InputError(f"budget minutes: {self.budget_minutes} (expected a number from 0)")
