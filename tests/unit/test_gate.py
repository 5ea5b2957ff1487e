"""The gate of virtual tokens against plain NumPy, over steps, splits into ranks and degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_core.models.gate import Gate

D = 3


def steps_of(count: int, slope: float, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(real, virtual, held out) of each step; real = slope * virtual + constant + noise."""
    draw = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(count):
        virtual_ND = torch.randn(40, D, generator=draw) + 2
        real_ND = slope * virtual_ND + 1 + 0.1 * torch.randn(40, D, generator=draw)
        steps.append((real_ND, virtual_ND, torch.rand(40, generator=draw) < 0.3))
    return steps


def trained(steps, closed: bool = False) -> Gate:
    gate = Gate(D, closed)
    for step in steps:
        gate.update(Gate.sums(*step))
    return gate


def test_statistics_slope_and_token_equal_the_formulas():
    steps = steps_of(5, 0.6)
    mu, m, weight, s_xx, s_xy = np.zeros(D), np.zeros(D), 0.0, 0.0, 0.0
    for real, virtual, held in ((r.double().numpy(), v.double().numpy(), h.numpy()) for r, v, h in steps):
        weight = 0.95 * weight + 0.05
        mu, m = 0.95 * mu + 0.05 * real.mean(0), 0.95 * m + 0.05 * virtual.mean(0)
        centred = virtual[held] - m / weight
        s_xx = 0.98 * s_xx + 0.02 * np.sum(centred ** 2)
        s_xy = 0.98 * s_xy + 0.02 * np.sum(centred * (real[held] - mu / weight))
    gate, virtual_N1D = trained(steps), torch.randn(4, 1, D)
    assert float(gate.g) == pytest.approx(s_xy / s_xx, rel=1e-4) and 0.4 < float(gate.g) < 0.8
    expected = mu / weight + s_xy / s_xx * (virtual_N1D.numpy() - m / weight)
    np.testing.assert_allclose(gate(virtual_N1D).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("slope, expected", [(3.0, 1.0), (-2.0, 0.0)])
def test_the_slope_stays_within_0_and_1(slope, expected):
    assert float(trained(steps_of(3, slope)).g) == expected


def test_a_closed_gate_gives_everybody_the_mean_of_real_behaviour():
    steps = steps_of(4, 1.0)
    gate = trained(steps, closed=True)
    tokens = gate(torch.randn(5, 1, D))
    assert float(gate.g) == 0 and torch.equal(tokens[0], tokens[4])
    torch.testing.assert_close(tokens[0], gate.mean_real_D[None] / gate.weight)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=40, max_size=40))
def test_sums_of_two_ranks_add_up_to_those_of_one(ranks):
    real_ND, virtual_ND, held_N = steps_of(1, 0.5)[0]
    first = torch.tensor(ranks, dtype=torch.bool)
    parts = [Gate.sums(real_ND[own], virtual_ND[own], held_N[own]) for own in (first, ~first)]
    torch.testing.assert_close(sum(parts), Gate.sums(real_ND, virtual_ND, held_N))


def test_without_rows_nothing_moves_and_without_held_out_rows_the_slope_stays():
    gate = trained(steps_of(2, 0.5))
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    empty = torch.zeros(0, D)
    gate.update(Gate.sums(empty, empty, torch.zeros(0, dtype=torch.bool)))
    assert all(torch.equal(before[name], value) for name, value in gate.state_dict().items())
    real_ND, virtual_ND, _ = steps_of(1, 0.5, seed=9)[0]
    gate.update(Gate.sums(real_ND, virtual_ND, torch.zeros(len(real_ND), dtype=torch.bool)))
    assert torch.equal(before["s_xx"], gate.s_xx) and not torch.equal(before["mean_real_D"], gate.mean_real_D)


def test_a_fresh_gate_gives_finite_tokens():
    gate = Gate(D)
    assert float(gate.g) == 0 and not gate(torch.randn(2, 1, D)).any()
