"""A training like that of a version: what its package says of it, where its export is, whether the figures agree."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Mapping

import torch

from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.lake.files import join
from mail_core.loading.manifest import MANIFEST, export_uri, manifest_fingerprint, manifest_text, read_manifest
from mail_core.models.mail import MailConfig
from mail_core.package.store import LINEAGE, NEW_USERS, load_package
from mail_core.schema.definition import Schema
from mail_core.training.presets import TrainingConfig

FEATURES = "features"


@dataclass(frozen=True, kw_only=True)
class Original:
    """The version to train again, as its package tells it."""

    uri: str
    """models:/NAME/VERSION: an alias has become a version already."""
    name: str
    schema: Schema
    """Of the version's own text."""
    model: MailConfig
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def end_date(self) -> date:
        """The test day."""
        return date.fromisoformat(self.lineage["export"]["end_date"])

    @property
    def days(self) -> int:
        """Days of the export."""
        return self.lineage["export"]["days"]

    @property
    def new_users(self) -> NewUserMode:
        """Mode of the export."""
        return NewUserMode.parse(self.lineage[NEW_USERS])

    @property
    def delta_versions(self) -> dict[str, int]:
        """Table -> version of the export; `features` is the one that was read."""
        return dict(self.lineage["export"]["delta_versions"])

    @property
    def ranks(self) -> int:
        """How many trained it."""
        return self.lineage["training"]["ranks"]

    @property
    def threads(self) -> int | None:
        """Of a rank; None in the lineage of a version that is older than this key."""
        return self.lineage.get("environment", {}).get("threads")

    @property
    def config(self) -> TrainingConfig:
        """The settings; the epochs are those that were trained, so that they are not chosen again."""
        training = self.lineage["training"]
        return TrainingConfig(model=self.model, **{name: training[name] for name in (
            "batch_size", "learning_rate", "epochs", "seed", "embedding_optimizer")})

    def standing_export(self, lake_uri: str) -> str | None:
        """The export that it was trained on, where it still stands, or one that was made of the same table again."""
        today = export_uri(lake_uri, self.end_date, self.days, self.new_users)
        text = manifest_text(today)
        if text is not None and manifest_fingerprint(text) == self.lineage["export"]["manifest_fingerprint"]:
            return today
        again = self.export_again_uri(lake_uri)
        return again if manifest_text(again) is not None and self.mismatch(again) is None else None

    def export_again_uri(self, lake_uri: str) -> str:
        """Where its export lies when it is made again: no export of today is there."""
        return export_uri(lake_uri, self.end_date, self.days, self.new_users, self.delta_versions[FEATURES])

    def mismatch(self, uri: str) -> str | None:
        """What tells the export at `uri` from the version's own, in words; None where nothing does."""
        manifest, export = read_manifest(uri), self.lineage["export"]
        pairs = {"schema": (manifest.schema_fingerprint, self.schema.fingerprint),
                 "version of features": (manifest.delta_versions[FEATURES], self.delta_versions[FEATURES]),
                 "fingerprint of the encoders": (manifest.encoder_fingerprint, export["encoder_fingerprint"])}
        if "files" in export:  # not in the lineage of older versions
            pairs["rows of the files"] = (files_of(manifest.splits), export["files"])
        differing = [f"{what} {found}, {self.uri} has {expected}" for what, (found, expected) in pairs.items()
                     if found != expected]
        return "; ".join(differing) or None

    def export_of(self, lake_uri: str) -> str:
        """`standing_export`; InputError where there is none."""
        uri = self.standing_export(lake_uri)
        if uri is None:
            raise InputError(f"{join(self.export_again_uri(lake_uri), MANIFEST)}: no export to train like {self.uri}; "
                             f"without torchrun, train --like makes it")
        return uri


def original(uri: str) -> Original:
    """The version at models:/NAME@ALIAS or models:/NAME/VERSION. `configure_tracking` comes first.

    Raises:
        InputError: no such version, or one whose lineage does not say how it was trained.
    """
    from mail_core.tracking.registry import resolve_model  # MLflow takes seconds to import
    resolved = resolve_model(uri)
    return original_of(resolved.uri, resolved.name, resolved.package_folder)


def original_of(uri: str, name: str, folder: Path) -> Original:
    """The version models:/NAME/VERSION whose package lies in `folder`. Raises InputError as `original` does."""
    package = load_package(folder)
    _check_lineage(package.lineage, folder / LINEAGE)
    found = Original(uri=uri, name=name, schema=package.schema, model=package.config, lineage=package.lineage,
                     metrics=package.metrics)
    recorded = package.lineage["schema"]["fingerprint"]
    if recorded != package.schema.fingerprint:
        raise InputError(f"{found.uri}: its schema has the fingerprint {package.schema.fingerprint}, its lineage says "
                         f"{recorded}")
    return found


def _check_lineage(lineage: Mapping[str, Any], path: Path) -> None:
    needed = {"schema": ("fingerprint",),
              "export": ("manifest_fingerprint", "encoder_fingerprint", "delta_versions", "end_date", "days"),
              "training": ("preset", "epochs", "seed", "ranks", "device", "batch_size", "learning_rate",
                           "embedding_optimizer")}
    for part, keys in needed.items():
        for key in keys:
            if not isinstance(lineage.get(part), dict) or key not in lineage[part]:
                raise InputError(f"{path}: no {part}.{key}: this version does not say how it was trained")
    if FEATURES not in lineage["export"]["delta_versions"]:
        raise InputError(f"{path}: no export.delta_versions.{FEATURES}: this version does not say what it read")


def files_of(splits: Mapping[str, Any]) -> dict[str, list[int]]:
    """Split -> rows of each of its files, for the lineage: the order of training follows from them."""
    return {split: [entry.rows for entry in entries] for split, entries in splits.items()}


def environment() -> dict[str, Any]:
    """What can change the last bits of a result beside the settings, for the lineage."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability()}


def changed_circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which circumstances two trainings of equal settings differ, in words: a reason for other figures."""
    def circumstances(lineage: Mapping[str, Any]) -> dict[str, Any]:
        training = {key: lineage["training"][key] for key in ("ranks", "device")}
        return {"commit": lineage.get("commit"), **training, **lineage.get("environment", {})}

    before, after = circumstances(then), circumstances(now)
    return [f"{key}: {before.get(key, 'unknown')} then, {after[key]} now" for key in after
            if before.get(key) != after[key]]


def differing_metrics(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two versions' metrics differ by any bit, in words."""
    before, after = _flat(then), _flat(now)
    return [f"{key}: {before.get(key, 'absent')} then, {after.get(key, 'absent')} now"
            for key in dict.fromkeys([*before, *after])
            if key not in before or key not in after or before[key] != after[key]]


def _flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    cohorts = {f"{cohort['cohort']}/{key}": value for cohort in metrics["cohorts"] for key, value in cohort.items()}
    return {**cohorts, **metrics["diagnostics"]}
