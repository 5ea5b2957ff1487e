"""The fused embedding table against plain lookups, and its gradient by row against dense autograd."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from encoded_batches import ACTIONS, CODES, LENGTH, encoded_batch, layout_of, short_schema, sizes_of
from torch import Tensor

from mail_core.errors import InputError
from mail_core.models.embeddings import EmbeddingLayout, EmbeddingTables, Gathered

DIM = 4
LENGTHS = [5, 0, 2, 3, 0, 1]


def tables_of(name: str) -> EmbeddingTables:
    torch.manual_seed(1)
    return EmbeddingTables(layout_of(short_schema(name)), DIM, std=0.5)


def autograd_lookup(tables: EmbeddingTables, encoded: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The same inputs feature by feature, through F.embedding and autograd."""
    layout = tables.layout

    def vector(field) -> Tensor:
        if field.kind == "dense":
            return encoded[field.name][:, None] * weight[field.offset + 1]
        found = F.embedding(encoded[field.name].long() + field.offset, weight)
        if field.kind == "categorical":
            return found
        real = (encoded[field.name] != 0).unsqueeze(2)
        return (found * real).sum(1) / real.sum(1).clamp(min=1)

    def group(fields) -> Tensor:
        return torch.stack([vector(f) for f in fields], 1)

    action = F.embedding(encoded[layout.action.name].long() + layout.action.offset, weight)
    item = sum(F.embedding(encoded[f.name].long() + f.offset, weight) for f in layout.behavior_items)
    return {"a_BAD": group(layout.user), "c_BCD": group(layout.context), "t_BTD": group(layout.item),
            "v_BLD": item * action}


def loss_of(parts: dict[str, Tensor]) -> Tensor:
    """Not linear in any input, and different for every element."""
    return sum((parts[n].sin() * torch.arange(parts[n].numel()).view_as(parts[n]).cos()).sum()
               for n in ("a_BAD", "v_BLD", "c_BCD", "t_BTD"))


def dense_gradient(tables: EmbeddingTables, gathered: Gathered) -> Tensor:
    rows_R, grad_RD = gathered.row_gradients()
    return torch.zeros_like(tables.weight).index_copy(0, rows_R, grad_RD)


def test_layout_shares_item_vocabularies_with_behaviours_and_is_frozen():
    layout = layout_of(short_schema("alimama"))
    offsets = {f.name: f.offset for f in layout.item}
    assert {f.name: f.offset for f in layout.behavior_items} == {"behavior_cate": offsets["cate_id"],
                                                                 "behavior_brand": offsets["brand"]}
    fields = [*layout.user, *layout.context, *layout.item, layout.action]
    spans = [row for f in fields for row in range(f.offset, f.offset + f.size)]
    assert spans == list(range(layout.rows)) and layout.rows == (9 + 4 + 5) * CODES + ACTIONS
    assert layout.dense == ("price",) and layout.padding_rows == tuple(f.offset for f in fields)
    shape = layout.shape(DIM)
    assert (shape.attributes, shape.length, shape.contexts, shape.targets, shape.dense) == (9, LENGTH, 4, 5, 1)
    with pytest.raises(FrozenInstanceError):
        layout.rows = 3  # type: ignore[misc]


def test_layout_gives_a_dense_user_attribute_one_vector_and_names_a_missing_size():
    schema = short_schema("movielens")
    age = next(f for f in layout_of(schema).user if f.name == "age")
    assert (age.kind, age.size) == ("dense", 2)
    sizes = sizes_of(schema)
    del sizes["genres"]
    with pytest.raises(InputError, match="genres"):
        EmbeddingLayout.from_schema(schema, sizes)
    with pytest.raises(InputError, match="'gender' has 2 codes"):
        EmbeddingLayout.from_schema(schema, sizes_of(schema) | {"gender": 2})


