"""One fused embedding table, looked up outside autograd, and its gradient by row.

The cost of a step follows the batch, not the vocabulary: `gather` copies the rows that the batch needs into two leaf
tensors, the towers' backward fills the leaves' gradients, `Gathered.row_gradients` sums them by row. The table's own
`.grad` stays None.

B rows of the batch, G embedded features of user, context and item together, S their slots (a multi-valued feature has
several), A, C, T, L, D as in inputs.py, F dense features, P real (not padded) behaviours of the batch, J item columns
of a behaviour, K codes of the action vocabulary, I gathered row IDs, R distinct ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.inputs import InputShape, TowerInputs, no_virtual
from mail_core.schema.definition import FIRST_CODE, PADDING, Feature, Schema

_DENSE_CODE = 1  # a dense attribute is a vocabulary of this one code beside padding; its value weights the row


@dataclass(frozen=True, kw_only=True)
class EmbeddedField:
    """A column of encoded rows and its part of the fused table: code i is row offset + i."""

    name: str
    kind: str
    """categorical, multi, dense or behavior."""
    offset: int
    size: int
    """Codes of the vocabulary, padding included."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingLayout:
    """Where each vocabulary of a schema lies in the fused table."""

    user: tuple[EmbeddedField, ...]
    context: tuple[EmbeddedField, ...]
    item: tuple[EmbeddedField, ...]
    dense: tuple[str, ...]
    """Dense context features, then dense item features: they have no embedding."""
    behavior_items: tuple[EmbeddedField, ...]
    """Item columns of a behaviour, on the rows of the item features whose vocabulary they share."""
    action: EmbeddedField
    """Action column of a behaviour; its rows are the table's last."""
    length: int
    """L."""
    padding_rows: tuple[int, ...]
    """Row of code 0 of each vocabulary, always zero."""
    rows: int
    """Rows of the fused table."""
    user_id: int | None
    """Which of `user` is the user's own ID, where one is."""
    matched: tuple[int, ...]
    """Which of `item` share their vocabulary with an item column of a behaviour."""

    @property
    def vocabularies(self) -> tuple[EmbeddedField, ...]:
        """Every field that has rows of its own, in the table's order of groups."""
        return (*self.user, *self.context, *self.item, self.action)

    @classmethod
    def from_schema(cls, schema: Schema, vocabulary_sizes: Mapping[str, int]) -> EmbeddingLayout:
        """Lay the vocabularies out in schema order, the actions last.

        Args:
            vocabulary_sizes: number of codes (padding, unknown and missing included) of each categorical or multi
                feature and of the action column.

        Raises:
            InputError: a size is absent or too small, or the table would have 2**31 rows or more.
        """
        offsets: dict[str, tuple[int, int]] = {}
        rows = 0

        def place(name: str, size: int) -> None:
            nonlocal rows
            offsets[name] = (rows, size)
            rows += size

        embedded = [f for f in schema.features if f.kind != "dense" or f.group == "user"]
        for feature in embedded:
            place(feature.name, 2 if feature.kind == "dense" else _size(vocabulary_sizes, feature.name))
        place(schema.action_column, _size(vocabulary_sizes, schema.action_column))
        if rows >= 2**31:
            raise InputError(f"the vocabularies of {schema.name} have {rows} codes together, expected fewer than 2**31")

        def fields(group: str) -> tuple[EmbeddedField, ...]:
            return tuple(located(f.name, f.kind, f.name) for f in embedded if f.group == group)

        def located(name: str, kind: str, vocabulary: str) -> EmbeddedField:
            offset, size = offsets[vocabulary]
            return EmbeddedField(name=name, kind=kind, offset=offset, size=size)

        attributes = [f.name for f in embedded if f.group == "user"]
        user_id = attributes.index(schema.user_id_feature) if schema.user_id_feature else None
        shared = set(schema.behavior_item_columns.values())
        matched = tuple(i for i, f in enumerate(f for f in embedded if f.group == "item") if f.name in shared)
        items = tuple(located(c, "behavior", v) for c, v in schema.behavior_item_columns.items())
        return cls(user=fields("user"), context=fields("context"), item=fields("item"),
                   dense=tuple(f.name for f in _dense(schema)), behavior_items=items,
                   action=located(schema.action_column, "behavior", schema.action_column),
                   length=schema.sequence_length, padding_rows=tuple(o for o, _ in offsets.values()), rows=rows,
                   user_id=user_id, matched=matched)

    def shape(self, dim: int) -> InputShape:
        """Sizes of the tower inputs that tables of embedding size `dim` make."""
        return InputShape(attributes=len(self.user), length=self.length, contexts=len(self.context),
                          targets=len(self.item), dense=len(self.dense), dim=dim, user_id=self.user_id,
                          matched=self.matched)


