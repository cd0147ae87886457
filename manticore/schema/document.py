"""YAML text to plain values that remember where they were written.

A subset of YAML that holds no surprises: mappings, lists and scalars. Tags (which can run code), aliases (which
can blow up), duplicate keys and keys that are not text are refused with their line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from manticore.schema.problems import Path, Place, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_STANDARD_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass
class Document:
    """Plain values, the place of each, and what was wrong on the way."""

    values: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """Where ``path`` was written; for a value that is missing, where its nearest parent was."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places[path]


class _Refused(yaml.MarkedYAMLError):
    """Something valid in YAML that a recipe may not hold."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, which refuses aliases and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _Refused(problem="aliases (*name) are not allowed", problem_mark=mark)
        if self.depth == MAX_DEPTH:
            raise _Refused(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# The scalars of YAML 1.2, whatever PyYAML takes for one: in YAML 1.1 1:30 is 90, 0100 is 64, no is false, and 1e-3 is
# text. Numbers that begin with a needless 0 stay text too, for nobody knows which of the two was meant.
_WHOLE = r"(?:0|[1-9][0-9]*)"
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_WHOLE}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        rf"[-+]?(?:\.[0-9]+|{_WHOLE}\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?{_WHOLE}[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_document(data: bytes, source: str) -> Document:
    """Parse the bytes of a recipe file; never raises for bad content, see ``Document.problems``.

    Args:
        data: the file's content.
        source: the name to use in messages.
    """
    document = Document(places={(): Place(source, 1)})

    def refuse(text: str, line: int = 1) -> Document:
        document.problems.append(Problem(Place(source, line), (), text))
        return document

    if len(data) > MAX_BYTES:
        return refuse(f"too large for a recipe (got {len(data):,} bytes, expected at most {MAX_BYTES:,})")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return refuse(f"not UTF-8 text (byte 0x{data[error.start]:02x}). Fix: save the file as UTF-8", line)
    if "\0" in text:
        return refuse("not a text file. Fix: give a YAML recipe", text.count("\n", 0, text.index("\0")) + 1)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return refuse("the recipe is empty. Fix: start from a shipped one, see `manticore ls recipes`")
        document.values = _plain(node, loader, (), document, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(error.problem or error.context).split())
        where = f" at column {mark.column + 1}" if mark else ""
        kind = "" if isinstance(error, _Refused) else "YAML syntax: "
        return refuse(f"{kind}{reason}{where}", mark.line + 1 if mark else 1)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return refuse(f"character #x{ord(text[error.position]):04x} is not allowed in YAML", line)
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(document.values, dict):
        return refuse(f"a recipe is a mapping of sections (got {type(document.values).__name__})")
    return document


def read_value(text: str) -> Any:
    """The value of an override, written as in YAML: ``3``, ``1e-3``, ``[1, 0]``, ``null``, ``text``.

    What begins with a character that no YAML value begins with is text as it stands: ``*.jsonl``.

    Raises:
        yaml.YAMLError: not valid YAML, or something a recipe may not hold.
    """
    if text[:1] in set("*@`%"):
        return text
    document = Document(places={(): Place("")})
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else _plain(node, loader, (), document, "")
    finally:
        loader.dispose()
    if document.problems:
        raise yaml.YAMLError(document.problems[0].text)
    return value


def _plain(node: yaml.Node, loader: _Loader, path: Path, document: Document, source: str) -> Any:
    """The value of a node; notes its place, and its problems if it has any."""
    line = node.start_mark.line + 1
    document.places.setdefault(path, Place(source, line))

    def problem(text: str, line: int = line) -> None:
        document.problems.append(Problem(Place(source, line), path, text))

    if node.tag not in _STANDARD_TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        problem(f"YAML tags are not allowed (got {tag}). Fix: write a plain value")
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, loader, (*path, i), document, source) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                problem("a key must be text", key_line)
                continue
            key = key_node.value
            if key in values:
                first = document.places[(*path, key)].line
                problem(f"key {key!r} is written twice (first on line {first}). Fix: keep one", key_line)
                continue
            document.places[(*path, key)] = Place(source, key_line)
            values[key] = _plain(value_node, loader, (*path, key), document, source)
        return values
    try:
        value = loader.construct_object(node)
        if isinstance(value, int):
            # what no float holds cannot be compared, divided or, beyond some thousand digits, even printed
            float(value)
        return value
    except (ValueError, OverflowError):
        problem(f"cannot be read as {node.tag.rpartition(':')[2]} (got {node.value[:60]!r})")
        return None
