"""schemas/<dataset>.yaml -> Schema. Every departure is an InputError naming the file, the key and what is allowed."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, replace
from datetime import date, time
from difflib import get_close_matches
from keyword import iskeyword
from pathlib import Path
from typing import Any, Iterable, Mapping
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from mail_core.errors import InputError
from mail_core.schema.definition import (BEHAVIOR_PREFIX, COLUMN_TYPES, DAY, DERIVATIONS, FEATURE_KINDS,
                                         RETAINED_TABLES, SYSTEM_COLUMNS, TRANSFORMS, BehaviorLog, Checks, Column,
                                         Feature, ImpressionLog, RawFile, Schema, Serving, Snapshot, check_figures)

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_EXTENDS = "extends"
_LISTED = 20
"""Names that an error lists, at most."""
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "int": int, "long": int, "double": (int, float)}
_SOURCES = {"user": "users", "item": "items", "context": "impressions"}
"""Feature group -> the raw file that its columns come from."""


def load_schema(name_or_path: str) -> Schema:
    """Read a schema by path, or by name from the `schemas` folder (of the working directory, then of the checkout).

    Raises:
        InputError: no such file, not YAML, an unknown or missing key, or a value that does not fit.
    """
    path = _find(name_or_path)
    return parse_schema(path.read_text(encoding="utf-8"), str(path))


def _find(name_or_path: str) -> Path:
    candidates = [Path(name_or_path), Path("schemas") / f"{name_or_path}.yaml", SCHEMAS / f"{name_or_path}.yaml"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise InputError(f"schema {name_or_path!r}: none of {', '.join(map(str, candidates))} is a file")
    return path


def parse_schema(text: str, source: str) -> Schema:
    """Parse YAML text; `source` names the file in errors. Raises InputError as `load_schema` does.

    `extends: NAME` begins with another schema, which extends none itself: mappings are joined key by key, any other
    value takes the place of its. The result's text is the whole of both.
    """
    document = _yaml(text, source)
    if isinstance(document, dict) and _EXTENDS in document:
        path = _find(str(document.pop(_EXTENDS)))
        document = _joined(_yaml(path.read_text(encoding="utf-8"), str(path)), document)
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return replace(_SchemaReader(source).schema(document), text=text)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {error}") from error


def _joined(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _joined(base[key], value) if key in base else value for key, value in changes.items()}}


def _those(what: str, names: Iterable[str], wanted: str) -> str:
    """The names that there are, for an error; of many the nearest to the wanted one."""
    found = list(names)
    if len(found) <= _LISTED:
        return f"{what}: {', '.join(found)}"
    near = get_close_matches(wanted, found, n=3, cutoff=0)
    return f"nearest of {len(found)} {what}: {', '.join(near)}"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys, so that one of two hundred columns could be lost unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands there twice",
                                                  key.start_mark)
            seen.add(key.value)
        return node


class _SchemaReader:
    """Walks the document; `key` is the dotted path that errors name."""

    def __init__(self, source: str):
        self.source = source

    def fail(self, key: str, problem: str) -> InputError:
        return InputError(f"{self.source}: {key}: {problem}")

    def mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise self.fail(key, f"expected a mapping with text keys, found {value!r}")
        return value

    def keys(self, value: Any, key: str, cls: type, left_out: tuple[str, ...] = ()) -> Mapping[str, Any]:
        """`value` as a mapping whose keys are the fields of `cls`, less `left_out`, with all required ones there."""
        node = self.mapping(value, key)
        allowed = {f.name: f.default is MISSING for f in fields(cls) if f.name not in left_out}
        for name in node:
            if name not in allowed:
                raise self.fail(f"{key}.{name}", f"unknown key; allowed: {', '.join(allowed)}")
        for name, required in allowed.items():
            if required and name not in node:
                raise self.fail(f"{key}.{name}", "required key is missing")
        return node

    def typed(self, node: Mapping[str, Any], name: str, key: str, kind: type | tuple[type, ...],
              default: Any = None) -> Any:
        value = node.get(name, default)
        ok = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if name in node and not ok:
            names = kind.__name__ if isinstance(kind, type) else "/".join(k.__name__ for k in kind)
            raise self.fail(f"{key}.{name}", f"expected {names}, found {value!r} ({type(value).__name__})")
        return value

    def choice(self, value: Any, key: str, allowed: tuple[str, ...]) -> str:
        if value not in allowed:
            raise self.fail(key, f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def name(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value) or iskeyword(value):
            raise self.fail(key, f"{value!r} is not a name of lower-case letters, digits and underscores "
                                 "(Python's keywords cannot be names)")
        return value

    def whole(self, node: Mapping[str, Any], name: str, key: str, least: int, default: int) -> int:
        value = self.typed(node, name, key, int, default)
        if value < least:
            raise self.fail(f"{key}.{name}", f"{value} is below {least}")
        return value

    def schema(self, document: Any) -> Schema:
        node = self.keys(document, "schema", Schema, left_out=("text",))
        timezone = self.typed(node, "timezone", "schema", str)
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise self.fail("schema.timezone", f"{timezone!r} is not an IANA time zone") from error
        logs = {role: self.raw_file(node, role, cls) for role, cls in (
            ("impressions", ImpressionLog), ("behaviors", BehaviorLog), ("users", Snapshot), ("items", Snapshot))}
        self.roles(logs)
        features = self.features(node["features"], logs)
        self.behavior_fields(logs["behaviors"], features, logs["items"])
        first, last = (self.typed(node, name, "schema", date) for name in ("first_day", "last_day"))
        if last is not None and last < first:
            raise self.fail("schema.last_day", f"{last} is before first_day {first}")
        return Schema(name=self.name(node["name"], "schema.name"), timezone=timezone,
                      sequence_length=self.whole(node, "sequence_length", "schema", 1, 100),
                      behavior_days=self.whole(node, "behavior_days", "schema", 1, 1),
                      first_day=first, last_day=last, features=features,
                      serving=self.serving(node["serving"], features, logs["impressions"]),
                      retention_days=self.retention(node["retention_days"]),
                      checks=self.checks(node.get("checks", {}), check_figures(features)), **logs)

    def raw_file(self, document: Mapping[str, Any], role: str, cls: type) -> Any:
        node = self.keys(document[role], role, cls)
        columns = tuple(self.column(value, name, f"{role}.columns.{name}")
                        for name, value in self.mapping(node["columns"], f"{role}.columns").items())
        plain = {name: self.typed(node, name, role, bool if name == "static" else str)
                 for name in node if name not in ("columns", "item_fields")}
        if len(plain.get("delimiter", ",")) != 1:
            raise self.fail(f"{role}.delimiter", f"{plain['delimiter']!r} is not one character")
        if "/" in plain["file"] or plain["file"] in ("", ".", ".."):
            raise self.fail(f"{role}.file", f"{plain['file']!r} is not a file name inside the source folder")
        if "item_fields" in node:
            plain["item_fields"] = self.mapping(node["item_fields"], f"{role}.item_fields")
        return cls(columns=columns, **plain)

    def column(self, value: Any, name: str, key: str) -> Column:
        self.name(name, key)
        node = self.keys({"header": name, **self.mapping(value, key)}, key, Column, left_out=("name",))
        if name == DAY:
            raise self.fail(key, f"the name {DAY!r} is taken by the pipeline; give the column another and its header")
        kind = self.choice(node["type"], f"{key}.type", COLUMN_TYPES)
        values, nulls = (tuple(self.typed(node, n, key, list, [])) for n in ("values", "nulls"))
        if not all(isinstance(text, str) for text in nulls):
            raise self.fail(f"{key}.nulls", f"expected quoted texts, found {list(nulls)!r}")
        for allowed in values:
            if kind not in _PYTHON_TYPES or not isinstance(allowed, _PYTHON_TYPES[kind]) or isinstance(allowed, bool):
                raise self.fail(f"{key}.values", f"{allowed!r} is not a {kind} (quote text such as \"1_2\")")
        bounds = {n: self.typed(node, n, key, (int, float)) for n in ("minimum", "maximum")}
        if kind == "string" and any(b is not None for b in bounds.values()):
            raise self.fail(key, "minimum and maximum are for numbers, the type is string")
        return Column(name=name, header=self.typed(node, "header", key, str), type=kind, nulls=nulls, values=values,
                      separator=self.typed(node, "separator", key, str), **bounds)

    def roles(self, logs: Mapping[str, Any]) -> None:
        """Each role names a column of its file, of a type that fits."""
        for role, names in (("impressions", ("user", "time", "item", "label", "negative_label", "conversion")),
                            ("behaviors", ("user", "time", "action")), ("users", ("key",)), ("items", ("key",))):
            types = {c.name: c.type for c in logs[role].columns}
            for name in names:
                column = getattr(logs[role], name)
                if column is None:
                    continue
                if column not in types:
                    raise self.fail(f"{role}.{name}", f"no column {column!r}; {_those('columns', types, column)}")
                fit = {"time": ("epoch_seconds",), "label": ("int",), "negative_label": ("int",),
                       "conversion": ("int",)}.get(name, ("string", "int", "long"))
                if types[column] not in fit:
                    raise self.fail(f"{role}.{name}",
                                    f"column {column!r} is {types[column]}, expected {' or '.join(fit)}")
                if name == "conversion" and logs[role].column(column).nulls:
                    raise self.fail(f"{role}.{name}", f"column {column!r} can be NULL, expected 0 or 1 in every row")
        for left, right in ((("impressions", "user"), ("users", "key")), (("impressions", "item"), ("items", "key")),
                            (("impressions", "user"), ("behaviors", "user"))):
            a, b = (logs[role].column(getattr(logs[role], name)).type for role, name in (left, right))
            if a != b:
                raise self.fail(".".join(left), f"type {a} differs from {'.'.join(right)}, {b}")

    def features(self, value: Any, logs: Mapping[str, Any]) -> tuple[Feature, ...]:
        groups = self.mapping(value, "features")
        if set(groups) != {"user", "context", "item"}:
            raise self.fail("features", f"groups must be user, context and item, found {', '.join(groups)}")
        found = [self.feature(spec, name, group, logs) for group in ("user", "context", "item")
                 for name, spec in self.mapping(groups[group], f"features.{group}").items()]
        for feature in found:
            key = f"features.{feature.group}.{feature.name}"
            if feature.name in SYSTEM_COLUMNS or feature.name.startswith(BEHAVIOR_PREFIX):
                raise self.fail(key, f"the pipeline takes the names {', '.join(SYSTEM_COLUMNS)} and {BEHAVIOR_PREFIX}*")
            if [f.name for f in found].count(feature.name) > 1:
                raise self.fail(key, "the name stands in two groups")
        return tuple(found)

    def feature(self, value: Any, name: str, group: str, logs: Mapping[str, Any]) -> Feature:
        key = f"features.{group}.{name}"
        self.name(name, key)
        node = self.keys({"column": name, **self.mapping(value, key)}, key, Feature, left_out=("name", "group"))
        kind = self.choice(node["kind"], f"{key}.kind", FEATURE_KINDS)
        derive = node.get("derive")
        if derive is not None:
            self.choice(derive, f"{key}.derive", DERIVATIONS)
            if group != "context" or kind != "categorical":
                raise self.fail(f"{key}.derive", "only a categorical context feature is derived from the time")
        else:
            self.source_column(node["column"], key, kind, logs[_SOURCES[group]])
        dropout = self.typed(node, "id_dropout", key, (int, float), 0.0)
        if not 0 <= dropout < 1 or (dropout and kind != "categorical"):
            raise self.fail(f"{key}.id_dropout", f"{dropout} (expected 0 <= x < 1, on a categorical feature)")
        return Feature(name=name, group=group, kind=kind, column=node["column"], derive=derive,
                       id_dropout=float(dropout), min_count=self.whole(node, "min_count", key, 1, 1),
                       hash_buckets=self.whole(node, "hash_buckets", key, 0, 0),
                       max_values=self.whole(node, "max_values", key, 1, 1),
                       transform=self.choice(node.get("transform", "identity"), f"{key}.transform", TRANSFORMS))

    def source_column(self, column: str, key: str, kind: str, raw: RawFile) -> None:
        columns = {c.name: c for c in raw.columns}
        if column not in columns:
            raise self.fail(f"{key}.column",
                            f"{raw.file} has no column {column!r}; {_those('columns', columns, column)}")
        source = columns[column]
        if (kind == "multi") != (source.separator is not None):
            raise self.fail(f"{key}.kind", f"{kind} does not fit column {column!r}: "
                                           "multi goes with a separator, the others without")
        if (kind == "dense" and source.type not in ("int", "long", "double")) or \
                (kind != "dense" and source.type in ("double", "epoch_seconds")):
            raise self.fail(f"{key}.kind", f"{kind} does not fit column {column!r} of type {source.type}")

    def behavior_fields(self, behaviors: BehaviorLog, features: tuple[Feature, ...], items: Snapshot) -> None:
        names = {f.name: f for f in features if f.group == "item" and f.kind == "categorical"}
        types = {c.name: c.type for c in behaviors.columns}
        if not behaviors.item_fields:
            raise self.fail("behaviors.item_fields", "at least one item field is needed")
        for column, feature in behaviors.item_fields.items():
            key = f"behaviors.item_fields.{column}"
            if column not in types:
                raise self.fail(key, f"no such column; {_those('columns', types, column)}")
            if feature not in names:
                raise self.fail(key, f"{feature!r} is not a categorical item feature; "
                                     f"{_those('categorical ones', names, feature)}")
            if types[column] != items.column(names[feature].column).type:
                raise self.fail(key, f"type {types[column]} differs from that of item feature {feature!r}")

    def serving(self, value: Any, features: tuple[Feature, ...], impressions: ImpressionLog) -> Serving:
        node = self.mapping(value, "serving")
        try:
            clock = time.fromisoformat(self.typed({"time": "", **node}, "time", "serving", str))
        except ValueError as error:
            raise self.fail("serving.time", "expected a quoted local time such as \"20:00\"") from error
        wanted = {f.name: impressions.column(f.column) for f in features if f.group == "context" and f.derive is None}
        given = {name: value for name, value in node.items() if name != "time"}
        missing = [name for name, column in wanted.items() if not column.nulls and name not in given]
        unknown = [name for name in given if name not in wanted]
        if missing or unknown:
            raise self.fail("serving", "expected time and each context feature that is not derived, those that may be "
                                       f"NULL excepted; missing: {', '.join(missing) or 'none'}; no such feature: "
                                       f"{', '.join(unknown) or 'none'}")
        context = {name: self.serving_value(value, f"serving.{name}", wanted[name]) for name, value in given.items()}
        context |= {name: None for name in wanted if name not in given}
        return Serving(time=clock, context=context)

    def serving_value(self, value: Any, key: str, column: Column) -> Any:
        """`value` as it will stand in the column: of its type, a tuple of such where it is multi-valued."""
        if column.separator and not isinstance(value, list):
            raise self.fail(key, f"{value!r} is not a list")
        for entry in value if column.separator else [value]:
            if not isinstance(entry, _PYTHON_TYPES[column.type]) or isinstance(entry, bool):
                raise self.fail(key, f"{entry!r} is not a {column.type}")
        return tuple(value) if column.separator else value

    def checks(self, value: Any, figures: tuple[str, ...]) -> Checks:
        node, usual = self.keys(value, "checks", Checks), Checks()
        ignored = self.typed(node, "ignored", "checks", list, [])
        for figure in ignored:
            self.choice(figure, "checks.ignored", figures)
        found = Checks(
            days=self.whole(node, "days", "checks", 1, usual.days),
            least_days=self.whole(node, "least_days", "checks", 1, usual.least_days), ignored=tuple(ignored),
            rows=self.multiples(node, "rows", usual.rows), ctr=self.multiples(node, "ctr", usual.ctr),
            unknown_rise=self.share(node, "unknown_rise", usual.unknown_rise),
            new_users_change=self.share(node, "new_users_change", usual.new_users_change),
            null_rise=self.share(node, "null_rise", usual.null_rise))
        if found.least_days > found.days:
            raise self.fail("checks.least_days", f"{found.least_days} of {found.days} days")
        return found

    def multiples(self, node: Mapping[str, Any], name: str, default: tuple[float, float]) -> tuple[float, float]:
        pair = self.typed(node, name, "checks", list, list(default))
        numbers = [n for n in pair if isinstance(n, (int, float)) and not isinstance(n, bool)]
        if len(pair) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= 1 <= numbers[1]:
            raise self.fail(f"checks.{name}", f"expected [least, most], multiples of the usual value such as "
                                              f"[0.5, 2.0], found {pair!r}")
        return float(numbers[0]), float(numbers[1])

    def share(self, node: Mapping[str, Any], name: str, default: float) -> float:
        value = self.typed(node, name, "checks", (int, float), default)
        if not 0 <= value <= 1:
            raise self.fail(f"checks.{name}", f"{value} is not a share between 0 and 1")
        return float(value)

    def retention(self, value: Any) -> Mapping[str, int]:
        node = self.mapping(value, "retention_days")
        for table in node:
            self.choice(table, f"retention_days.{table}", RETAINED_TABLES)
        return {table: self.whole(node, table, "retention_days", 1, 1) for table in node}
