"""``key=value`` on the command line over a recipe: ``search.steps=40 components.gpt.source=./mine``."""

from __future__ import annotations

import re
from typing import Any

import yaml

from manticore.schema.document import Document, read_value
from manticore.schema.problems import Path, Place, Problem


def apply_overrides(document: Document, overrides: list[str]) -> None:
    """Write each override into the document; what cannot be written becomes one of its problems.

    An entry of a list is named by its index or by its ``name``.
    """
    for override in overrides:
        place = Place(f"override {override!r}")
        key, sign, text = override.partition("=")
        if not sign or not key.strip("."):
            document.problems.append(
                Problem(place, (), "not an override (expected key=value, for example search.steps=40)")
            )
            continue
        try:
            value = read_value(text)
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(getattr(error, "problem", None) or error).split())
            document.problems.append(Problem(place, (key,), f"the value is not valid YAML: {reason}"))
            continue
        problem = _write(document, key.split("."), value, place)
        if problem:
            document.problems.append(Problem(place, (key,), problem))


def _write(document: Document, keys: list[str], value: Any, place: Place) -> str | None:
    """Set one value; the text of the problem if the way to it is blocked."""
    container: Any = document.values
    path: Path = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        step: str | int = key
        if isinstance(container, list):
            index = _index(container, key)
            if index is None:
                names = [str(item.get("name", "?")) for item in container if isinstance(item, dict)]
                return f"no entry {key!r} (expected an index below {len(container)} or one of {', '.join(names)})"
            step = index
        elif not isinstance(container, dict):
            return f"{'.'.join(keys[:depth])} is a single value, it has no key {key!r}"
        path = (*path, step)
        if last:
            _forget(document, path)
            document.places[path] = place
            container[step] = value
        elif isinstance(container, dict) and container.get(key) is None:
            document.places[path] = place
            container[key] = {}
        container = container[step]
    return None


def _index(entries: list[Any], key: str) -> int | None:
    # other characters count as digits too, and a number may be longer than Python reads
    if re.fullmatch("[0-9]{1,9}", key):
        return int(key) if int(key) < len(entries) else None
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("name") == key:
            return index
    return None


def _forget(document: Document, path: Path) -> None:
    """Drop the places below a value that is about to be replaced."""
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
