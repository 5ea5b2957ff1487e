"""DMR's two networks and its match loss against plain NumPy, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_batches import encoded_batch, layout_of, short_schema
from tower_inputs import LENGTH, A, C, D, T, array, blocks, hidden_layers, inputs_of, linear
from tower_inputs import shape as plain_shape
from tower_inputs import side_by_side, stir

from mail_core.errors import InputError
from mail_core.models.embeddings import EmbeddingTables
from mail_core.models.inputs import TowerInputs
from mail_core.models.ranking.dmr import MATCH, Dmr, DmrConfig, PositionAttention, attend

LENGTHS = [3, 0, 5, 1, 2]
MATCHED = (1, 3)
CODES = torch.tensor([[4, 7], [0, 0], [5, 7], [6, 6], [4, 7]], dtype=torch.int32)


def shape_of():
    return replace(plain_shape(), matched=MATCHED)


def tower_of(**changes) -> Dmr:
    torch.manual_seed(8)
    tower = Dmr(DmrConfig(attention=6, hidden=(11, 8, 7), dropout=0.0, **changes), shape_of())
    stir(tower)
    return tower.eval()


def with_newest(inputs: TowerInputs) -> TowerInputs:
    torch.manual_seed(9)
    return replace(inputs, newest_BD=torch.randn(len(LENGTHS), D, requires_grad=True), newest_BJ=CODES)


def raw_scores(block: PositionAttention, v: np.ndarray, first: int, target: np.ndarray | None = None) -> np.ndarray:
    """Of one row's valid positions, of which the first has the number `first`."""
    scores = []
    for position, v_D in enumerate(v, start=first):
        h = linear(block.of_position, array(block.position_LD)[position]) + linear(block.of_behavior, v_D)
        scores.append(linear(block.score, np.tanh(h if target is None else h + linear(block.of_target, target)))[0])
    return np.array(scores)


