"""A training that starts from an earlier version: what it has learned is carried over, and the days it has seen are not
trained again.

Rows of the embedding table, and their moments, go over by value: the encoders of the new export decide which values
there are and at which code. V rows of the new table, W of the old one, K known values, D embedding size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from torch import Tensor

from mail_core.encoding.encoders import Encoders, hash_buckets
from mail_core.errors import InputError
from mail_core.loading.manifest import TRAIN, VALIDATION
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailConfig, MailModel
from mail_core.package.scoring import Package
from mail_core.package.store import WARM_START, load_package
from mail_core.schema.definition import FIRST_CODE
from mail_core.training.data import Export
from mail_core.training.like import Original, original_of
from mail_core.training.moments import DENSE_MOMENTS, MOMENTS, STEPS, TABLE, TABLE_MOMENTS, adam_of, load_moments
from mail_core.training.presets import method_of
from mail_core.training.step import TrainStep

DAYS_TRAINED = "days_trained"
"""Tag of a warm-started version: first and last of the days that were trained."""
_PEER = "cold_start."
_CHUNK_ROWS = 65_536

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """Which rows of a new table mean what a row of the old one meant."""

    new_K: Tensor
    """int64, in ascending order."""
    old_K: Tensor
    """int64."""


def known_rows(old: EmbeddingLayout, old_encoders: Encoders, new: EmbeddingLayout, new_encoders: Encoders) -> KnownRows:
    """Rows of equal values; also of padding, unknown and missing, of hash buckets and dense attributes, whose codes
    mean the same in every vocabulary. The encoders are of one schema."""
    new_rows, old_rows = [], []
    for before, after in zip(old.vocabularies, new.vocabularies):
        assert before.name == after.name, (before.name, after.name)
        if after.kind == "dense" or hash_buckets(new_encoders.schema, after.name):
            assert before.size == after.size, after.name
            codes = np.arange(after.size)
        else:
            values = old_encoders.codes(after.name, new_encoders.vocabularies[after.name])
            codes = np.concatenate([np.arange(FIRST_CODE), np.where(values >= FIRST_CODE, values, -1)])
        known = np.flatnonzero(codes >= 0)
        new_rows.append(after.offset + known)
        old_rows.append(before.offset + codes[known])
    return KnownRows(new_K=torch.from_numpy(np.concatenate(new_rows)).long(),
                     old_K=torch.from_numpy(np.concatenate(old_rows)).long())


@torch.no_grad()
def carry_rows(new_VD: Tensor, old_WD: Tensor, known: KnownRows) -> None:
    """Copy the known rows from the old table into the new one, whose other rows stay."""
    for new_C, old_C in zip(known.new_K.split(_CHUNK_ROWS), known.old_K.split(_CHUNK_ROWS)):
        rows_CD = old_WD.index_select(0, old_C).to(new_VD.device)
        new_VD.index_copy_(0, new_C.to(new_VD.device), rows_CD)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The version to start from."""

    version: Original
    folder: Path
    """Of its package."""
    moments: Path | None
    """Of its optimisers; None: they were not kept, or have gone."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return self.version.uri

    @property
    def first_day(self) -> date:
        """Its test day: of the days from here on it has learned nothing."""
        return self.version.end_date

    def lineage(self, export: Export) -> dict[str, Any]:
        """For the lineage of the version that is trained."""
        first, last = days_trained(export)
        return {"version": self.uri, "first_day": first.isoformat(), "last_day": last.isoformat(),
                "moments": self.moments is not None}

    def part_of(self, export: Export, model: MailConfig) -> Export:
        """The export with those of its training days alone that the version has not seen.

        Raises:
            InputError: none are left, or the version has another schema, model or mode of new users.
        """
        manifest, version = export.manifest, self.version
        if version.schema.fingerprint != export.schema.fingerprint:
            raise InputError(f"warm start: the schema {export.schema.name!r} has the fingerprint "
                             f"{export.schema.fingerprint[:12]}, that of {self.uri} {version.schema.fingerprint[:12]}: "
                             "train from scratch")
        differing = _differing(version.model, model)
        if differing:
            raise InputError(f"warm start: {differing[0]} of {self.uri}: train from scratch, or with its settings")
        if str(version.new_users) != manifest.new_users:
            raise InputError(f"warm start: new users {manifest.new_users}, but {version.new_users} in the export of "
                             f"{self.uri}, which has learned from behaviour that this one may hide")
        if self.first_day > manifest.end_date:
            raise InputError(f"warm start: {self.uri} ends on {self.first_day}, after the export, which ends on "
                             f"{manifest.end_date}")
        if self.first_day == manifest.end_date:
            raise InputError(f"warm start: {self.uri} has seen all training days of the export, which end on "
                             f"{manifest.end_date - timedelta(days=1)}")
        found = replace(export, since=self.first_day)
        if not manifest.rows(TRAIN, VALIDATION, since=self.first_day):
            raise InputError(f"{export.uri}: no row in the days from {self.first_day} on, which {self.uri} has not "
                             "seen")
        if self.first_day < manifest.first_day:
            logger.warning("the days from %s to %s are neither in the export nor known to %s", self.first_day,
                           manifest.first_day - timedelta(days=1), self.uri)
        return found

    def carried(self, layout: EmbeddingLayout, encoders: Encoders) -> Carried:
        """What goes over into a model of this layout and these encoders. Raises InputError as `load_package` does."""
        package = load_package(self.folder)
        return Carried(start=self, package=package,
                       known=known_rows(package.model.layout, package.encoders, layout, encoders))


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The old version's weights and moments, and where they go."""

    start: WarmStart
    package: Package
    known: KnownRows

    @torch.no_grad()
    def give_weights(self, model: MailModel) -> None:
        """Into a fresh model, whose new values keep their fresh rows. A peer of MAIL's stays fresh, too: it is fitted
        once the ranking tower is trained, as ever."""
        weights = self.package.model.state_dict()
        for name, tensor in model.state_dict().items():
            if name == TABLE:
                carry_rows(tensor, weights[name], self.known)
            elif not name.startswith(_PEER):
                tensor.copy_(weights[name])

    @torch.no_grad()
    def give_moments(self, step: TrainStep) -> None:
        """Into fresh optimisers; new rows begin with none. Raises InputError as `load_moments` does."""
        if self.start.moments is None:
            return
        moments = load_moments(self.start.moments, self.package.model.state_dict())
        table = step.g_b_table.state_dict()
        for key in TABLE_MOMENTS:
            carry_rows(table[key], moments[f"{TABLE}.{key}"], self.known)
        step.g_b_table.load_state_dict({**table, STEPS: moments[f"{TABLE}.{STEPS}"]})
        for name, parameter in step.model.named_parameters():
            adam = adam_of(step, parameter)
            if adam is not None and f"{name}.step" in moments:
                adam.state[parameter] = {key: moments[f"{name}.{key}"].to(parameter.device, copy=True)
                                         for key in ("step", *DENSE_MOMENTS)}

    def describe(self) -> str:
        """In words."""
        known, rows = len(self.known.new_K), self.package.model.layout.rows
        how = "with" if self.start.moments is not None else "without"
        return (f"{self.start.uri}: {known:,} rows of its table carried over, {rows - known:,} have left, {how} the "
                "moments of its optimisers")


