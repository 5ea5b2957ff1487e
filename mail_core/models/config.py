"""Reading of frozen configuration dataclasses from JSON documents, and the checks that they share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Mapping, Sequence, TypeVar

from mail_core.errors import InputError

Config = TypeVar("Config")


def read_config(config_type: type[Config], document: Any, key: str) -> Config:
    """Build `config_type` from a mapping; absent keys take their defaults, lists become tuples.

    Raises:
        InputError: not a mapping, an unknown key, or (from the type itself) a value that does not fit.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{key}: expected a mapping, found {document!r}")
    known = [f.name for f in fields(config_type)]  # type: ignore[arg-type]
    for name in document:
        if name not in known:
            raise InputError(f"{key}.{name}: unknown key; known keys: {', '.join(known)}")
    return config_type(**{n: tuple(v) if isinstance(v, list) else v for n, v in document.items()})


def check_share(value: Any, key: str) -> None:
    """Raise InputError unless 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{key}: {value!r} (expected 0 <= x < 1)")


def check_positive(value: Any, key: str) -> None:
    """Raise InputError unless value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{key}: {value!r} (expected a number above 0)")


def check_size(value: Any, key: str) -> None:
    """Raise InputError unless value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key}: {value!r} (expected a whole number above 0)")


def check_sizes(values: Sequence[Any], key: str, count: int) -> None:
    """Raise InputError unless values are `count` whole numbers above 0."""
    if not isinstance(values, tuple) or len(values) != count:
        raise InputError(f"{key}: {values!r} (expected {count} layer sizes)")
    for value in values:
        check_size(value, key)


def check_flag(value: Any, key: str) -> None:
    """Raise InputError unless value is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{key}: {value!r} (expected true or false)")


def check_choice(value: Any, key: str, allowed: Sequence[str]) -> None:
    """Raise InputError unless value is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{key}: {value!r} (expected one of {', '.join(allowed)})")