def softmax_sum(scores: np.ndarray, v: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    if not len(v):
        return np.zeros(D)
    e = np.exp(scores) * (1 if weights is None else weights)
    return (e / e.sum()) @ v


def user_of(tower: Dmr, scores: np.ndarray, v: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    x = linear(tower.user, softmax_sum(scores, v, weights))
    return np.where(x > 0, x, 0.2 * x)


def test_logits_equal_the_networks_row_by_row():
    tower, inputs = tower_of(), inputs_of(LENGTHS)
    interests, extras = [], []
    for i, n in enumerate(LENGTHS):
        v, target = array(inputs.v_BLD[i, :n]), array(inputs.t_BTD[i, list(MATCHED)]).sum(0)
        scores = raw_scores(tower.item_to_item, v, 0, target)
        interests.append(softmax_sum(scores, v))
        user = user_of(tower, raw_scores(tower.user_to_item, v, 0), v)
        extras.append([*user, scores.sum(), user @ linear(tower.item, target)])
    x = np.concatenate([side_by_side(np.stack(interests), inputs), np.array(extras)], 1)
    expected = linear(tower.output, hidden_layers(x, blocks(tower)))[:, 0]
    output = tower(inputs)
    np.testing.assert_allclose(array(output.logits_B), expected, atol=1e-5)
    assert not output.auxiliary


def test_the_match_loss_equals_softmax_over_the_other_rows_items_with_their_shares():
    tower, inputs = tower_of(match_weight=0.5), with_newest(inputs_of(LENGTHS))
    rows = [i for i, n in enumerate(LENGTHS) if n >= 2]  # 0, 2 and 4, of which 0 and 4 have the same item
    users, items = [], []
    for i in rows:
        v = array(inputs.v_BLD[i, 1:LENGTHS[i]])
        users.append(user_of(tower, raw_scores(tower.user_to_item, v, 1), v))
        items.append(linear(tower.item, array(inputs.newest_BD[i])))
    share, loss = [2 / 3, 1 / 3, 2 / 3], 0.0
    for i in range(3):
        rivals = [j for j in range(3) if j == i or {i, j} != {0, 2}]
        logits = [users[i] @ items[j] - np.log(share[j]) for j in rivals]
        loss -= logits[rivals.index(i)] - np.log(np.exp(logits).sum())
    assert float(tower(inputs).auxiliary[MATCH].detach()) == pytest.approx(0.5 * loss, rel=1e-5)


def test_virtual_rows_and_a_virtual_token_have_no_part_in_the_match_loss():
    tower, inputs = tower_of(), with_newest(inputs_of(LENGTHS))
    expected = tower(inputs).auxiliary[MATCH]
    virtual_B = torch.tensor([n == 0 for n in LENGTHS])
    completed = replace(inputs, v_BLD=torch.where(virtual_B[:, None, None], 1.0, inputs.v_BLD),
                        mask_BL=inputs.mask_BL | virtual_B[:, None], is_virtual_B=virtual_B)
    torch.testing.assert_close(tower(completed).auxiliary[MATCH], expected)
    longer = Dmr(tower.config, replace(shape_of(), length=LENGTH + 1)).eval()
    state = {n: t for n, t in tower.state_dict().items() if "position_LD" not in n}
    longer.load_state_dict(state, strict=False)
    for name in ("item_to_item", "user_to_item"):
        getattr(longer, name).position_LD.data[:LENGTH] = getattr(tower, name).position_LD.data
    torch.testing.assert_close(longer(inputs.with_token(torch.ones(5, 1, D), 4.0)).auxiliary[MATCH], expected)


def test_a_token_counts_as_several_equal_positions():
    block = tower_of().user_to_item
    v, mask_BL = torch.randn(1, LENGTH, D), torch.ones(1, LENGTH, dtype=torch.bool)
    scores = block(v, mask_BL)

    found = attend(scores, torch.tensor([1.0, 1, 1, 1, 4]), v, mask_BL)
    expected = softmax_sum(array(scores[0]), array(v[0]), np.array([1, 1, 1, 1, 4]))
    np.testing.assert_allclose(array(found[0]), expected, atol=1e-6)


def test_one_row_with_two_behaviours_has_nothing_to_be_told_from():
    tower = tower_of()
    one = with_newest(inputs_of([3, 0, 1, 1, 0]))
    assert not tower(one).auxiliary


def test_the_match_losss_gradient_reaches_the_newest_items_rows_of_the_table():
    """By finite differences through the whole gather."""
    schema = short_schema("alimama")
    layout, batch = layout_of(schema), encoded_batch(schema, LENGTHS)
    tables = EmbeddingTables(layout, D).double()
    torch.nn.init.normal_(tables.weight)
    tables.weight.data[list(layout.padding_rows)] = 0
    torch.manual_seed(8)
    tower = Dmr(DmrConfig(attention=6, hidden=(11, 8, 7), dropout=0.0), layout.shape(D)).double().eval()
    gathered = tables.gather(batch)
    tower(gathered.inputs).auxiliary[MATCH].backward()
    rows_R, grad_RD = gathered.row_gradients()
    direction = torch.randn(grad_RD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = []
    for sign in (1, -1):
        moved = EmbeddingTables(layout, D).double()
        moved.load_state_dict(tables.state_dict())
        moved.weight.data[rows_R] += sign * 1e-6 * direction
        values.append(float(tower(moved.gather(batch).inputs).auxiliary[MATCH].detach()))
    assert float((grad_RD * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_a_schema_whose_behaviour_shares_nothing_with_the_target_is_refused():
    with pytest.raises(InputError, match="tower dmr: no target feature"):
        Dmr(DmrConfig(), plain_shape())


def test_sizes_are_the_authors_by_default():
    tower = Dmr(DmrConfig(), shape_of())
    width = (1 + A + C + T) * D + 2 + D + 2
    assert [layer.dense.weight.shape for layer in tower.hidden.layers] == [(512, width), (256, 512), (128, 256)]
