"""LLAE: the closed form satisfies its own optimality equation; its weight is chosen on users left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape
from mail_core.models.llae import Llae, LlaeConfig
from mail_core.training.llae import FOLDS, Moments, chosen_weight, closed_form, solve

A, D = 4, 3
K = (A - 1) * D


def data(rows: int, noise: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(S, X): a relation of rank 1 and noise."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(rows, K))
    return s, s @ np.outer(rng.normal(size=K), rng.normal(size=D)) + noise * rng.normal(size=(rows, D))


def loss(w: np.ndarray, s: np.ndarray, x: np.ndarray, projector: np.ndarray, low_rank: float, encoding: float) -> float:
    """The loss with V held fixed; rows are samples here."""
    return float(np.sum((x - s @ w) ** 2) + encoding * np.sum((x @ w.T - s) ** 2)
                 + low_rank * np.trace(w.T @ projector @ w))


@pytest.mark.parametrize("low_rank, encoding", [(30.0, 1.0), (0.5, 4.0)])
def test_the_closed_form_is_a_stationary_point_of_the_loss(low_rank, encoding):
    s, x = data(200)
    w = closed_form(Moments.of(s, x), low_rank, encoding, rank=1)
    left, _, _ = np.linalg.svd(w)
    projector = left[:, 1:] @ left[:, 1:].T
    rng = np.random.default_rng(1)
    value = loss(w, s, x, projector, low_rank, encoding)
    for _ in range(20):
        step = 1e-3 * rng.normal(size=w.shape)
        up, down = (loss(w + sign * step, s, x, projector, low_rank, encoding) for sign in (1, -1))
        assert up > value and down > value  # a minimum
        assert abs(up - down) < 1e-3 * (up + down - 2 * value)  # and the slope there is zero


def test_the_low_rank_term_shrinks_what_lies_beyond_the_rank():
    moments = Moments.of(*data(100, noise=1.0))
    free, held = (np.linalg.svd(closed_form(moments, weight, 1e-6, 1))[1] for weight in (1e-9, 1e4))
    assert held[1] < 0.1 * free[1] and held[0] > 0.5 * free[0]


def test_moments_of_parts_add_up():
    s, x = data(50)
    whole, parts = Moments.of(s, x), Moments.of(s[:20], x[:20]) + Moments.of(s[20:], x[20:])
    w = np.random.default_rng(3).normal(size=(K, D))
    assert parts.error(w) == pytest.approx(whole.error(w)) == pytest.approx(np.sum((x - s @ w) ** 2))


def test_of_several_weights_the_one_that_predicts_left_out_users_best_is_chosen():
    few = [Moments.of(*data(8, noise=3.0, seed=seed)) for seed in range(FOLDS)]
    config = LlaeConfig(low_rank=(1e-6, 30.0, 1e6), rank_share=0.3, encoding=1e-6)
    errors = {}
    for weight in config.low_rank:
        errors[weight] = sum(few[i].error(closed_form(sum((few[j] for j in range(FOLDS) if j not in (i, 0)), few[0])
                                                      if i else sum(few[2:], few[1]), weight, 1e-6, 1))
                             for i in range(FOLDS))
    assert chosen_weight(few, config) == min(errors, key=errors.get)
    assert len(set(errors.values())) == 3


def test_virtual_behaviour_is_the_decoded_attributes_without_the_user_id():
    shape = InputShape(attributes=A, length=5, contexts=1, targets=1, dense=0, dim=D, user_id=1)
    llae = Llae(LlaeConfig(rank_share=0.3), shape)
    a_NAD = torch.randn(6, A, D)
    assert not llae.virtual_behavior(a_NAD).any()
    w_KD, weight = solve([Moments.of(*data(40, seed=seed)) for seed in range(FOLDS)], llae.config)
    llae.w_KD.copy_(torch.from_numpy(w_KD))
    assert weight == 30.0
    s = a_NAD[:, [0, 2, 3]].reshape(6, K)
    torch.testing.assert_close(llae.virtual_behavior(a_NAD), (s @ llae.w_KD)[:, None])
    other = a_NAD.clone()
    other[:, 1] += 1
    assert torch.equal(llae.virtual_behavior(other), llae.virtual_behavior(a_NAD))


def test_a_relation_of_low_rank_is_found():
    s, x = data(5_000, noise=0.01)
    w = closed_form(Moments.of(s, x), 30.0, 1e-6, 1)
    assert np.abs(s @ w - x).max() < 0.1


@pytest.mark.parametrize("wrong", [{"low_rank": ()}, {"low_rank": (0.0,)}, {"encoding": -1.0}, {"rank_share": 1.0}])
def test_a_configuration_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=f"cold_start.{next(iter(wrong))}"):
        LlaeConfig(**wrong)
