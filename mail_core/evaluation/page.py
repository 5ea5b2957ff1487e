"""Pieces of a self-contained page: a table as HTML, Markdown and CSV, an inlined picture, the page round them.

A page loads nothing: no script, no style sheet, no font, no picture from elsewhere.
"""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from html import escape
from typing import Sequence

EXCERPT = 200
"""Characters that are shown of a text that is not ours."""
_STYLE = """
:root { color-scheme: light; } body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; }
body { margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; } figure { margin: .8rem 0; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0 .3rem; font-size: 13px; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; } .note { color: #57606a; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #8c959f; }
img { max-width: 100%; height: auto; } pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text in rows and columns."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    """A sentence below it."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), self.title


def markdown(table: Table) -> str:
    """A Markdown table under its title; a bar within a cell is escaped."""
    lines = [table.header, ("---", *["---:"] * (len(table.header) - 1)), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")


def csv_text(table: Table) -> str:
    """Header and rows as CSV."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([table.header, *table.rows])
    return sink.getvalue()


def html(table: Table) -> str:
    """The table as HTML, every cell escaped."""
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "\n".join(line(row, "td") for row in table.rows)
    head = f"<caption>{escape(table.title)}</caption>\n<thead>{line(table.header, 'th')}</thead>"
    return (f'<div class="wide"><table>{head}'
            f"\n<tbody>\n{rows}\n</tbody></table></div>\n{paragraph(table.note, note=True) if table.note else ''}")


def picture(png: bytes, description: str) -> str:
    """A PNG within the page itself, with its description below."""
    data, words = base64.b64encode(png).decode("ascii"), escape(description, quote=True)
    return (f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
            f'<figcaption class="note">{words}</figcaption></figure>')


def heading(text: str) -> str:
    """A section begins."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, note: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=note' if note else ''}>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text with its lines and spaces as they are."""
    return f"<pre>{escape(text)}</pre>"


def excerpt(text: str, length: int = EXCERPT) -> str:
    """The first `length` characters of a text that is not ours, on one line; what does not print becomes an escape."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:length])
    return shown + ("..." if len(text) > length else "")


def page(title: str, parts: Sequence[str], width_rem: int = 75) -> str:
    """A whole HTML document, at most `width_rem` wide; `title` is text, `parts` are what the functions above return."""
    body = "\n".join(parts)
    return ("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            f"<title>{escape(title)}</title>\n<style>body {{ max-width: {width_rem}rem; }}{_STYLE}</style>\n</head>\n"
            f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n")
