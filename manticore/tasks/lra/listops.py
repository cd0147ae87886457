"""ListOps of the Long Range Arena: nested operations on digits, whose value is the label.

Source: Nangia and Bowman 2018, arXiv 1804.06028, with the settings of Tay et al. 2020, arXiv 2011.04006: trees up to
ten levels deep, two to ten arguments, more than 500 and fewer than 2,000 symbols (operators, digits and closing
brackets). The released data were drawn without a seed, so what is made here has their distribution, not their rows.

    [MAX 1 [MIN 7 4 ] 2 ]  =  4        in official files:  ( ( ( ( [MAX 1 ) ( ( ( [MIN 7 ) 4 ) ] ) ) 2 ) ] )

Every example has a random stream of its own, named by seed, split and index: the first examples of a split are the
same however many are made.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from manticore.errors import ManticoreError, about, told
from manticore.tasks.lra.records import label_of, refuse_missing
from manticore.writing import write_text

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "]"
SYMBOLS = ("<pad>", *OPERATORS, CLOSE, *map(str, range(10)))
"""What the ids stand for; padding is 0, as in the official pipeline. That has no fixed order of the other symbols."""
IDS = {symbol: index for index, symbol in enumerate(SYMBOLS)}
COLUMNS = ("Source", "Target")
"""Header of the official files."""
_RELEASE = "give the release's tab-separated file"

MAX_DEPTH = 10
MAX_ARGUMENTS = 10
SHORTEST, LONGEST = 501, 1999
"""Symbols of an accepted tree."""
OPERATOR_PROBABILITY = 0.25

Example = tuple[list[int], int]
"""Ids of the symbols, without parentheses, and the value."""


def examples(
    split: str, count: int | None = None, *, seed: int = 0, shortest: int = SHORTEST, longest: int = LONGEST
) -> Iterator[Example]:
    """The first ``count`` examples of a split.

    Args:
        split: part of the name of the random streams: no two splits share one.
        count: how many; None: no end.
        seed: of the data.
        shortest: symbols of an accepted tree, at least; with other bounds than the defaults it is no longer LRA's task.
        longest: at most.
    """
    for index in itertools.count() if count is None else range(count):
        # a text as seed is hashed to 512 bits: 32 would give two of 100,000 examples the same stream
        yield draw_example(random.Random(f"listops/{seed}/{split}/{index}").random, shortest, longest)


def draw_example(uniform: Callable[[], float], shortest: int = SHORTEST, longest: int = LONGEST) -> Example:
    """Draws trees until one has an allowed length.

    Args:
        uniform: draws from [0, 1), and is all the randomness there is.
        shortest: symbols, at least.
        longest: symbols, at most.
    """
    while True:
        ids: list[int] = []
        value = _grow(ids, 1, uniform, longest)
        if value is not None and shortest <= len(ids) <= longest:
            return ids, value


def apply(operator: str, arguments: list[int]) -> int:
    """The value of one operation; the median of an even number is the mean of the middle two, rounded down."""
    if operator == "[MIN":
        return min(arguments)
    if operator == "[MAX":
        return max(arguments)
    if operator == "[SM":
        return sum(arguments) % 10
    ordered = sorted(arguments)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def to_text(ids: Iterable[int]) -> str:
    """The official notation: pairs in parentheses, nested to the left."""
    text, _ = _pairs([SYMBOLS[index] for index in ids], 0)
    return text


def from_text(text: str) -> list[int]:
    """Ids of the symbols; parentheses are left out, as the official pipeline does since March 2021.

    Raises:
        ManticoreError: an unknown symbol.
    """
    symbols = [symbol for symbol in text.split() if symbol not in "()"]
    unknown = next((symbol for symbol in symbols if symbol not in IDS), None)
    if unknown is not None:
        expected = " ".join(SYMBOLS[1:])
        raise ManticoreError(f"unknown symbol (got {unknown!r}, expected {expected}). Fix: the release's notation")
    return [IDS[symbol] for symbol in symbols]


def write_tsv(path: str | Path, rows: Iterable[Example]) -> None:
    """Writes a file in the format of the release (``basic_train.tsv`` and so on)."""
    lines = ["\t".join(COLUMNS), *(f"{to_text(ids)}\t{value}" for ids, value in rows)]
    write_text(Path(path), "".join(f"{line}\r\n" for line in lines))


def read_tsv(path: str | Path) -> Iterator[Example]:
    """The examples of an official file.

    Raises:
        ManticoreError: a file that is not text in columns or lacks one of ``COLUMNS``, or an example with an unknown
            symbol, without symbols or with too many, or whose value is not a digit from 0 to 9.
    """
    with told(f"listops {path}", "no text in columns", _RELEASE, UnicodeDecodeError, csv.Error):
        yield from _read_rows(Path(path))


def _read_rows(path: Path) -> Iterator[Example]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        refuse_missing(COLUMNS, rows.fieldnames or (), f"listops {path}", f"{_RELEASE}, with its header")
        for row in rows:
            where = f"listops {path}, line {rows.line_num}"
            source, target = (row[column] or "" for column in COLUMNS)
            label = label_of(target, 10, where, _RELEASE)
            with about(where):
                ids = from_text(source)
            if not 1 <= len(ids) <= LONGEST + 1:
                raise ManticoreError(f"{where}: {len(ids)} symbols (expected 1 to {LONGEST + 1}). Fix: {_RELEASE}")
            yield ids, label


def _grow(ids: list[int], depth: int, uniform: Callable[[], float], longest: int) -> int | None:
    """Appends a random tree to ``ids`` and returns its value; None as soon as it is too long."""
    if depth >= MAX_DEPTH or uniform() >= OPERATOR_PROBABILITY:
        digit = int(uniform() * 10)
        ids.append(IDS["0"] + digit)
        return digit
    operator = OPERATORS[int(uniform() * len(OPERATORS))]
    ids.append(IDS[operator])
    arguments = []
    for _ in range(2 + int(uniform() * (MAX_ARGUMENTS - 1))):
        value = _grow(ids, depth + 1, uniform, longest)
        if value is None or len(ids) > longest:
            return None
        arguments.append(value)
    ids.append(IDS[CLOSE])
    return apply(operator, arguments)


def _pairs(symbols: list[str], start: int) -> tuple[str, int]:
    """The notation of the tree that begins at ``start``, and where the next one begins."""
    if symbols[start] not in OPERATORS:
        return symbols[start], start + 1
    parts, position = [symbols[start]], start + 1
    while symbols[position] != CLOSE:
        part, position = _pairs(symbols, position)
        parts.append(part)
    parts.append(CLOSE)
    return "( " * (len(parts) - 1) + parts[0] + "".join(f" {part} )" for part in parts[1:]), position + 1
