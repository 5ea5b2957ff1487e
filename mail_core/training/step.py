"""One step of Algorithm 1 on one of several ranks (design.md, decision 7).

Shape legend: B rows of this rank's batch, N its old rows, A user attributes, L behaviour length, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mail_core.models.esmm import ranking_losses
from mail_core.models.inputs import TowerInputs
from mail_core.models.mail import MailModel
from mail_core.models.zero_shot import ZeroShotTower
from mail_core.training.exchange import exchange_row_gradients
from mail_core.training.optimizers import BETAS, EPS, table_optimizer
from mail_core.training.presets import TrainingConfig
from mail_core.training.ranks import Ranks

LOSSES = ("L_rt", "L_a", "L_v", "L_d")
"""The curves of Figure 4: ranking (Eq. 13; both losses of ESMM), attributes (Eq. 3), behaviour (Eq. 4), alignment
(Eqs. 5-6)."""


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """This rank's share of the step's losses; summed over ranks and divided by the counts they are per-row means."""

    sums: Tensor
    """(4,) in the order of LOSSES; L_d, a mean already, is counted once a rank that had old rows."""
    counts: Tensor
    """(4,) real rows, old rows, old rows, 1 or 0."""


@dataclass(frozen=True)
class _ZeroShotTerms:
    loss: Tensor
    """L_zst, this rank's share of it."""
    sums: Tensor
    """(3,) L_a and L_v summed over rows, and L_d; without a graph."""


