"""Values as Spark's SQL writes them; needs no engine."""

from __future__ import annotations


def sql_literal(value: str | int) -> str:
    """`value` as a literal."""
    return str(value) if isinstance(value, int) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
