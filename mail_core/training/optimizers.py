"""Two ways to step the fused embedding table from row gradients; G_A and G_B for dense parameters are torch.optim.Adam.

Shape legend: V rows of the table, R rows touched in a step (unique), D embedding size.
"""

from __future__ import annotations

from typing import Mapping, Protocol

import torch
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.999), 1e-8
EMBEDDING_OPTIMIZERS = ("row_sparse", "dense")
_BLOCK_ROWS = 4096


class TableOptimizer(Protocol):
    """The embedding table's share of G_B."""

    def step(self, rows_R: Tensor, grad_RD: Tensor) -> None:
        """Update the table in place. `rows_R` (int64) are unique and their gradients final (reduced over ranks)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Step count and moments, plain tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`."""


class RowSparseAdam:
    """Adam on the touched rows only: cost follows the batch, not the vocabulary.

    A touched row moves as under torch.optim.Adam (eps where torch has it, bias correction by the global step). An
    untouched row stays as it is, moments included, where dense Adam would move it on by its old momentum.
    """

    def __init__(self, weight_VD: nn.Parameter, lr: float, betas: tuple[float, float] = BETAS, eps: float = EPS):
        self.weight, self.lr, self.betas, self.eps = weight_VD, lr, betas, eps
        self.steps = 0
        self.m_VD, self.v_VD = torch.zeros_like(weight_VD.detach()), torch.zeros_like(weight_VD.detach())

    @torch.no_grad()
    def step(self, rows_R: Tensor, grad_RD: Tensor) -> None:
        """See TableOptimizer."""
        self.steps += 1
        # A dozen passes over the touched rows: on a CPU block by block, so that a block stays in the cache.
        size = len(rows_R) if rows_R.is_cuda else _BLOCK_ROWS
        for rows, grad in zip(rows_R.split(max(size, 1)), grad_RD.split(max(size, 1))):
            self._step_block(rows, grad)

    def _step_block(self, rows_R: Tensor, grad_RD: Tensor) -> None:
        beta1, beta2 = self.betas
        m_RD = self.m_VD.index_select(0, rows_R).lerp_(grad_RD, 1 - beta1)
        v_RD = self.v_VD.index_select(0, rows_R).mul_(beta2).addcmul_(grad_RD, grad_RD, value=1 - beta2)
        self.m_VD.index_copy_(0, rows_R, m_RD)
        self.v_VD.index_copy_(0, rows_R, v_RD)
        denominator_RD = v_RD.sqrt_().div_((1 - beta2 ** self.steps) ** 0.5).add_(self.eps)
        w_RD = self.weight.index_select(0, rows_R)
        w_RD.addcdiv_(m_RD, denominator_RD, value=-self.lr / (1 - beta1 ** self.steps))
        self.weight.index_copy_(0, rows_R, w_RD)

    def state_dict(self) -> dict[str, Tensor]:
        """See TableOptimizer."""
        return {"steps": torch.tensor(self.steps), "m": self.m_VD, "v": self.v_VD}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See TableOptimizer."""
        self.steps = int(state["steps"])
        self.m_VD.copy_(state["m"])
        self.v_VD.copy_(state["v"])


class DenseTableAdam:
    """torch.optim.Adam on the whole table: every row moves at every step, at a cost that grows with the vocabulary.

    Rows that never have a gradient (padding) have no momentum either and stay at zero.
    """

    def __init__(self, weight_VD: nn.Parameter, lr: float, betas: tuple[float, float] = BETAS, eps: float = EPS):
        self.weight = weight_VD
        self.gradient_VD = torch.zeros_like(weight_VD.detach())
        self.adam = torch.optim.Adam([weight_VD], lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, rows_R: Tensor, grad_RD: Tensor) -> None:
        """See TableOptimizer."""
        self.gradient_VD.index_copy_(0, rows_R, grad_RD)
        self.weight.grad = self.gradient_VD
        self.adam.step()
        # The gradient must not stay on the parameter: nothing else of a step may find and add to it.
        self.weight.grad = None
        self.gradient_VD.index_fill_(0, rows_R, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """See TableOptimizer. Before the first step there is no moment, as with zeros."""
        state = self.adam.state[self.weight]
        if not state:
            return {"steps": torch.tensor(0), **{name: torch.zeros_like(self.gradient_VD) for name in ("m", "v")}}
        return {"steps": state["step"].to(torch.int64), "m": state["exp_avg"], "v": state["exp_avg_sq"]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See TableOptimizer."""
        step = state["steps"].to(device=self.weight.device, dtype=torch.float32)
        self.adam.state[self.weight] = {"step": step, "exp_avg": state["m"].to(self.weight.device, copy=True),
                                        "exp_avg_sq": state["v"].to(self.weight.device, copy=True)}


def table_optimizer(name: str, weight_VD: nn.Parameter, lr: float) -> TableOptimizer:
    """One of EMBEDDING_OPTIMIZERS on the fused table."""
    assert name in EMBEDDING_OPTIMIZERS, name
    return RowSparseAdam(weight_VD, lr) if name == "row_sparse" else DenseTableAdam(weight_VD, lr)