class TrainStep:
    """The two towers as two DDP modules, G_A (zero-shot tower) and G_B (ranking tower, embedding table).

    Called on every rank for every step, filler batches included: each step has the same collectives on every rank.
    """

    def __init__(self, model: MailModel, config: TrainingConfig, ranks: Ranks):
        self.model, self.ranks = model, ranks
        for tensor in (*model.parameters(), *model.buffers()):
            ranks.broadcast(tensor.data)
        groups = model.parameter_groups()
        self.zero_shot = None if model.zero_shot is None else _parallel(model.zero_shot, ranks)
        self.ranking = _parallel(model.ranking, ranks)
        self.by_ranking = model.config.zero_shot is not None and model.config.zero_shot.learns_by_ranking
        self.gate = None if model.zero_shot is None else model.zero_shot.gate
        self.g_a = _adam(groups["zero_shot"], config.learning_rate) if groups["zero_shot"] else None
        self.g_b = _adam(groups["ranking"], config.learning_rate)
        self.g_b_table = table_optimizer(config.embedding_optimizer, model.tables.weight, config.learning_rate)

    def __call__(self, encoded: Mapping[str, Tensor], labels_B: Tensor, weights_B: Tensor,
                 held_out_B: Tensor | None = None, conversions_B: Tensor | None = None) -> StepLosses:
        """Lines 3 to 9 of Algorithm 1 for one batch.

        Args:
            encoded: the batch's encoded columns.
            labels_B: float32, 0 or 1.
            weights_B: float32, 1 for a real row, 0 for a filler; some rank has a real row.
            held_out_B: True for rows whose users a gated zero-shot tower does not learn from; None: no such row.
            conversions_B: float32, 0 or 1; the head `esmm` needs them.
        """
        gathered = self.model.tables.gather(encoded)
        inputs = gathered.inputs
        old_B = inputs.mask_BL.any(1) & (weights_B > 0)
        held_out_B = torch.zeros_like(old_B) if held_out_B is None or self.gate is None else held_out_B
        learned_B = old_B & ~held_out_B
        totals = self.ranks.sum(torch.stack([weights_B.sum(), learned_B.sum().to(weights_B.dtype)]))
        global_weight, global_learned = totals.tolist()
        terms, virtual_MKD = self._zero_shot_loss(inputs, learned_B, global_learned)
        if terms is not None and not self.by_ranking:
            self._step_zero_shot(terms.loss)
        if self.gate is not None:
            self._update_gate(inputs, old_B, held_out_B)
        # Detached, by the tower that G_A has just stepped; where it learns by the ranking loss, with the graph.
        output = self.ranking(self.model.complete(inputs, virtual_MKD))
        ranking_sum = (weights_B * ranking_losses(output, labels_B, conversions_B)).sum()
        # DDP averages over ranks: a share of the global mean on each rank therefore counts world-size times.
        loss = (ranking_sum + sum(output.auxiliary.values())) * (self.ranks.world_size / max(global_weight, 1.0))
        self._step_all(loss, terms.loss if terms is not None and self.by_ranking else None)
        self.g_b_table.step(*exchange_row_gradients(*gathered.row_gradients(), self.ranks))
        # A tower alone has no L_a, L_v and L_d: they count no row and get no curve.
        learned = learned_B.sum().to(weights_B.dtype) * (self.g_a is not None)
        sums = torch.zeros(3, device=weights_B.device) if terms is None else terms.sums
        return StepLosses(sums=torch.cat([ranking_sum.detach().view(1), sums]),
                          counts=torch.stack([weights_B.sum(), learned, learned, (learned > 0).to(weights_B.dtype)]))

    def _zero_shot_loss(self, inputs: TowerInputs, learned_B: Tensor,
                        global_learned: float) -> tuple[_ZeroShotTerms | None, Tensor | None]:
        """L_zst (Eq. 7) of this rank's rows, and virtual behaviour with a graph where the ranking loss teaches it."""
        # Without any old row anywhere there is no L_zst, and G_A would move the tower by its momentum alone. All ranks
        # have the same total, so that they skip together.
        if self.zero_shot is None or not (global_learned > 0 or self.by_ranking):
            return None, None
        to_complete = inputs.a_BAD[self.model.to_complete(inputs)] if self.by_ranking else None
        # Detached: no gradient of L_zst reaches a table (trick 1 of 3.2.4).
        losses = self.zero_shot(inputs.a_BAD[learned_B].detach(), inputs.v_BLD[learned_B].detach(),
                                inputs.mask_BL[learned_B], to_complete)
        share = self.ranks.world_size / max(global_learned, 1.0)
        loss = (losses.attribute + losses.behavior) * share + losses.alignment
        sums = torch.stack([losses.attribute, losses.behavior, losses.alignment]).detach()
        return _ZeroShotTerms(loss, sums), losses.virtual_MKD if self.by_ranking else None

    def _step_zero_shot(self, loss: Tensor) -> None:
        """Line 5: G_A on L_zst."""
        assert self.g_a is not None
        self.g_a.zero_grad(set_to_none=True)
        loss.backward()
        self.g_a.step()

    def _step_all(self, loss: Tensor, zero_shot_loss: Tensor | None) -> None:
        """Line 9: G_B on L_rt; where both losses share a graph (Eq. 14), G_A too."""
        joint = self.g_a if zero_shot_loss is not None else None
        for optimizer in (self.g_b, joint):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        (loss if zero_shot_loss is None else loss + zero_shot_loss).backward()
        for optimizer in (self.g_b, joint):
            if optimizer is not None:
                optimizer.step()

    @torch.no_grad()
    def _update_gate(self, inputs: TowerInputs, old_B: Tensor, held_out_B: Tensor) -> None:
        """The gate's statistics, of all ranks' old rows, by the tower that G_A has just stepped."""
        tower = self.model.zero_shot
        assert isinstance(tower, ZeroShotTower) and tower.gate is not None
        sums = tower.gate_sums(inputs.a_BAD[old_B], inputs.v_BLD[old_B], inputs.mask_BL[old_B], held_out_B[old_B])
        tower.gate.update(self.ranks.sum(sums))

    def average_buffers(self) -> None:
        """Batch norm's running statistics averaged over ranks, to be called before the model is saved or evaluated.

        Each rank normalises by its own batch and keeps its own running statistics. An average of running means is the
        running mean of all ranks' rows, where DDP's own sync of buffers would throw away what the other ranks have seen
        (and still leave rank 1 apart from rank 0 after the last step).
        """
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                self.ranks.sum(buffer).div_(self.ranks.world_size)
            else:
                self.ranks.broadcast(buffer)


def _parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return module
    return DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=False)


def _adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=learning_rate, betas=BETAS, eps=EPS, fused=True)