def _dense(schema: Schema) -> list[Feature]:
    return [f for group in ("context", "item") for f in schema.group(group) if f.kind == "dense"]


def _size(vocabulary_sizes: Mapping[str, int], name: str) -> int:
    if name not in vocabulary_sizes:
        raise InputError(f"vocabulary sizes: {name!r} is absent; present: {', '.join(vocabulary_sizes)}")
    if vocabulary_sizes[name] < FIRST_CODE:
        raise InputError(f"vocabulary sizes: {name!r} has {vocabulary_sizes[name]} codes, expected {FIRST_CODE} or up")
    return vocabulary_sizes[name]


@dataclass(frozen=True)
class _Fields:
    """Looked-up features of a batch, and which row with which weight went into which of the B * G vectors."""

    x_BGD: Tensor
    rows_BS: Tensor
    weights_BS: Tensor
    real_BS: Tensor
    starts: tuple[int, ...]
    """First slot of each feature."""

    def contributions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, vector and weight of every slot that is not padding, each (I,)."""
        rows, slots = self.rows_BS.shape
        widths = torch.tensor([*self.starts, slots]).diff()
        feature_S = torch.arange(len(self.starts)).repeat_interleave(widths)
        vector_BS = (torch.arange(rows)[:, None] * len(self.starts) + feature_S).to(self.rows_BS)  # int32, device
        return self.rows_BS[self.real_BS], vector_BS[self.real_BS], self.weights_BS[self.real_BS]


@dataclass(frozen=True)
class _Behaviors:
    """Looked-up behaviours of a batch; only the P real ones are gathered."""

    v_BLD: Tensor
    mask_BL: Tensor
    position_P: Tensor
    """Of a real behaviour in (B * L)."""
    rows_PJ: Tensor
    real_PJ: Tensor
    item_PD: Tensor
    action_P: Tensor
    """Action code."""
    action_KD: Tensor
    newest_BD: Tensor
    """Item part of each row's newest behaviour, zero without one, and its codes."""
    newest_BJ: Tensor


@dataclass(frozen=True)
class Gathered:
    """The embedded batch. `inputs` is on the leaves; after backward through it `row_gradients` sums their gradients."""

    inputs: TowerInputs
    _fields: _Fields | None = None
    _behaviors: _Behaviors | None = None
    _action_offset: int = 0

    def row_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradient of the fused table by row, for the rows that the batch gathered (padding rows excluded).

        Returns:
            rows_R: int64, sorted, distinct.
            grad_RD: gradient of each of them.
        """
        assert self._fields is not None and self._behaviors is not None, "gathered without gradients"
        x_BGD, found = self._fields.x_BGD, self._behaviors
        dim = x_BGD.shape[2]
        x_grad_BGD = _grad(x_BGD)
        v_grad_PD = _grad(found.v_BLD).reshape(-1, dim).index_select(0, found.position_P)
        item_grad_PD = v_grad_PD * found.action_KD.index_select(0, found.action_P)
        if found.newest_BD.grad is not None:
            old_N, newest_N = _first_positions(found.mask_BL)
            item_grad_PD.index_add_(0, newest_N, found.newest_BD.grad.index_select(0, old_N))
        leaves = torch.cat([x_grad_BGD.reshape(-1, dim), item_grad_PD])

        rows, leaf, weight = self._fields.contributions()
        first = x_BGD.shape[0] * x_BGD.shape[1]
        # The item columns of a behaviour are summed, so they share its gradient.
        leaf_PJ = torch.arange(first, first + len(item_grad_PD), dtype=torch.int32, device=leaf.device)[:, None]
        leaf_J = leaf_PJ.expand(found.rows_PJ.shape)[found.real_PJ]
        rows = torch.cat([rows, found.rows_PJ[found.real_PJ]])
        leaf = torch.cat([leaf, leaf_J])
        weight = torch.cat([weight, torch.ones_like(leaf_J, dtype=weight.dtype)])

        sorted_I, perm_I = rows.sort()
        rows_R, counts_R = torch.unique_consecutive(sorted_I, return_counts=True)
        offsets = F.pad(counts_R.cumsum(0), (1, 0)).to(torch.int32)
        grad_RD = F.embedding_bag(leaf[perm_I], leaves, offsets, mode="sum", include_last_offset=True,
                                  per_sample_weights=weight[perm_I])

        # A handful of codes and long runs of each: a product with their indicator, not a sort.
        codes = F.one_hot(found.action_P, len(found.action_KD)).to(leaves.dtype)
        present = (codes.sum(0) > 0).nonzero().squeeze(1)
        action_grad_KD = codes.T @ (v_grad_PD * found.item_PD)
        return (torch.cat([rows_R.to(torch.int64), present + self._action_offset]),
                torch.cat([grad_RD, action_grad_KD.index_select(0, present)]))


def _first_positions(mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The N rows with a valid position, and where the first of each lies among all P valid positions."""
    count_B = mask_BL.sum(1)
    old_N = count_B.nonzero().squeeze(1)
    return old_N, (count_B.cumsum(0) - count_B).index_select(0, old_N)