def warm_start(uri: str) -> WarmStart:
    """The version at models:/NAME@ALIAS or models:/NAME/VERSION. `configure_tracking` comes first.

    Raises:
        InputError: as `original`.
    """
    from mail_core.tracking.registry import resolve_model  # MLflow takes seconds to import
    from mail_core.tracking.runs import local_artifact
    resolved = resolve_model(uri)
    return WarmStart(version=original_of(resolved.uri, resolved.name, resolved.package_folder),
                     folder=resolved.package_folder,
                     moments=None if resolved.run_id is None else local_artifact(resolved.run_id, MOMENTS))


def warm_start_like(like: Original) -> WarmStart | None:
    """The start of the training that `like` tells of; None where it began from scratch.

    Raises:
        InputError: the version that it started from has gone, or has lost its moments.
    """
    if WARM_START not in like.lineage:
        return None
    then = like.lineage[WARM_START]
    start = warm_start(then["version"])
    if not then["moments"]:
        return replace(start, moments=None)
    if start.moments is None:
        raise InputError(f"{like.uri}: {start.uri}, from which it was started, has lost {MOMENTS}, so that it cannot "
                         "be trained again")
    return start


def days_trained(export: Export) -> tuple[date, date]:
    """First and last of the days that a training on the export learns from."""
    first = export.manifest.first_day
    return first if export.since is None else max(first, export.since), export.manifest.end_date - timedelta(days=1)


def _differing(old: MailConfig, new: MailConfig) -> list[str]:
    """What tells two models apart, in words, the most telling first."""
    named = ({"tower": config.tower, "cold start": method_of(config), **_flat(config.to_dict())}
             for config in (old, new))
    before, after = named
    return [f"{key} {after.get(key, 'none')}, but {before.get(key, 'none')} in the model"
            for key in dict.fromkeys([*after, *before]) if before.get(key) != after.get(key)]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
