"""The folder that a reproduction leaves: tables as Markdown and CSV, figures as PNG, and all of it as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from mail_core.evaluation import page
from mail_core.evaluation.page import Table

PAGE = "report.html"


class Book:
    """Writes files as they come, and the page at the end."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files: list[Path] = []
        """Written so far."""
        self._parts: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        """A heading on the page, and a paragraph below it."""
        self._parts += [page.heading(title), *([page.paragraph(text)] if text else [])]

    def tables(self, name: str, tables: Sequence[Table], numbers: Table) -> None:
        """`<name>.md` and the page get `tables`, `<name>.csv` gets `numbers`."""
        self._write(f"{name}.md", "\n".join(map(page.markdown, tables)).encode())
        self._write(f"{name}.csv", page.csv_text(numbers).encode())
        self._parts += map(page.html, tables)

    def figure(self, name: str, png: bytes, description: str) -> None:
        """`<name>.png`, and in the page."""
        self._write(f"{name}.png", png)
        self._parts.append(page.picture(png, description))

    def close(self, title: str) -> None:
        """Write the page."""
        self._write(PAGE, page.page(title, self._parts).encode())

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        self.files.append(path)
