"""Pages as a reader meets them: elements, words, rows of tables; and that nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "hr", "img", "input", "base"}


class Page(HTMLParser):
    """Elements, visible text and table cells of a page; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += f" {data}"

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def row(self, first: str) -> list[str]:
        return next(cells for row in self.rows if (cells := [" ".join(c.split()) for c in row])[0] == first)


def assert_loads_nothing(html: str) -> None:
    """No script, no frame, no address but inside the page itself."""
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value == "data:," or (value or "").startswith("#"), (tag, name, value)
            assert not name.startswith("on")
    assert not re.search(r"@import|url\((?!#)", html)
