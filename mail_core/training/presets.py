"""Settings of a training run. All arithmetic is float32, but where a part of the model has `autocast`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping

from mail_core.errors import InputError
from mail_core.models.config import check_choice, check_positive, check_size
from mail_core.models.mail import COLD_START, MailConfig
from mail_core.models.ranking import TowerConfig, has_pooling, pooling_of, with_pooling
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.ranking.dcn_v2 import DcnV2Config
from mail_core.models.ranking.din import DinConfig
from mail_core.models.ranking.dmr import DmrConfig
from mail_core.models.ranking.dnn_concat import DnnConcatConfig
from mail_core.models.ranking.emb_lr import EmbLrConfig
from mail_core.models.zero_shot import VARIANTS, ZeroShotConfig
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
                                    "emb_lr": EmbLrConfig(), "din": DinConfig(), "dcn_v2": DcnV2Config(),
                                    "dmr": DmrConfig()},
                    zero_shot=ZeroShotConfig()),
    "tiny": Preset(dim=16, towers={"base_dnn": BaseDnnConfig(hidden=_TINY), "dnn_concat": DnnConcatConfig(hidden=_TINY),
                                   "emb_lr": EmbLrConfig(), "din": DinConfig(attention=(32, 16), hidden=_TINY),
                                   "dcn_v2": DcnV2Config(hidden=_TINY),
                                   "dmr": DmrConfig(attention=32, hidden=(128, 64, 32))},
                   zero_shot=ZeroShotConfig(hidden=(128, 64), latent=64, attention=32)),
}


ALONE = "off"
METHODS = (ALONE, *VARIANTS, *COLD_START)
"""What is done for new users: nothing, a variant of MAIL, or a peer of MAIL's."""


def model_config(preset: str, tower: str, method: str, *, pooling: str | None = None, alignment: str | None = None,
                 kernel: str | None = None, joint: bool = False, head: str = MailConfig.head) -> MailConfig:
    """The model of a preset.

    Args:
        method: one of METHODS.
        pooling: of behaviour, `sum` or `mean`; None: the paper's sum, or the mean where a method's token needs it.
        alignment, kernel: of a variant of MAIL that aligns; None: the paper's.
        joint: see ZeroShotConfig.
        head: see MailConfig.

    Raises:
        InputError: an unknown name, or a setting that the tower has not or the method cannot use.
    """
    check_choice(preset, "preset", list(PRESETS))
    sizes = PRESETS[preset]
    check_choice(tower, "tower", list(sizes.towers))
    check_choice(method, "cold start", METHODS)
    zero_shot = replace(sizes.zero_shot, variant=method) if method in VARIANTS else None
    changes: dict[str, Any] = {n: v for n, v in (("alignment", alignment), ("kernel", kernel)) if v is not None}
    if changes and not (zero_shot is not None and zero_shot.parts.align):
        raise InputError(f"{', '.join(changes)}: the method {method!r} has no alignment loss")
    if joint and zero_shot is None:
        raise InputError(f"joint: the method {method!r} has no zero-shot tower")
    if zero_shot is not None:
        zero_shot = replace(zero_shot, joint=joint, **changes)
    tower_config = sizes.towers[tower]
    if pooling is None and zero_shot is not None and zero_shot.parts.token and pooling_of(tower_config) == "sum":
        pooling = "mean"
    if pooling is not None:
        tower_config = with_pooling(tower_config, pooling)
    return MailConfig(tower=tower, head=head, dim=sizes.dim, tower_config=tower_config, zero_shot=zero_shot,
                      cold_start=COLD_START[method][0]() if method in COLD_START else None)


def method_of(config: MailConfig) -> str:
    """The name among METHODS of what a model does for new users."""
    if config.zero_shot is not None:
        return config.zero_shot.variant
    return config.cold_start_method or ALONE


def model_label(config: MailConfig) -> str:
    """What tells kinds of models apart: `base_dnn`, `mail-base_dnn` (the paper's MAIL), `mail-gated-din`,
    `llae-emb_lr`, `mail-esmm-base_dnn`; settings other than the defaults stand in it, too."""
    paper, zero_shot, words = ZeroShotConfig(), config.zero_shot, []
    if config.cold_start_method is not None:
        words.append(config.cold_start_method)
    if zero_shot is not None:
        words += ["mail", *([zero_shot.variant] if zero_shot.variant != paper.variant else [])]
        words += [v for n in ("alignment", "kernel") if (v := getattr(zero_shot, n)) != getattr(paper, n)]
        words += ["joint"] if zero_shot.joint else []
    words += [*([config.head] if config.head != MailConfig.head else []), config.tower]
    token = zero_shot is not None and zero_shot.parts.token
    if has_pooling(config.tower_config) and pooling_of(config.tower_config) == "mean" and not token:
        words.append("mean")
    return "-".join(words)
