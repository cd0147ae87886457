"""Text from elsewhere (names, paths, what a model wrote) made fit to be printed on a terminal."""

from __future__ import annotations

import logging
import re

_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@]*):\S*@|\b((?:ssl)?password\s*=\s*)[^\s&]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with the passwords of its URLs left out: ``postgresql://user@host``."""
    return _PASSWORD.sub(lambda found: f"{found[1]}@" if found[1] is not None else f"{found[2]}***", text)


def printable(text: str) -> str:
    """The text with every character that could move the cursor, change colours or hide text written as its escape.

    New lines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """:func:`printable` text whose new lines and tabs are escaped too: a name cannot pass for a line of its own."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


class OneLineFormatter(logging.Formatter):
    """Each warning on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _escaped(character: str) -> str:
    # spaces of other widths and what this version of Unicode does not know yet do no harm
    if character.isspace() and character not in "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029":
        return character
    return character.encode("unicode_escape").decode("ascii")
