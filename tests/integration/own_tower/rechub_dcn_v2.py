"""torch-rechub 0.9.0's DCNv2 as a ranking tower of MAIL, its code unchanged (docs/own-tower.md walks through it).

B rows, A, C, T, L, F, D as in mail_core/models/inputs.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature
from torch_rechub.models.ranking import DCNv2

from mail_core.models.config import check_share, check_size, check_sizes
from mail_core.models.fields import pool_behavior
from mail_core.models.inputs import InputShape, RankingOutput, TowerInputs
from mail_core.models.layers import BatchNorm, log_odds


@dataclass(frozen=True, kw_only=True)
class RechubDcnV2Config:
    """Sizes of torch-rechub's DCNv2 with full cross matrices beside its DNN."""

    cross_layers: int = 3
    """Cross layers."""
    hidden: tuple[int, int] = (512, 256)
    """Units of the two hidden layers."""
    dropout: float = 0.5
    """After each hidden layer, as torch-rechub has it."""

    def __post_init__(self) -> None:
        check_size(self.cross_layers, "tower_config.cross_layers")
        check_sizes(self.hidden, "tower_config.hidden", 2)
        check_share(self.dropout, "tower_config.dropout")


class RechubDcnV2(nn.Module):
    """Embedded groups go in as dense vectors, which torch-rechub's embedding layer hands on as they are."""

    config_type = RechubDcnV2Config

    def __init__(self, config: RechubDcnV2Config, shape: InputShape):
        super().__init__()
        self.config, self.shape = config, shape
        self.model = self._fresh()

    def _fresh(self) -> DCNv2:
        shape, config = self.shape, self.config
        widths = {"behavior": shape.dim, "attributes": shape.attributes * shape.dim,
                  "context": shape.contexts * shape.dim, "target": shape.targets * shape.dim, "dense": shape.dense}
        model = DCNv2([DenseFeature(name, width) for name, width in widths.items()], config.cross_layers,
                      {"dims": list(config.hidden), "dropout": config.dropout}, use_low_rank_mixture=False)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm1d):  # torch's refuses a batch of one row in training
                    setattr(module, name, BatchNorm(child.num_features))
        return model

    def reset_parameters(self) -> None:
        """Initial values of a new one: not every part of the library's model can draw its own again."""
        self.model.load_state_dict(self._fresh().state_dict())

    def set_prior(self, ctr: float) -> None:
        """Let the fresh tower's output bias be the log odds of `ctr`."""
        nn.init.constant_(self.model.linear.fc.bias, log_odds(ctr))

    def forward(self, inputs: TowerInputs) -> RankingOutput:
        """Logits (B,): the library returns probabilities."""
        ctr_B = self.model({"behavior": pool_behavior(inputs, "sum"), "attributes": inputs.a_BAD.flatten(1),
                            "context": inputs.c_BCD.flatten(1), "target": inputs.t_BTD.flatten(1),
                            "dense": inputs.dense_BF})
        return RankingOutput(logits_B=torch.logit(ctr_B, eps=1e-6))
