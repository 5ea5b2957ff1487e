"""What every ranking tower keeps to, alone and under MAIL: CHECKS, each a function of a Case. See docs/own-tower.md.

The rows are random raw rows of a shipped schema, about a third of them new, with values that the encoders do not know
and NULLs among them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pyarrow as pa
import torch
from small_package import ZERO_SHOT, raw_rows
from torch import Tensor, nn

from mail_core.encoding.encode import encode
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.fit import fit_encoders
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.inputs import RankingOutput, TowerInputs
from mail_core.models.layers import log_odds
from mail_core.models.mail import COLD_START, MailConfig, MailModel
from mail_core.models.ranking import pooling_of, with_pooling
from mail_core.models.zero_shot import VARIANTS
from mail_core.package.store import load_package, save_package
from mail_core.schema.definition import MISSING, UNKNOWN
from mail_core.schema.reader import load_schema

Encoded = dict[str, Tensor]
PARTS = ("a_BAD", "v_BLD", "c_BCD", "t_BTD", "dense_BF")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tower of TOWERS with a small configuration of it."""

    tower: str
    config: Any
    schema: str = "alimama"
    method: str = "base"
    """A name of METHODS; a peer of MAIL's counts as fitted."""
    head: str = "ctr"

    def encoders(self) -> Encoders:
        return _encoders(self.schema)

    def layout(self) -> EmbeddingLayout:
        return EmbeddingLayout.from_schema(_schema(self.schema), self.encoders().vocabulary_sizes)

    def encoded(self, rows: int = 12, seed: int = 1) -> Encoded:
        return dict(_encoded(self.schema, rows, seed))

    def is_new(self, encoded: Encoded) -> Tensor:
        return ~(encoded[_schema(self.schema).action_column] > 0).any(1)

    def model(self, stirred: bool = True) -> MailModel:
        """Fresh; or with biases and running statistics other than the initial ones."""
        torch.manual_seed(2)
        zero_shot = replace(ZERO_SHOT, variant=self.method) if self.method in VARIANTS else None
        tower_config = self.config
        if zero_shot is not None and zero_shot.parts.token and pooling_of(tower_config) == "sum":
            tower_config = with_pooling(tower_config, "mean")
        peer = COLD_START[self.method][0]() if self.method in COLD_START else None
        model = MailModel(MailConfig(tower=self.tower, head=self.head, dim=4, embedding_std=0.5, zero_shot=zero_shot,
                                     tower_config=tower_config, cold_start=peer), self.layout())
        if stirred:
            for name, buffer in model.named_buffers():
                if not name.startswith("ranking."):
                    buffer.fill_(True) if buffer.dtype == torch.bool else buffer.uniform_(0.2, 0.8)
            with torch.no_grad():
                for parameter in model.ranking.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
                    norm.running_mean.normal_(std=0.1)
                    norm.running_var.uniform_(0.5, 2.0)
        return model

    def inputs(self, model: MailModel, encoded: Encoded) -> TowerInputs:
        """Completed inputs whose five tensors are leaves of a graph."""
        with torch.no_grad():
            inputs = model.complete(model.tables.gather(encoded).inputs)
        return replace(inputs, **{part: getattr(inputs, part).clone().requires_grad_() for part in PARTS})


_schema = lru_cache(load_schema)


@lru_cache
def _encoders(name: str) -> Encoders:
    schema = _schema(name)
    return fit_encoders(raw_rows(schema, 200, values=15), schema)


def _raw(name: str, rows: int, seed: int) -> pa.Table:
    return raw_rows(_schema(name), rows, seed=seed, values=25)


@lru_cache
def _encoded(name: str, rows: int, seed: int) -> Encoded:
    return {n: torch.from_numpy(a) for n, a in encode(_raw(name, rows, seed), _encoders(name)).items()}


def _logits(output: RankingOutput) -> Tensor:
    """(B,), or (2 B,) of two heads."""
    both = (output.logits_B, output.conversion_logits_B)
    return torch.cat([logits_B for logits_B in both if logits_B is not None])


def _loss(output: RankingOutput) -> Tensor:
    return _logits(output).square().sum() + sum(output.auxiliary.values())


def output_has_a_logit_a_row_and_scalar_losses(case: Case) -> None:
    model = case.model()
    for rows in (12, 2):
        output = model.ranking(case.inputs(model, case.encoded(rows)))
        assert output.logits_B.shape == (rows,) and output.logits_B.dtype == torch.float32
        assert len(_logits(output)) == (rows if case.head == "ctr" else 2 * rows)
        assert torch.isfinite(_logits(output)).all()
        assert all(loss.shape == () and torch.isfinite(loss) for loss in output.auxiliary.values())
    logits_B = case.model().eval()(case.encoded(200))
    assert torch.isfinite(logits_B).all() and logits_B.unique().numel() > 190


