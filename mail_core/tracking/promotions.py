"""Promotion and rollback in MLflow's registry: aliases, tags, descriptions.

A process can be killed between any two of these writes. So what was decided is written first, in one tag, and whoever
runs again carries out what that tag says; each write after it may be made twice.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Mapping

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mail_core.errors import InputError
from mail_core.evaluation.promotion import CHAMPION, PREVIOUS, Promotion
from mail_core.tracking.descriptions import with_promotion

RECORD = "promotion."
"""Tag of a version, with the day behind it: the whole decision as JSON."""
DECISION, REASON, DAY_TAG = "promotion_decision", "promotion_reason", "promotion_day"
"""Tags of a version for people and searches: its latest decision."""
ROLLED_BACK = "rolled_back"
"""Tag of a version that a rollback has taken out of service: to which version, when and why."""
ROLLBACK = "rollback"
"""Tag of a registered model while a rollback is under way."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One rollback, as the tag ROLLBACK holds it until it is carried out."""

    name: str
    withdrawn: str
    """The version that was champion."""
    restored: str
    """The version that was `previous` and is champion again."""
    at: datetime
    reason: str

    def to_json(self) -> str:
        """One line; `from_json` gives it back."""
        return json.dumps({**vars(self), "at": self.at.isoformat()})

    @classmethod
    def from_json(cls, text: str) -> Rollback:
        """What `to_json` wrote."""
        document = json.loads(text)
        return cls(**{**document, "at": datetime.fromisoformat(document["at"])})


def aliases(name: str) -> Mapping[str, str]:
    """Alias -> version of a registered model. Raises InputError where there is no such model."""
    try:
        return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}
    except MlflowException as error:
        raise InputError(f"model {name!r}: {error.message}") from error


def unfinished_rollback(name: str) -> Rollback | None:
    """The rollback that a killed process has left half done."""
    text = MlflowClient().get_registered_model(name).tags.get(ROLLBACK)
    return None if text is None else Rollback.from_json(text)


def is_rolled_back(name: str, version: str) -> bool:
    """Whether a rollback has taken the version out of service."""
    return ROLLED_BACK in _version(name, version).tags


def recorded(name: str, version: str, day: date) -> Promotion | None:
    """The decision of `day` on the version, if it was made: it may not have been carried out."""
    text = _version(name, version).tags.get(f"{RECORD}{day}")
    return None if text is None else Promotion.from_json(text)


def record(promotion: Promotion) -> None:
    """Write down the decision, before anything is done about it."""
    MlflowClient().set_model_version_tag(promotion.model_name, promotion.model_version, f"{RECORD}{promotion.day}",
                                         promotion.to_json())


def can_carry_out(promotion: Promotion) -> bool:
    """Whether a recorded decision still fits: no other version has become champion since, and none was rolled back."""
    now = aliases(promotion.model_name).get(CHAMPION)
    return (now in (promotion.champion, promotion.model_version)
            and not is_rolled_back(promotion.model_name, promotion.model_version))


def carry_out(promotion: Promotion) -> None:
    """Tags, description and, where it is promoted, aliases as the decision says; again after a kill, too."""
    client, name, version = MlflowClient(), promotion.model_name, promotion.model_version
    for key, value in ((DECISION, promotion.decision), (REASON, promotion.reason), (DAY_TAG, str(promotion.day))):
        client.set_model_version_tag(name, version, key, value)
    _describe(promotion)
    if not promotion.promoted or aliases(name).get(CHAMPION) == version:
        return
    if promotion.champion is not None:
        # First: a process killed between the two leaves the champion where it was.
        client.set_registered_model_alias(name, PREVIOUS, promotion.champion)
    client.set_registered_model_alias(name, CHAMPION, version)


def begin_rollback(name: str, reason: str, at: datetime) -> Rollback:
    """The rollback that is under way, or a new one of the champion to the previous version, written down.

    Raises:
        InputError: no such model, no champion, or no other version before it.
    """
    found = aliases(name)
    unfinished = unfinished_rollback(name)
    if unfinished is not None:
        logger.warning("%s: a rollback to version %s was not finished; finishing it", name, unfinished.restored)
        return unfinished
    for alias in (CHAMPION, PREVIOUS):
        if alias not in found:
            raise InputError(f"model {name!r}: no version has the alias {alias}, so there is nothing to go back to; "
                             f"its aliases: {', '.join(f'{a} {v}' for a, v in sorted(found.items())) or 'none'}")
    if found[CHAMPION] == found[PREVIOUS]:
        raise InputError(f"model {name!r}: version {found[CHAMPION]} is champion and previous alike, so there is "
                         "nothing to go back to; a promotion that was killed leaves it so: run that again")
    rollback = Rollback(name=name, withdrawn=found[CHAMPION], restored=found[PREVIOUS], at=at, reason=reason)
    MlflowClient().set_registered_model_tag(name, ROLLBACK, rollback.to_json())
    return rollback


def swap(rollback: Rollback) -> tuple[Promotion | None, Promotion | None]:
    """Exchange champion and previous and mark the withdrawn version; again after a kill, too.

    Returns the promotion that is undone, with what undid it, and that of the restored version, which stands again; None
    where none is recorded (an alias was set by hand).
    """
    client, name = MlflowClient(), rollback.name
    client.set_registered_model_alias(name, CHAMPION, rollback.restored)
    client.set_registered_model_alias(name, PREVIOUS, rollback.withdrawn)
    client.set_model_version_tag(name, rollback.withdrawn, ROLLED_BACK,
                                 f"to version {rollback.restored} at {rollback.at.isoformat()}: {rollback.reason}")
    client.delete_model_version_tag(name, rollback.restored, ROLLED_BACK)
    undone, standing = (_latest_promotion(name, version) for version in (rollback.withdrawn, rollback.restored))
    if undone is not None:
        undone = replace(undone, rolled_back_to=rollback.restored, rolled_back_at=rollback.at,
                         rollback_reason=rollback.reason)
    for promotion in (undone, standing):
        if promotion is not None:
            _describe(promotion)
    return undone, standing


def end_rollback(rollback: Rollback) -> None:
    """Say that everything about it is done."""
    MlflowClient().delete_registered_model_tag(rollback.name, ROLLBACK)


def _latest_promotion(name: str, version: str) -> Promotion | None:
    found = [Promotion.from_json(text) for key, text in _version(name, version).tags.items() if key.startswith(RECORD)]
    return max((promotion for promotion in found if promotion.promoted), key=lambda p: p.day, default=None)


def _describe(promotion: Promotion) -> None:
    name, version = promotion.model_name, promotion.model_version
    description = with_promotion(_version(name, version).description or "", promotion)
    MlflowClient().update_model_version(name, version, description=description)


def _version(name: str, version: str) -> ModelVersion:
    return MlflowClient().get_model_version(name, version)
