"""Row-sparse and dense Adam on the fused table against torch.optim.Adam, and the reduction of row gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mail_core.training.exchange import exchange_row_gradients, reduce_by_row
from mail_core.training.optimizers import EMBEDDING_OPTIMIZERS, DenseTableAdam, RowSparseAdam, table_optimizer
from mail_core.training.ranks import Ranks

ROWS, DIM, LR = 50, 4, 1e-2


def table(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(seed)))


def dense_gradient(rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    return torch.zeros(ROWS, DIM).index_copy_(0, rows, gradients)


def test_one_lazy_step_moves_touched_rows_as_torch_adam_and_leaves_the_others():
    ours, reference, before = table(), table(), table()
    rows = torch.tensor([3, 7, 8, 41])
    # Small gradients make eps count: SparseAdam's other place for it would show.
    gradients = torch.randn(4, DIM) * torch.tensor([[1.0], [1e-3], [1e-7], [1e-8]])
    RowSparseAdam(ours, LR).step(rows, gradients)
    reference.grad = dense_gradient(rows, gradients)
    torch.optim.Adam([reference], lr=LR).step()
    assert (ours - reference).abs().max() < 1e-6
    untouched = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, rows, False)
    assert torch.equal(ours[untouched], before[untouched])
    assert (ours[rows] - before[rows]).abs().min() > 1e-4


def test_rows_touched_at_every_step_follow_torch_adam_over_many_steps():
    ours, reference = table(), table()
    lazy, adam = RowSparseAdam(ours, LR), torch.optim.Adam([reference], lr=LR)
    rows = torch.arange(ROWS)
    for _ in range(20):
        gradients = torch.randn(ROWS, DIM)
        lazy.step(rows, gradients)
        reference.grad = gradients
        adam.step()
    assert (ours - reference).abs().max() < 1e-5


def test_blocks_of_rows_step_as_all_of_them_at_once():
    rows, draw = torch.arange(0, 20_000, 2), torch.Generator().manual_seed(1)
    gradients = torch.randn(len(rows), DIM, generator=draw)
    ours, reference = (nn.Parameter(torch.ones(20_000, DIM)) for _ in range(2))
    lazy, adam = RowSparseAdam(ours, LR), torch.optim.Adam([reference], lr=LR)
    for _ in range(2):
        lazy.step(rows, gradients)
        reference.grad = torch.zeros_like(reference).index_copy_(0, rows, gradients)
        adam.step()
    assert len(rows) > 2 * 4096 and (ours - reference).abs().max() < 1e-6 and (ours[rows] != 1).all()


def test_dense_table_adam_is_torch_adam_on_a_scattered_gradient_and_carries_momentum():
    ours, reference = table(), table()
    dense, adam = DenseTableAdam(ours, LR), torch.optim.Adam([reference], lr=LR)
    for rows in (torch.tensor([1, 2, 3]), torch.tensor([3, 10])):
        gradients = torch.randn(len(rows), DIM)
        dense.step(rows, gradients)
        reference.grad = dense_gradient(rows, gradients)
        adam.step()
    assert (ours - reference).abs().max() < 1e-6
    assert ours.grad is None
    assert torch.equal(ours[20:], table()[20:])


@pytest.mark.parametrize("name", EMBEDDING_OPTIMIZERS)
def test_a_run_goes_on_from_a_state_dict_as_if_never_stopped(name):
    straight, resumed = table(), table()
    steps = [(torch.tensor([1, 2]), torch.randn(2, DIM)), (torch.tensor([2, 5]), torch.randn(2, DIM)),
             (torch.tensor([1]), torch.randn(1, DIM))]
    one = table_optimizer(name, straight, LR)
    for rows, gradients in steps:
        one.step(rows, gradients)
    first = table_optimizer(name, resumed, LR)
    first.load_state_dict(first.state_dict())
    first.step(*steps[0])
    second = table_optimizer(name, resumed, LR)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for rows, gradients in steps[1:]:
        second.step(rows, gradients)
    assert torch.equal(straight, resumed)


@pytest.mark.parametrize("name", EMBEDDING_OPTIMIZERS)
def test_a_step_without_any_row_is_allowed(name):
    weight = table()
    table_optimizer(name, weight, LR).step(torch.empty(0, dtype=torch.int64), torch.empty(0, DIM))
    assert torch.equal(weight, table())


@given(st.lists(st.integers(0, 6), max_size=30))
def test_reduction_by_row_equals_index_add(ids):
    ids_N, grad_ND = torch.tensor(ids, dtype=torch.int32), torch.randn(len(ids), DIM)
    rows, sums = reduce_by_row(ids_N, grad_ND)
    expected = torch.zeros(7, DIM).index_add_(0, ids_N.long(), grad_ND)
    assert rows.tolist() == sorted(set(ids))
    assert torch.allclose(torch.zeros(7, DIM).index_copy_(0, rows.long(), sums), expected, atol=1e-5)


def test_exchange_is_the_identity_for_one_rank():
    rows, gradients = torch.tensor([2, 9]), torch.randn(2, DIM)
    got_rows, got = exchange_row_gradients(rows, gradients, Ranks.alone())
    assert torch.equal(got_rows, rows) and torch.equal(got, gradients)