def _grad(leaf: Tensor) -> Tensor:
    """Gradient of a leaf; zero where no loss reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


class EmbeddingTables(nn.Module):
    """All embeddings of a model in one table (rows, D), N(0, std); padding codes' rows are zero and get no gradient.

    `encoded` below: the arrays of `mail_core.encoding.encode` as tensors on the table's device. Categorical int (B,),
    multi-valued int (B, values), dense float (B,), behaviour columns int (B, L); int32 or int64.
    """

    def __init__(self, layout: EmbeddingLayout, dim: int, std: float = 0.05):
        super().__init__()
        self.layout, self.dim, self.std = layout, dim, std
        self.weight = nn.Parameter(torch.empty(layout.rows, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight.is_meta:
            return  # nothing is there to be filled, for which torch would load 140 MiB of code
        nn.init.normal_(self.weight, std=self.std)
        with torch.no_grad():
            self.weight.index_fill_(0, torch.tensor(self.layout.padding_rows, device=self.weight.device), 0.0)

    def gather(self, encoded: Mapping[str, Tensor]) -> Gathered:
        """Embed a batch. With gradients enabled the leaves are kept for `Gathered.row_gradients`.

        Raises:
            InputError: a column is absent, or a code lies outside its vocabulary.
        """
        layout = self.layout
        fields = self._fields(encoded, layout.user + layout.context + layout.item)
        behaviors = self._behaviors(encoded)
        training = torch.is_grad_enabled() and self.weight.requires_grad
        if training:
            fields.x_BGD.requires_grad_()
            behaviors.v_BLD.requires_grad_()
            behaviors.newest_BD.requires_grad_()
        a, c, t = len(layout.user), len(layout.context), len(layout.item)
        a_BAD, c_BCD, t_BTD = fields.x_BGD.split([a, c, t], dim=1)
        inputs = TowerInputs(a_BAD=a_BAD, v_BLD=behaviors.v_BLD, mask_BL=behaviors.mask_BL, c_BCD=c_BCD, t_BTD=t_BTD,
                             dense_BF=self._dense(encoded, len(behaviors.mask_BL)),
                             is_virtual_B=no_virtual(behaviors.mask_BL),
                             newest_BD=behaviors.newest_BD if training else None,
                             newest_BJ=behaviors.newest_BJ if training else None)
        return Gathered(inputs, fields, behaviors, layout.action.offset) if training else Gathered(inputs)

    @torch.no_grad()
    def gather_users(self, encoded: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Embed users alone, no gradient: (a_UAD, v_ULD, mask_UL). Raises InputError as `gather` does."""
        behaviors = self._behaviors(encoded)
        return self._fields(encoded, self.layout.user).x_BGD, behaviors.v_BLD, behaviors.mask_BL

    @torch.no_grad()
    def gather_candidates(self, encoded: Mapping[str, Tensor], rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embed `rows` candidates, no gradient: (c_BCD, t_BTD, dense_BF). Raises InputError as `gather` does."""
        x_BGD = self._fields(encoded, self.layout.context + self.layout.item, rows).x_BGD
        c_BCD, t_BTD = x_BGD.split([len(self.layout.context), len(self.layout.item)], dim=1)
        return c_BCD, t_BTD, self._dense(encoded, rows)

    @torch.no_grad()
    def _fields(self, encoded: Mapping[str, Tensor], fields: Sequence[EmbeddedField],
                rows: int | None = None) -> _Fields:
        """Every feature's vector: its row, the mean of its values' rows, or its value times its row."""
        device, dtype = self.weight.device, self.weight.dtype
        if rows is None:
            rows = len(_column(encoded, self.layout.action.name))
        codes, weights, starts, slots = [], [], [], 0
        for field in fields:
            code, weight = _slots(_column(encoded, field.name), field.kind, dtype)
            codes.append(code)
            weights.append(weight)
            starts.append(slots)
            slots += code.shape[1]
            if len(code) != rows:
                raise InputError(f"encoded column {field.name}: {len(code)} rows, expected {rows}")
        empty = torch.empty(rows, 0, dtype=torch.int32, device=device)
        codes_BS = torch.cat(codes, 1) if codes else empty
        weights_BS = torch.cat(weights, 1) if weights else empty.to(dtype)
        rows_BS = _rows(codes_BS, fields, [c.shape[1] for c in codes])
        offsets_BG = (torch.arange(rows, dtype=torch.int32)[:, None] * slots
                      + torch.tensor(starts, dtype=torch.int32)).to(device)
        x = F.embedding_bag(rows_BS.reshape(-1), self.weight, offsets_BG.reshape(-1), mode="sum",
                            per_sample_weights=weights_BS.reshape(-1))
        return _Fields(x.view(rows, len(fields), self.dim), rows_BS, weights_BS, codes_BS != PADDING, tuple(starts))

    @torch.no_grad()
    def _behaviors(self, encoded: Mapping[str, Tensor]) -> _Behaviors:
        """v = (sum of the item columns' embeddings) * action embedding, zero at padding."""
        layout = self.layout
        action_BL = _column(encoded, layout.action.name)
        if action_BL.dim() != 2 or action_BL.shape[1] != layout.length:
            raise InputError(f"encoded column {layout.action.name}: shape {tuple(action_BL.shape)}, "
                             f"expected (rows, {layout.length})")
        mask_BL = action_BL != PADDING
        position_P = mask_BL.reshape(-1).nonzero().squeeze(1)
        columns = []
        for field in layout.behavior_items:
            column = _column(encoded, field.name)
            if column.shape != action_BL.shape:
                raise InputError(f"encoded column {field.name}: shape {tuple(column.shape)}, "
                                 f"expected {tuple(action_BL.shape)}")
            columns.append(column.reshape(-1).index_select(0, position_P).to(torch.int32))
        codes_PJ = torch.stack(columns, 1)
        rows_PJ = _rows(codes_PJ, layout.behavior_items, [1] * len(columns))
        action_P = action_BL.reshape(-1).index_select(0, position_P).to(torch.int64)
        _rows(action_P[:, None], [layout.action], [1])  # checks the codes
        item_PD = F.embedding_bag(rows_PJ, self.weight, mode="sum")
        action_KD = self.weight[layout.action.offset:layout.action.offset + layout.action.size].clone()
        v_BLD = torch.zeros(mask_BL.numel(), self.dim, dtype=self.weight.dtype, device=self.weight.device)
        v_BLD.index_copy_(0, position_P, item_PD * action_KD.index_select(0, action_P))
        # Newest first: the first position of each row that has one.
        old_N, newest_N = _first_positions(mask_BL)
        newest_BD, newest_BJ = v_BLD.new_zeros(len(mask_BL), self.dim), codes_PJ.new_zeros(len(mask_BL), len(columns))
        newest_BD.index_copy_(0, old_N, item_PD.index_select(0, newest_N))
        newest_BJ.index_copy_(0, old_N, codes_PJ.index_select(0, newest_N))
        return _Behaviors(v_BLD.view(*mask_BL.shape, self.dim), mask_BL, position_P, rows_PJ, codes_PJ != PADDING,
                          item_PD, action_P, action_KD, newest_BD, newest_BJ)

    def _dense(self, encoded: Mapping[str, Tensor], rows: int) -> Tensor:
        columns = [_column(encoded, name).to(self.weight.dtype) for name in self.layout.dense]
        if not columns:
            return torch.empty(rows, 0, dtype=self.weight.dtype, device=self.weight.device)
        return torch.stack(columns, 1)


def _column(encoded: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in encoded:
        raise InputError(f"encoded rows lack column {name!r}; they have {', '.join(encoded)}")
    return encoded[name]


def _slots(column: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes (B, slots) int32 of a feature and the weights that their rows enter with."""
    if kind == "dense":
        return torch.full_like(column, _DENSE_CODE, dtype=torch.int32)[:, None], column.to(dtype)[:, None]
    if kind == "categorical":
        return column.to(torch.int32)[:, None], torch.ones_like(column, dtype=dtype)[:, None]
    real = (column != PADDING).to(dtype)
    return column.to(torch.int32), real / real.sum(1, keepdim=True).clamp(min=1)


def _rows(codes_NS: Tensor, fields: Sequence[EmbeddedField], widths: Sequence[int]) -> Tensor:
    """Row in the fused table of each code; one outside its vocabulary would read another field's row, so it raises."""
    repeated = [f for f, width in zip(fields, widths) for _ in range(width)]
    offset_S, size_S = (torch.tensor([getattr(f, n) for f in repeated], dtype=torch.int32, device=codes_NS.device)
                        for n in ("offset", "size"))
    outside_NS = (codes_NS < 0) | (codes_NS >= size_S)
    if outside_NS.any():
        row, slot = outside_NS.nonzero()[0].tolist()
        raise InputError(f"encoded column {repeated[slot].name}: code {int(codes_NS[row, slot])} at row {row}, "
                         f"expected 0 to {repeated[slot].size - 1}; the rows were encoded for another model")
    return codes_NS + offset_S
