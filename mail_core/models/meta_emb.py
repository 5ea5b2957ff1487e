"""MetaEmb (Pan et al., SIGIR 2019): a generator of new users' ID embeddings from their other attributes.

N rows, A user attributes, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.config import check_positive, check_share, check_size
from mail_core.models.inputs import InputShape
from mail_core.models.layers import Dense

_SCALE = 5.0  # of the authors' generator: tanh(.) / 5


@dataclass(frozen=True, kw_only=True)
class MetaEmbConfig:
    """How the generator is trained, once the ranking tower is."""

    alpha: float = 0.1
    """Of the meta loss alpha L_cold + (1 - alpha) L_warm."""
    inner_learning_rate: float = 0.01
    """Of the one gradient step on the generated embedding between the two losses."""
    learning_rate: float = 1e-3
    """Of the generator."""
    epochs: int = 2
    """Passes over the training days."""

    def __post_init__(self) -> None:
        check_share(self.alpha, "cold_start.alpha")
        check_positive(self.inner_learning_rate, "cold_start.inner_learning_rate")
        check_positive(self.learning_rate, "cold_start.learning_rate")
        check_size(self.epochs, "cold_start.epochs")


class MetaEmb(nn.Module):
    """phi = tanh(W a') / 5, where a' are all attributes but the ID side by side; it takes the place of the ID's."""

    fitted: Tensor
    """bool; before it is True the model is its ranking tower alone."""

    def __init__(self, config: MetaEmbConfig, shape: InputShape):
        super().__init__()
        if shape.user_id is None or shape.attributes < 2:
            raise InputError("meta_emb: the schema needs the user's ID and another attribute among its user features")
        self.config, self.user_id = config, shape.user_id
        self.others = shape.without_user_id
        self.generator = Dense(len(self.others) * shape.dim, shape.dim, bias=False)
        self.register_buffer("fitted", torch.tensor(False))

    def reset_parameters(self) -> None:
        self.generator.reset_parameters()
        self.fitted.zero_()

    def forward(self, a_NAD: Tensor) -> Tensor:
        """Initial ID embeddings (N, D)."""
        return torch.tanh(self.generator(a_NAD[:, self.others].flatten(1))) / _SCALE

    def with_identity(self, a_NAD: Tensor, phi_ND: Tensor) -> Tensor:
        """`a_NAD` with `phi_ND` in the place of the ID's embedding."""
        position = torch.tensor([self.user_id], device=a_NAD.device)
        return a_NAD.index_copy(1, position, phi_ND.unsqueeze(1))
