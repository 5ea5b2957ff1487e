"""What a peer of MAIL learns once its ranking tower is trained: LLAE's closed form, MetaEmb's generator.

B rows of a batch, N old rows, D embedding size.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.loading.batches import epoch_batches
from mail_core.models.esmm import ranking_losses
from mail_core.models.fields import pool_behavior
from mail_core.models.llae import Llae
from mail_core.models.mail import MailModel
from mail_core.models.meta_emb import MetaEmb
from mail_core.models.ranking import pooling_of
from mail_core.schema.definition import USER_KEY, WEIGHT
from mail_core.training.data import Export, to_tensors
from mail_core.training.llae import FOLDS, Moments, solve
from mail_core.training.optimizers import BETAS, EPS
from mail_core.training.ranks import Ranks

CHUNK_ROWS = 8192
"""Rows among which MetaEmb looks for two of one user; also LLAE's batches."""
PAIRS_OF_A_STEP = 1024
"""At most, about, on all ranks."""

logger = logging.getLogger(__name__)
Chunk = Mapping[str, np.ndarray]
Rows = tuple[dict[str, Tensor], Tensor, Tensor | None]
"""Encoded columns, labels, and conversions where there are any."""


def fit_cold_start(model: MailModel, export: Export, splits: tuple[str, ...], seed: int, ranks: Ranks) -> None:
    """Fit the model's peer, if it has one, on the rows of `splits`; every rank calls it and ends with the same.

    The ranking tower and the tables stay as they are; the model is in eval mode afterwards.
    """
    model.eval()
    if model.cold_start is None:
        return

    def chunks(epoch: int) -> Iterator[Chunk]:
        return epoch_batches(export.uri, export.manifest, splits, seed=seed, epoch=epoch, world_size=ranks.world_size,
                             rank=ranks.rank, batch_size=CHUNK_ROWS, shuffle=True, since=export.since)

    if isinstance(model.cold_start, Llae):
        fit_llae(model, chunks(0), ranks)
    else:
        fit_meta_emb(model, chunks, ranks)
    model.cold_start.fitted.fill_(True)


def fit_llae(model: MailModel, chunks: Iterator[Chunk], ranks: Ranks) -> None:
    """W from the moments of the old rows: S their attributes, X their behaviour as the ranking tower pools it."""
    llae = model.cold_start
    assert isinstance(llae, Llae)
    k, d = llae.w_KD.shape
    sums = np.zeros((FOLDS, k + d, k + d))  # of [S X]^T [S X], a fold of users each
    for chunk in chunks:
        with torch.no_grad():
            inputs = model.tables.gather(to_tensors(chunk, ranks.device).encoded).inputs
            pooled_BD = pool_behavior(inputs, pooling_of(model.config.tower_config))
            sx = torch.cat([llae.attributes(inputs.a_BAD), pooled_BD], 1).double().cpu().numpy()
        old = ~inputs.is_new_B.cpu().numpy() & (chunk[WEIGHT] > 0)
        for fold in range(FOLDS):
            own = sx[old & (chunk[USER_KEY] % FOLDS == fold)]
            sums[fold] += own.T @ own
    total = ranks.sum(torch.from_numpy(sums).to(ranks.device)).cpu().numpy()
    folds = [Moments(m[:k, :k], m[k:, k:], m[:k, k:]) for m in total]
    w_KD, weight = solve(folds, llae.config)
    llae.w_KD.copy_(torch.from_numpy(w_KD))
    logger.info("llae: weight %g of the low-rank term, error %.4g of %.4g", weight, sum(f.error(w_KD) for f in folds),
                sum(np.trace(f.xx_DD) for f in folds))


def fit_meta_emb(model: MailModel, chunks: Callable[[int], Iterator[Chunk]], ranks: Ranks) -> None:
    """Adam on the meta loss of pairs of rows of one user, the model but the generator frozen."""
    meta = model.cold_start
    assert isinstance(meta, MetaEmb)
    for tensor in meta.parameters():
        ranks.broadcast(tensor.data)
    adam = torch.optim.Adam(meta.parameters(), lr=meta.config.learning_rate, betas=BETAS, eps=EPS)
    parts = -(-CHUNK_ROWS * ranks.world_size // (2 * PAIRS_OF_A_STEP))
    for epoch in range(meta.config.epochs):
        losses, pairs = 0.0, 0.0
        for chunk in chunks(epoch):
            first, second = user_pairs(chunk)
            # As many steps on every rank, whatever pairs it has.
            for a, b in zip(np.array_split(first, parts), np.array_split(second, parts)):
                loss_sum = meta_loss(model, _rows(chunk, a, ranks), _rows(chunk, b, ranks))
                adam.zero_grad(set_to_none=False)
                loss_sum.backward()
                count = float(ranks.sum(torch.tensor([float(len(a))], device=ranks.device)))
                if count == 0:
                    continue
                for parameter in meta.parameters():
                    assert parameter.grad is not None
                    ranks.sum(parameter.grad).div_(count)
                adam.step()
                losses, pairs = losses + float(loss_sum.detach()), pairs + len(a)
        logger.info("meta_emb: epoch %d, meta loss %.5f over %d pairs", epoch + 1, losses / max(pairs, 1), pairs)


def user_pairs(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Positions of disjoint pairs of rows of one user: (first rows, second rows)."""
    real = np.flatnonzero(chunk[WEIGHT] > 0)
    order = real[np.argsort(chunk[USER_KEY][real], kind="stable")]
    keys = chunk[USER_KEY][order]
    starts = np.r_[True, keys[1:] != keys[:-1]]
    place = np.arange(len(keys)) - np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    second = np.flatnonzero(place % 2 == 1) if len(keys) else np.empty(0, dtype=np.int64)
    return order[second - 1], order[second]


def meta_loss(model: MailModel, cold: Rows, warm: Rows) -> Tensor:
    """alpha L_cold + (1 - alpha) L_warm, summed over pairs: row i of `cold` and of `warm` is the same user's.

    L_cold is measured with the generated embedding phi, L_warm on the other row with phi after one gradient step on
    L_cold; the behaviour is taken from both, because a new user has none.
    """
    meta = model.cold_start
    assert isinstance(meta, MetaEmb)
    inputs, outcomes = [], []
    for encoded, labels_N, conversions_N in (cold, warm):
        action = model.layout.action.name
        with torch.no_grad():
            inputs.append(model.tables.gather({**encoded, action: torch.zeros_like(encoded[action])}).inputs)
        outcomes.append((labels_N, conversions_N))

    def losses_N(of: int, phi_ND: Tensor) -> Tensor:
        x = replace(inputs[of], a_BAD=meta.with_identity(inputs[of].a_BAD, phi_ND))
        return ranking_losses(model.ranking(x), *outcomes[of])

    phi_ND = meta(inputs[0].a_BAD)
    cold_N = losses_N(0, phi_ND)
    [slope_ND] = torch.autograd.grad(cold_N.sum(), phi_ND, create_graph=True)
    warm_N = losses_N(1, phi_ND - meta.config.inner_learning_rate * slope_ND)
    return (meta.config.alpha * cold_N + (1 - meta.config.alpha) * warm_N).sum()


def _rows(chunk: Chunk, rows: np.ndarray, ranks: Ranks) -> Rows:
    batch = to_tensors({name: column[rows] for name, column in chunk.items()}, ranks.device)
    return batch.encoded, batch.labels_B, batch.conversions_B