@pytest.mark.parametrize("name", ["movielens", "alimama"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gathered_inputs_equal_plain_lookups(name, dtype):
    schema, tables = short_schema(name), tables_of(name)
    encoded = encoded_batch(schema, LENGTHS)
    encoded = {n: v if v.is_floating_point() else v.to(dtype) for n, v in encoded.items()}
    inputs = tables.gather(encoded).inputs
    for part, expected in autograd_lookup(tables, encoded, tables.weight.detach()).items():
        torch.testing.assert_close(getattr(inputs, part), expected, rtol=0, atol=1e-6)
    assert inputs.mask_BL.sum(1).tolist() == LENGTHS
    assert inputs.is_new_B.tolist() == [n == 0 for n in LENGTHS] and not inputs.is_virtual_B.any()
    dense = torch.stack([encoded["price"]], 1) if name == "alimama" else torch.empty(len(LENGTHS), 0)
    assert torch.equal(inputs.dense_BF, dense)


@pytest.mark.parametrize("name", ["movielens", "alimama"])
def test_row_gradients_equal_dense_autograd(name):
    schema, tables = short_schema(name), tables_of(name)
    encoded = encoded_batch(schema, LENGTHS)
    gathered = tables.gather(encoded)
    loss_of({n: getattr(gathered.inputs, n) for n in ("a_BAD", "v_BLD", "c_BCD", "t_BTD")}).backward()
    weight = tables.weight.detach().clone().requires_grad_()
    loss_of(autograd_lookup(tables, encoded, weight)).backward()
    expected = weight.grad.clone()
    expected[list(tables.layout.padding_rows)] = 0  # plain autograd would move them
    torch.testing.assert_close(dense_gradient(tables, gathered), expected, rtol=0, atol=1e-6)
    assert tables.weight.grad is None


def test_row_gradients_name_the_gathered_rows_once_and_no_padding():
    schema, tables = short_schema("movielens"), tables_of("movielens")
    encoded, layout = encoded_batch(schema, LENGTHS), tables.layout
    gathered = tables.gather(encoded)
    loss_of({n: getattr(gathered.inputs, n) for n in ("a_BAD", "v_BLD", "c_BCD", "t_BTD")}).backward()
    rows_R, grad_RD = gathered.row_gradients()
    fields = (*layout.user, *layout.context, *layout.item, *layout.behavior_items, layout.action)
    seen = {int(code) + f.offset for f in fields if f.kind != "dense"
            for code in encoded[f.name].flatten() if code != 0}
    seen.add(next(f.offset for f in layout.user if f.kind == "dense") + 1)
    assert rows_R.tolist() == sorted(seen) and rows_R.dtype == torch.int64 and grad_RD.shape == (len(seen), DIM)


def test_a_missing_behaviour_field_has_a_trained_row_and_an_absent_one_counts_nothing():
    schema, tables = short_schema("alimama"), tables_of("alimama")
    encoded, layout = encoded_batch(schema, [2]), tables.layout
    cate, brand = layout.behavior_items
    encoded[brand.name][0, 0], encoded[brand.name][0, 1] = 2, 0
    gathered = tables.gather(encoded)
    weight, v_LD = tables.weight.detach(), gathered.inputs.v_BLD[0]
    categories = weight[encoded[cate.name][0].long() + cate.offset]
    actions = weight[encoded[layout.action.name][0].long() + layout.action.offset]
    torch.testing.assert_close(v_LD[0], (categories[0] + weight[brand.offset + 2]) * actions[0])
    torch.testing.assert_close(v_LD[1], categories[1] * actions[1])
    assert not v_LD[2:].any()
    gathered.inputs.v_BLD.sum().backward()
    rows_R = gathered.row_gradients()[0].tolist()
    assert brand.offset + 2 in rows_R and brand.offset not in rows_R


def test_padding_rows_start_at_zero_and_a_multi_valued_feature_without_values_is_zero():
    tables = tables_of("movielens")
    assert not tables.weight[list(tables.layout.padding_rows)].any()
    encoded = encoded_batch(short_schema("movielens"), [1])
    encoded["genres"].zero_()
    assert not tables.gather(encoded).inputs.t_BTD[0, 2].any()


@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 0]])
def test_empty_one_row_and_behaviourless_batches_gather_and_give_gradients(lengths):
    schema, tables = short_schema("movielens"), tables_of("movielens")
    gathered = tables.gather(encoded_batch(schema, lengths))
    loss_of({n: getattr(gathered.inputs, n) for n in ("a_BAD", "v_BLD", "c_BCD", "t_BTD")}).backward()
    rows_R, grad_RD = gathered.row_gradients()
    assert gathered.inputs.v_BLD.shape == (len(lengths), LENGTH, DIM) and grad_RD.shape == (len(rows_R), DIM)
    assert (len(rows_R) == 0) == (not lengths)


