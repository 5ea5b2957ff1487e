"""Settings of a training run. All arithmetic is float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from mail_core.errors import InputError
from mail_core.models.config import check_choice, check_positive, check_size
from mail_core.models.mail import MailConfig
from mail_core.models.ranking import TowerConfig
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.ranking.dcn_v2 import DcnV2Config
from mail_core.models.ranking.din import DinConfig
from mail_core.models.ranking.dnn_concat import DnnConcatConfig
from mail_core.models.ranking.emb_lr import EmbLrConfig
from mail_core.models.zero_shot import ZeroShotConfig
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run; the defaults are the paper's (4.2) where the paper gives one."""

    model: MailConfig
    batch_size: int = 1024
    """Rows of a step over all ranks."""
    learning_rate: float = 1e-3
    """Of G_A, of G_B and of the embedding table."""
    epochs: int | None = None
    """None: chosen on the last training day, at most `max_epochs`."""
    max_epochs: int = 4
    patience: int = 1
    """Epochs without a better validation AUC after which the choice of epochs ends."""
    seed: int = 1
    """Of initial values, dropout and the order of rows."""
    embedding_optimizer: str = "row_sparse"
    """row_sparse (lazy Adam) or dense (torch.optim.Adam on the whole table)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "patience"):
            check_size(getattr(self, name), name)
        if self.epochs is not None:
            check_size(self.epochs, "epochs")
        if self.seed < 0:
            raise InputError(f"seed: {self.seed} (expected a whole number from 0)")
        check_positive(self.learning_rate, "learning_rate")
        check_choice(self.embedding_optimizer, "embedding_optimizer", EMBEDDING_OPTIMIZERS)

    def batch_of(self, world_size: int) -> int:
        """Rows of a step on each of `world_size` ranks. Raises InputError where they do not divide the batch."""
        if self.batch_size % world_size:
            raise InputError(f"batch size {self.batch_size} is not a multiple of the {world_size} ranks")
        return self.batch_size // world_size


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of a model: all in which the presets differ."""

    dim: int
    """D."""
    towers: Mapping[str, TowerConfig]
    """Ranking tower, a name of TOWERS -> its configuration."""
    zero_shot: ZeroShotConfig


_TINY = (128, 64)  # hidden layers of every tower
PRESETS = {
    "paper": Preset(dim=32, towers={"base_dnn": BaseDnnConfig(), "dnn_concat": DnnConcatConfig(),
                                    "emb_lr": EmbLrConfig(), "din": DinConfig(), "dcn_v2": DcnV2Config()},
                    zero_shot=ZeroShotConfig()),
    "tiny": Preset(dim=16, towers={"base_dnn": BaseDnnConfig(hidden=_TINY), "dnn_concat": DnnConcatConfig(hidden=_TINY),
                                   "emb_lr": EmbLrConfig(), "din": DinConfig(attention=(32, 16), hidden=_TINY),
                                   "dcn_v2": DcnV2Config(hidden=_TINY)},
                   zero_shot=ZeroShotConfig(hidden=(128, 64), latent=64, attention=32)),
}


def model_config(preset: str, tower: str, zero_shot: bool) -> MailConfig:
    """The model of a preset, with the zero-shot tower or without. Raises InputError on an unknown preset or tower."""
    check_choice(preset, "preset", list(PRESETS))
    sizes = PRESETS[preset]
    check_choice(tower, "tower", list(sizes.towers))
    return MailConfig(tower=tower, dim=sizes.dim, tower_config=sizes.towers[tower],
                      zero_shot=sizes.zero_shot if zero_shot else None)
