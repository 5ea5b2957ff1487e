"""A step of Algorithm 1: two real gloo ranks against one process, and the batches that have only one kind of row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stepping import BATCH, CASES, OPTIMIZERS, ZERO_SHOT, batch_for, batch_of, fresh_step, state_of, take

from mail_core.models.zero_shot import mean_behavior
from mail_core.training.ranks import Ranks

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    done = subprocess.run([sys.executable, str(WORKER), "steps", str(folder)], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("optimizer, tower", CASES)
def test_two_ranks_step_as_one_process_with_the_double_batch(two_ranks, optimizer, tower):
    step = fresh_step(optimizer, Ranks.alone(), tower=tower)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    for seed in (1, 2):
        step(*batch_of(seed))
    alone = state_of(step)
    assert farthest(alone, load_file(two_ranks / f"{optimizer}-{tower}-0.safetensors")) < 1e-5
    moved = [name for name, tensor in before.items() if not torch.equal(alone[name], tensor)]
    assert {name.split(".")[0] for name in moved} == {"tables", "zero_shot", "ranking"}
    # Twice or half of any of these moments would be farther off than 1e-5.
    assert {group: max(float(t.abs().max()) for name, t in alone.items() if name.startswith(f"moment.{group}")) > 1e-4
            for group in ("table", "g_a", "g_b")} == {"table": True, "g_a": True, "g_b": True}


@pytest.mark.parametrize("zero_shot", ZERO_SHOT)
def test_two_ranks_step_as_one_process_whatever_the_zero_shot_tower_learns(two_ranks, zero_shot):
    step = fresh_step("row_sparse", Ranks.alone(), zero_shot)
    for seed in (1, 2):
        step(*batch_for(zero_shot, seed))
    first, second = (load_file(two_ranks / f"{zero_shot}-{rank}.safetensors") for rank in (0, 1))
    assert farthest(first, second) == 0 and farthest(state_of(step), first) < 1e-5


@pytest.mark.parametrize("zero_shot, own_loss, by_ranking", [
    ("dual", True, False), ("single", True, False), ("joint", True, True), ("none", False, True)])
def test_what_teaches_the_zero_shot_tower(zero_shot, own_loss, by_ranking):
    """Its own loss where a batch has old rows, the ranking loss of new rows where they are joined."""
    moved = {}
    for old in (True, False):
        step = fresh_step("row_sparse", Ranks.alone(), zero_shot)
        before = {name: tensor.clone() for name, tensor in step.model.zero_shot.state_dict().items()}
        losses = step(*only(old))
        moved[old] = any(not torch.equal(before[name], t) for name, t in step.model.zero_shot.state_dict().items())
        assert bool(losses.sums[1] > 0) == (own_loss and old)
    assert moved == {True: own_loss, False: by_ranking}


def test_a_gated_tower_does_not_learn_from_held_out_rows_and_every_row_gets_the_token():
    step, seen = fresh_step("row_sparse", Ranks.alone(), "gated"), []
    step.model.zero_shot.attribute_attention.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    step.model.ranking.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoded, labels, weights, *_ = batch_of(7)
    old = (encoded["behavior_btag"] > 0).any(1)
    held_out = torch.arange(len(labels)) % 3 == 0
    losses = step(encoded, labels, weights, held_out)
    learned = int((old & ~held_out).sum())
    assert losses.counts[1:].tolist() == [learned, learned, 1] and seen[0] == learned and 0 < learned < int(old.sum())
    gate, inputs = step.model.zero_shot.gate, seen[-1]
    virtual_BD = step.model.zero_shot.virtual_behavior(inputs.a_BAD.detach())[:, 0]
    torch.testing.assert_close(inputs.v_BLD[:, -1], virtual_BD)
    assert inputs.mask_BL[:, -1].all() and inputs.is_virtual_B.tolist() == (~old).tolist()
    v_NLD, mask_NL = inputs.v_BLD[old, :-1].detach(), inputs.mask_BL[old, :-1]
    torch.testing.assert_close(gate.mean_real_D / gate.weight, mean_behavior(v_NLD, mask_NL).mean(0))
    assert float(gate.s_xx) > 0


@pytest.mark.parametrize("case", [*map("-".join, CASES), *(f"{optimizer}-base_dnn-filler" for optimizer in OPTIMIZERS)])
def test_ranks_hold_the_same_parameters_bit_for_bit(two_ranks, case):
    first, second = (load_file(two_ranks / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert farthest(first, second) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rank_with_a_filler_row_only_changes_nothing(two_ranks, optimizer):
    step = fresh_step(optimizer, Ranks.alone())
    step(*take(batch_of(3), slice(0, BATCH)))
    assert farthest(state_of(step), load_file(two_ranks / f"{optimizer}-base_dnn-filler-0.safetensors")) < 1e-5


def only(old: bool) -> tuple:
    batch = batch_of(4)
    is_old = (batch[0]["behavior_btag"] > 0).any(1)
    assert is_old.any() and not is_old.all()
    return take(batch, is_old if old else ~is_old)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["new rows", "old rows", "one old row", "one new row"])
def test_a_batch_of_one_kind_of_row_steps(optimizer, kind):
    step = fresh_step(optimizer, Ranks.alone())
    step.model.train()  # batch norm and MMD included, as in a run
    before = {name: parameter.detach().clone() for name, parameter in step.model.named_parameters()}
    batch = only(old="old" in kind)
    losses = step(*(take(batch, slice(0, 1)) if "one" in kind else batch))
    moved = {name.split(".")[0] for name, p in step.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"tables", "ranking"} | ({"zero_shot"} if "old" in kind else set())
    assert all(torch.isfinite(p).all() for p in step.model.parameters())
    assert torch.isfinite(losses.sums).all() and bool(losses.counts[1] > 0) == ("old" in kind)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_zero_shot_loss_moves_neither_tables_nor_ranking_tower(optimizer):
    with_tower, without = (fresh_step(optimizer, Ranks.alone(), zero_shot) for zero_shot in ("dual", None))
    batch = only(old=True)  # no new row: the towers meet in the loss of the tables only if a gradient leaks
    for step in (with_tower, without):
        step(*batch)
    for name, tensor in without.model.state_dict().items():
        assert torch.equal(tensor, with_tower.model.state_dict()[name]), name


def test_new_rows_get_virtual_behavior_of_the_tower_just_stepped():
    step = fresh_step("row_sparse", Ranks.alone())
    seen = []
    step.model.ranking.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    old_tower = {name: tensor.clone() for name, tensor in step.model.zero_shot.state_dict().items()}
    step(*batch_of(5))
    [inputs] = seen
    a_NAD = inputs.a_BAD[inputs.is_virtual_B].detach()
    assert len(a_NAD) and bool(inputs.mask_BL[inputs.is_virtual_B].all())
    used = inputs.v_BLD[inputs.is_virtual_B]
    assert torch.equal(used, step.model.zero_shot.virtual_behavior(a_NAD))
    step.model.zero_shot.load_state_dict(old_tower)
    assert not torch.allclose(used, step.model.zero_shot.virtual_behavior(a_NAD), atol=1e-5)


def test_losses_are_reported_as_sums_over_their_rows():
    step = fresh_step("row_sparse", Ranks.alone())
    encoded, _, weights, *_ = batch = batch_of(6)
    with torch.no_grad():
        inputs = step.model.tables.gather(encoded).inputs
        old = ~inputs.is_new_B
        zero_shot = step.model.zero_shot(inputs.a_BAD[old], inputs.v_BLD[old], inputs.mask_BL[old])
        alone = take(batch, old)
        logits = step.model.ranking(step.model.tables.gather(alone[0]).inputs).logits_B
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, alone[1], reduction="sum")
    losses = fresh_step("row_sparse", Ranks.alone())(*alone)
    rows = int(old.sum())
    assert losses.counts.tolist() == [rows, rows, rows, 1] and 0 < rows < len(weights)
    assert losses.sums.tolist() == pytest.approx([*map(float, (expected, zero_shot.attribute, zero_shot.behavior)), 0])
    mixed = step(*batch)
    assert mixed.counts.tolist() == [len(weights), rows, rows, 1]