def test_a_row_of_padding_alone_is_zero_and_moves_only_the_dense_attribute():
    schema, tables = short_schema("movielens"), tables_of("movielens")
    filler = {n: torch.zeros_like(v) for n, v in encoded_batch(schema, [4]).items()}
    gathered = tables.gather(filler)
    assert not any(v.any() for v in vars(gathered.inputs).values() if isinstance(v, torch.Tensor))
    (gathered.inputs.a_BAD.sum() + gathered.inputs.v_BLD.sum()).backward()
    rows_R, grad_RD = gathered.row_gradients()
    age = next(f for f in tables.layout.user if f.kind == "dense")
    assert rows_R.tolist() == [age.offset + 1] and not grad_RD.any()


def test_unused_inputs_give_zero_gradients():
    tables = tables_of("alimama")
    gathered = tables.gather(encoded_batch(short_schema("alimama"), [2, 1]))
    assert not gathered.row_gradients()[1].any()


def test_inference_keeps_no_leaves():
    encoded = encoded_batch(short_schema("alimama"), LENGTHS)
    tables = tables_of("alimama")
    with torch.no_grad():
        without = tables.gather(encoded)
    frozen = tables.requires_grad_(False).gather(encoded)
    for gathered in (without, frozen):
        assert not any(v.requires_grad for v in vars(gathered.inputs).values() if isinstance(v, torch.Tensor))
        with pytest.raises(AssertionError):
            gathered.row_gradients()


@pytest.mark.parametrize("column, code", [("gender", CODES), ("behavior_item_id", CODES), ("behavior_rating", ACTIONS),
                                          ("genres", -1)])
def test_a_code_outside_its_vocabulary_is_named(column, code):
    encoded = encoded_batch(short_schema("movielens"), [1, 1])
    encoded[column].view(2, -1)[1, 0] = code
    with pytest.raises(InputError, match=rf"{column}: code {code} at row 1"):
        tables_of("movielens").gather(encoded)


def test_a_missing_column_and_a_wrong_length_are_named():
    schema, tables = short_schema("movielens"), tables_of("movielens")
    encoded = encoded_batch(schema, [1])
    with pytest.raises(InputError, match="lack column 'gender'"):
        tables.gather({n: v for n, v in encoded.items() if n != "gender"})
    with pytest.raises(InputError, match=r"shape \(1, 4\), expected \(rows, 5\)"):
        tables.gather(encoded | {schema.action_column: encoded[schema.action_column][:, :4]})


def test_tables_build_on_meta_and_then_hold_small_values():
    with torch.device("meta"):
        tables = EmbeddingTables(layout_of(short_schema("alimama")), DIM)
    assert tables.weight.is_meta
    tables.to_empty(device="cpu")
    tables.weight.data.fill_(float("nan"))
    torch.manual_seed(0)
    tables.reset_parameters()
    assert 0.045 < tables.weight.std() < 0.055 and not tables.weight[list(tables.layout.padding_rows)].any()
