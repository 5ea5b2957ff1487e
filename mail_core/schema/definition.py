"""What a dataset is: frozen dataclasses that `mail_core.schema.reader` fills from `schemas/<dataset>.yaml`.

Standard library only, so that the models can be laid out from a schema with torch alone.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field, replace
from typing import Mapping, Sequence

# Columns that the lake's tables and the export carry beside the dataset's own; a feature may not take their names.
DAY, TIME, USER, ITEM, LABEL, CONVERSION = "day", "time", "user", "item", "label", "conversion"
USER_KEY, MASKED, UNSEEN, WEIGHT = "user_key", "masked", "unseen", "weight"
SYSTEM_COLUMNS = (DAY, TIME, USER, ITEM, LABEL, CONVERSION, USER_KEY, MASKED, UNSEEN, WEIGHT)
BEHAVIOR_PREFIX = "behavior_"

PADDING, UNKNOWN, MISSING, FIRST_CODE = 0, 1, 2, 3
"""Codes of every vocabulary: padding, a value not in it, NULL, and the first real value (the most frequent)."""

COLUMN_TYPES = ("string", "int", "long", "double", "epoch_seconds")
FEATURE_KINDS = ("categorical", "multi", "dense")
DERIVATIONS = ("hour", "day_of_week", "day_part")
TRANSFORMS = ("identity", "log1p")
RETAINED_TABLES = ("raw_impressions", "raw_behaviors", "users", "items", "quarantine", "features", "checks",
                   "evaluations", "promotions", "ctr_scores")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a raw file."""

    name: str
    """Name in the lake."""
    header: str
    """Name in the file's header line, to the letter."""
    type: str
    """One of COLUMN_TYPES; `epoch_seconds` becomes a timestamp."""
    nulls: tuple[str, ...] = ()
    """Cell texts that mean NULL; empty: NULL is not allowed in this column."""
    values: tuple[str | int, ...] = ()
    """The allowed values; empty: any."""
    minimum: float | None = None
    maximum: float | None = None
    separator: str | None = None
    """Set for a multi-valued column: the text between two values of a cell."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A delimited text file with a header line: `<file>`, `<file>.gz`, or a folder `<file>` of parts of either kind."""

    file: str
    columns: tuple[Column, ...]
    """In the file's order."""
    delimiter: str = ","

    def column(self, name: str) -> Column:
        """The column called `name`; KeyError where there is none (the reader has checked every reference)."""
        return {c.name: c for c in self.columns}[name]


@dataclass(frozen=True, kw_only=True)
class ImpressionLog(RawFile):
    """One row an impression; the named columns play the roles."""

    user: str
    time: str
    item: str
    label: str
    negative_label: str | None = None
    """Where set, label + negative label must be 1."""
    conversion: str | None = None
    """Where set, 1 for a click that the user converted after, else 0; there is no conversion without a click."""


@dataclass(frozen=True, kw_only=True)
class BehaviorLog(RawFile):
    """One row a behaviour of a user."""

    user: str
    time: str
    action: str
    item_fields: Mapping[str, str]
    """Behaviour column -> item feature whose vocabulary and embedding it shares."""