def values_in_padding_change_nothing(case: Case) -> None:
    model, encoded = case.model(), case.encoded()
    inputs = case.inputs(model, encoded)
    assert not inputs.mask_BL.all()
    for training in (True, False):
        model.train(training)
        found = []
        for value in (0.0, 100.0):
            v_BLD = torch.where(inputs.mask_BL[:, :, None], inputs.v_BLD.detach(), value).requires_grad_()
            torch.manual_seed(3)  # the same dropout
            logits_B = model.ranking(replace(inputs, v_BLD=v_BLD)).logits_B
            logits_B.square().sum().backward()
            assert not v_BLD.grad[~inputs.mask_BL].any()
            found.append((logits_B, v_BLD.grad))
        for first, second in zip(*found):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def unknown_missing_and_padding_codes_get_a_score(case: Case) -> None:
    model, encoded = case.model().eval(), case.encoded()
    behaviors = _schema(case.schema).behavior_vocabularies
    for code in (UNKNOWN, MISSING, 0):
        alike = {name: column if column.is_floating_point() else torch.where(column > 0, code, 0).to(column.dtype)
                 if name in behaviors and code else torch.full_like(column, code) for name, column in encoded.items()}
        logits_B = model(alike)
        assert logits_B.shape == (12,) and torch.isfinite(logits_B).all()


def batches_of_one_row_and_of_one_kind_of_row_train(case: Case) -> None:
    encoded = case.encoded(40)
    new_B = case.is_new(encoded)
    new, old = ({n: c[rows] for n, c in encoded.items()} for rows in (new_B, ~new_B))
    assert 5 < new_B.sum() < 35
    for batch in (new, old, *({n: c[:rows] for n, c in kind.items()} for kind in (new, old) for rows in (0, 1, 2))):
        model = case.model().train()
        gathered = model.tables.gather(batch)
        output = model.ranking(model.complete(gathered.inputs))
        _loss(output).backward()
        assert torch.isfinite(output.logits_B).all() and torch.isfinite(gathered.row_gradients()[1]).all()
        for name, parameter in model.ranking.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert all(torch.isfinite(buffer).all() for buffer in model.ranking.buffers())


