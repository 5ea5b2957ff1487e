"""How long what is left will take, from what was done before."""

from __future__ import annotations

from typing import Iterable


class Pace:
    """Seconds of finished work by kind."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """A piece of work of that kind has taken so long."""
        self._seconds.setdefault(kind, []).append(seconds)

    def expected(self, kind: str) -> float:
        """Mean seconds of the kind; of all kinds where there was none of it yet; 0 at the very start."""
        known = self._seconds.get(kind) or [each for kinds in self._seconds.values() for each in kinds]
        return sum(known) / len(known) if known else 0.0

    def left(self, kinds: Iterable[str]) -> float:
        """Seconds that all of `kinds` will take."""
        return sum(map(self.expected, kinds))


def in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
