"""Pages that load nothing from elsewhere, and tables in three forms."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser

import pytest

from mail_core.evaluation.page import Table, csv_text, heading, html, markdown, page, paragraph, picture, preformatted

ODD = 'a<b & "c" | d\''
TABLE = Table(title="A <title>", header=("name", "value"), rows=[(ODD, "1"), ("plain", "2,5")], note="n & m")


class Reader(HTMLParser):
    """Collects tags with attributes, texts of cells, and tags left open."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "caption", "title", "h1", "p", "pre", "figcaption"):
            self.cells.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def whole() -> str:
    return page(f"Title {ODD}", [heading(ODD), paragraph(ODD), preformatted(ODD), html(TABLE),
                                 picture(b"\x89PNG", ODD)])


def test_a_page_is_well_formed_and_everything_in_it_is_escaped():
    found = read(whole())
    assert not found.open
    assert found.cells.count(ODD) == 4 and f"Title {ODD}" in found.cells and "A <title>" in found.cells
    [image] = [attributes for tag, attributes in found.tags if tag == "img"]
    assert image["alt"] == ODD
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == b"\x89PNG"


def test_a_page_loads_nothing():
    text = whole()
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read(text).tags}
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?://""", text)


def test_a_table_as_csv_reads_back_and_as_markdown_keeps_its_columns():
    assert list(csv.reader(io.StringIO(csv_text(TABLE)))) == [["name", "value"], [ODD, "1"], ["plain", "2,5"]]
    lines = markdown(TABLE).splitlines()
    assert lines[2:5] == ["| name | value |", "| --- | ---: |", f"| {ODD.replace('|', chr(92) + '|')} | 1 |"]
    assert lines[-1] == "n & m"


def test_a_row_that_does_not_fit_the_header_is_a_mistake():
    with pytest.raises(AssertionError):
        Table(title="t", header=("a",), rows=[("1", "2")])