@dataclass(frozen=True, kw_only=True)
class Snapshot(RawFile):
    """Users or items, one row a key."""

    key: str
    static: bool
    """True: the newest snapshot holds for every day. False: the newest one at or before the impression's day."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One model input. Names are unique over all groups and are the columns of the `features` table."""

    name: str
    group: str
    """user, context or item."""
    kind: str
    """categorical: one value; multi: a list of values; dense: a number."""
    column: str
    """Source column: of users (group user), items (item) or impressions (context; unused where derived)."""
    derive: str | None = None
    """Context only, local time: hour, day_of_week (1 Monday .. 7), day_part (weekday/weekend x quarter of the day)."""
    min_count: int = 1
    """Values rarer than this in the training days are encoded as unknown."""
    hash_buckets: int = 0
    """Above 0: no vocabulary, codes by a stable hash into so many buckets."""
    max_values: int = 1
    """Multi-valued only: values kept of a cell, the first ones."""
    transform: str = "identity"
    """Dense only, before standardisation with statistics of the training days."""
    id_dropout: float = 0.0
    """Share of training values replaced by `unknown`, so that the unknown row is trained."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Context of a scored candidate that brings none of its own."""

    time: datetime.time
    """Local time on the scored day; derived context follows from it."""
    context: Mapping[str, str | int | float | tuple[str | int | float, ...] | None]
    """Context feature (not derived) -> value, a tuple for a multi-valued one; None (NULL) where the YAML has none."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a day's `features` may be, beside the days before it; their median is what `usual` means here."""

    days: int = 7
    """Days before the checked one that are looked at: a week, so that each weekday is among them."""
    least_days: int = 3
    """Fewer of them with the figure, and the figure passes: two days are no custom."""
    rows: tuple[float, float] = (0.5, 2.0)
    """Rows, as multiples of the usual number: a half is an outage or half a delivery, the double a delivery twice over;
    weekends and sales lie between."""
    ctr: tuple[float, float] = (0.5, 2.0)
    """CTR, as multiples of the usual one: lost clicks or lost impressions move it further than people do."""
    unknown_rise: float = 0.2
    """By how much the share of values of a feature that the days before do not have may lie above the usual share:
    another coding of an ID brings it near 1."""
    new_users_change: float = 0.2
    """By how much the share of rows without behaviour may differ from the usual share: a lost behaviour log brings it
    near 1, a joined-up one near 0."""
    null_rise: float = 0.1
    """By how much the share of NULL in a feature may lie above the usual share."""
    ignored: tuple[str, ...] = ()
    """Figures without limits, such as `unknown.campaign_id` where every campaign is of one day."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A dataset. Everything that names a column is derived from here."""

    name: str
    timezone: str
    sequence_length: int
    """L: behaviours kept for an impression, newest first."""
    behavior_days: int
    """Look-back: behaviours count from this many local days before the impression's day."""
    first_day: datetime.date
    last_day: datetime.date | None = None
    """Times outside [first_day, last_day] are impossible (no last day: the delivery's own day, or today)."""
    impressions: ImpressionLog
    behaviors: BehaviorLog
    users: Snapshot
    items: Snapshot
    features: tuple[Feature, ...]
    """User, context, item, each in the YAML's order."""
    serving: Serving
    retention_days: Mapping[str, int]
    checks: Checks = field(default=Checks(), repr=False)
    """Of the checks before training; not in the fingerprint, because no table, code or version depends on them."""
    text: str = field(default="", repr=False, compare=False)
    """The YAML it was read from, kept so that a model version can carry its schema."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content (comments and layout of the YAML do not count)."""
        content = repr(replace(self, text=""))
        if self.impressions.conversion is None:  # exports and versions older than this role keep their schema
            content = content.replace(", conversion=None)", ")", 1)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def outcomes(self) -> dict[str, str]:
        """What came of an impression: column in `features` and in the export -> raw column. CONVERSION is optional."""
        log = self.impressions
        return {LABEL: log.label, **({} if log.conversion is None else {CONVERSION: log.conversion})}

    @property
    def conversion_scores(self) -> tuple[str, ...]:
        """Columns of `ctr_scores` beside the CTR, NULL for a version without them."""
        return () if self.impressions.conversion is None else ("cvr", "ctcvr")

    def group(self, group: str) -> tuple[Feature, ...]:
        """Features of one group (`user`, `context`, `item`) in order."""
        return tuple(f for f in self.features if f.group == group)

    @property
    def logged_context(self) -> tuple[Feature, ...]:
        """Context features that an impression brings; the others are derived from its time."""
        return tuple(f for f in self.group("context") if not f.derive)

    def feature(self, name: str) -> Feature:
        """The feature called `name`; KeyError where there is none."""
        return {f.name: f for f in self.features}[name]

    @property
    def user_id_feature(self) -> str | None:
        """Name of the user attribute that is the user's own ID, where the schema lists it."""
        return next((f.name for f in self.group("user") if f.column == self.users.key), None)

    @property
    def action_column(self) -> str:
        """Name of the list column of actions in `features`, also the name of their vocabulary."""
        return BEHAVIOR_PREFIX + self.behaviors.action

    @property
    def behavior_item_columns(self) -> dict[str, str]:
        """List column in `features` -> vocabulary (item feature) for the item part of a behaviour."""
        return {BEHAVIOR_PREFIX + column: feature for column, feature in self.behaviors.item_fields.items()}

    @property
    def behavior_vocabularies(self) -> dict[str, str]:
        """Every list column in `features` -> its vocabulary: the action's, then the item fields'."""
        return {self.action_column: self.action_column, **self.behavior_item_columns}


def check_figures(features: Sequence[Feature]) -> tuple[str, ...]:
    """Names of what is checked of a day: rows, ctr, new_users, unknown.FEATURE and null.FEATURE, of features that are
    not derived from the time."""
    own = [f for f in features if not f.derive]
    return ("rows", "ctr", "new_users", *(f"unknown.{f.name}" for f in own if f.kind != "dense"),
            *(f"null.{f.name}" for f in own))