def a_row_scores_alike_in_any_batch(case: Case) -> None:
    model, encoded = case.model().eval(), case.encoded()
    with torch.no_grad():
        together = model(encoded)
        alone = torch.cat([model({n: c[i:i + 1] for n, c in encoded.items()}) for i in range(len(together))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def a_saved_and_loaded_version_scores_alike(case: Case) -> None:
    model, encoders, rows = case.model().eval(), case.encoders(), _raw(case.schema, 60, 3)
    assert MailConfig.from_dict(json.loads(json.dumps(model.config.to_dict()))) == model.config
    with torch.no_grad():
        expected = _logits(model.outputs({n: torch.from_numpy(a) for n, a in encode(rows, encoders).items()})).sigmoid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package"
        save_package(path, model=model, encoders=encoders, lineage={"new_users": "natural"}, metrics={})
        package = load_package(path)
    scores = package.score(rows)
    assert (scores.cvr is None) == (case.head == "ctr")
    found = scores.ctr if scores.cvr is None else np.concatenate([scores.ctr, scores.cvr])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(package.predict(rows), scores.ctr)
    assert np.isfinite(found).all() and np.ptp(scores.ctr) > 0.01


def gradient_reaches_every_field_and_every_parameter(case: Case) -> None:
    model = case.model().eval()  # without dropout and batch statistics, which hide a gradient or mix rows
    inputs = case.inputs(model, case.encoded(40))
    _loss(model.ranking(inputs)).backward()
    for part in ("a_BAD", "c_BCD", "t_BTD", "dense_BF"):
        gradient = getattr(inputs, part).grad
        assert (gradient.flatten(2).abs().amax(2) if gradient.dim() == 3 else gradient.abs()).amax(0).gt(0).all(), part
    assert torch.equal(inputs.v_BLD.grad.abs().amax(2) > 0, inputs.mask_BL)
    for name, parameter in model.ranking.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def gradient_reaches_nothing_else(case: Case) -> None:
    model, encoded = case.model().eval(), case.encoded(40)
    gathered = model.tables.gather(encoded)
    _loss(model.ranking(model.complete(gathered.inputs))).backward()
    assert model.tables.weight.grad is None
    others = [*model.parameter_groups()["zero_shot"], *model.parameter_groups()["cold_start"]]
    assert all(p.grad is None for p in others)
    rows_R, grad_RD = gathered.row_gradients()
    layout = model.layout
    assert not set(rows_R.tolist()) & set(layout.padding_rows)
    touched = {row for row, gradient in zip(rows_R.tolist(), grad_RD) if gradient.any()}
    for field in (*layout.user, *layout.context, *layout.item, layout.action):
        codes = encoded[field.name]
        if case.method == "meta_emb" and field.name == _schema(case.schema).user_id_feature:
            codes = codes[~case.is_new(encoded)]  # a new row's ID has given way to the generator's
        wanted = {field.offset + code for code in codes.unique().tolist()} - set(layout.padding_rows) \
            if field.kind != "dense" else {field.offset + 1}
        assert wanted <= touched, field.name

    new = {n: c[case.is_new(encoded)] for n, c in encoded.items()}  # the one behaviour that they have is virtual
    gathered = model.tables.gather(new)
    _loss(model.ranking(model.complete(gathered.inputs))).backward()
    assert (gathered.row_gradients()[0] < layout.action.offset).all()

    inputs = case.inputs(model, encoded)
    model.ranking(inputs).logits_B[3].backward()
    for part in PARTS:
        reached_B = getattr(inputs, part).grad.flatten(1).abs().sum(1) > 0
        assert reached_B.nonzero().flatten().tolist() in ([3], []), part


def ranking_by_user_part_equals_forward_on_joined_rows(case: Case) -> None:
    schema, model = _schema(case.schema), case.model().eval()
    users, index_B = case.encoded(), torch.tensor([1, 1, 0, 5, 4, 2, 2, 11, 1])
    candidates = case.encoded(len(index_B), seed=9)
    of_user = [f.name for f in schema.group("user")] + list(schema.behavior_vocabularies)
    joined = {n: users[n][index_B] if n in of_user else candidates[n] for n in users}
    part = model.embed_users({n: users[n] for n in of_user})
    assert torch.equal(part.is_virtual_U, case.is_new(users) & model.makes_behavior)
    found = model.rank(part, index_B, {n: c for n, c in candidates.items() if n not in of_user})
    torch.testing.assert_close(_logits(found), _logits(model.outputs(joined)).detach(), rtol=0, atol=1e-5)


def a_model_built_on_meta_starts_as_one_built_directly(case: Case) -> None:
    with torch.device("meta"):
        lazy = case.model(stirred=False)
    assert all(value.is_meta for value in (*lazy.parameters(), *lazy.buffers()))
    lazy.to_empty(device="cpu")
    direct, built = case.model(stirred=False), case.model(stirred=False)
    for model in (lazy, direct):
        for value in (*model.parameters(), *model.buffers()):
            value.data.fill_(-17)
        torch.manual_seed(7)
        model.reset_parameters()
    expected = built.state_dict()
    for (name, found), same in zip(lazy.state_dict().items(), direct.state_dict().values()):
        assert torch.equal(found, same), name
        assert torch.isfinite(found).all() and found.shape == expected[name].shape, name
        if found.numel() < 50 or expected[name].unique().numel() < 2:
            assert (found != -17).all() and abs(float(found.float().mean() - expected[name].float().mean())) < 1, name
        else:
            assert 0.7 < float(found.std() / expected[name].std()) < 1.4, name
    encoded = case.encoded()
    assert torch.equal(lazy.eval()(encoded), direct.eval()(encoded))


def a_prior_sets_the_constant_click_rate(case: Case) -> None:
    model, encoded, found = case.model(stirred=False).eval(), case.encoded(), []
    for ctr in (0.05, 0.5, 0.05):
        model.ranking.set_prior(ctr)
        found.append(model(encoded).detach())
    torch.testing.assert_close(found[0] - found[1], torch.full((12,), log_odds(0.05)), rtol=0, atol=1e-4)
    assert torch.equal(found[0], found[2])
    silent = case.inputs(model, encoded)
    silent = replace(silent, **{part: torch.zeros_like(getattr(silent, part)) for part in PARTS})
    torch.testing.assert_close(model.ranking(silent).logits_B.detach(), torch.full((12,), log_odds(0.05)), rtol=0,
                               atol=1.0)  # a fresh tower may have small biases of its own
    model.ranking.set_prior(0.0)
    assert torch.isfinite(model(encoded)).all()


def training_draws_dropout_and_evaluation_does_not(case: Case) -> None:
    model, encoded = case.model(), case.encoded()
    inputs = case.inputs(model, encoded)
    first, second = (model.train().ranking(inputs).logits_B for _ in range(2))
    assert torch.equal(first, second) != hasattr(case.config, "dropout")
    first, second = (model.eval().ranking(inputs).logits_B for _ in range(2))
    assert torch.equal(first, second)


CHECKS: tuple[Callable[[Case], None], ...] = (
    output_has_a_logit_a_row_and_scalar_losses, values_in_padding_change_nothing,
    unknown_missing_and_padding_codes_get_a_score, batches_of_one_row_and_of_one_kind_of_row_train,
    a_row_scores_alike_in_any_batch, a_saved_and_loaded_version_scores_alike,
    gradient_reaches_every_field_and_every_parameter, gradient_reaches_nothing_else,
    ranking_by_user_part_equals_forward_on_joined_rows, a_model_built_on_meta_starts_as_one_built_directly,
    a_prior_sets_the_constant_click_rate, training_draws_dropout_and_evaluation_does_not)
