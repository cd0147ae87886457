"""A recipe of architecture search: one study, as ``manticore design`` runs it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from manticore.design_settings import Design
from manticore.errors import ManticoreError
from manticore.option_sets import Settings
from manticore.option_types import Name, Primitives, Seed
from manticore.schema.consistency import Finding, options, password
from manticore.schema.options import options_of
from manticore.tasks.text_sources import find_text


class DesignRecipe(Settings):
    """What `manticore design` does."""

    name: Name
    """Name of the study, and of its folder."""
    seed: Seed = 0
    """Every random stream is derived from it."""
    design: Design
    """The search itself."""


def design_findings(section: Design) -> Iterator[Finding]:
    """What is wrong between the options of a study, or not there on this machine."""
    known = options_of("space", section.space) or {}
    # a space says in its own words which classes there are
    judged = {
        name: value
        for name, value in section.space_options.items()
        if not isinstance(value, dict | list) or name not in known or known[name].type == Primitives
    }
    found = list(options(("design", "space_options"), "space", section.space, judged))
    yield from found
    if not found:
        yield from _options_of_layers(judged)
    yield from options(("design", "method_options"), "design", section.method, section.method_options)
    for name, option in known.items():
        if option.default == "required" and name not in section.space_options:
            yield ("design", "space_options"), f"space {section.space!r} needs {name}. Fix: {name}: … ({option.help})"
    yield from password("design", section.storage)
    if isinstance(section.text, str):
        try:
            find_text(section.text)
        except ManticoreError as error:
            yield ("design", "text"), str(error)


def _options_of_layers(given: Mapping[str, Any]) -> Iterator[Finding]:
    """Options that a primitive does not have, or whose values it cannot take."""
    primitives = given.get("primitives", {})
    for key, entry in primitives.items() if isinstance(primitives, dict) else enumerate(primitives):
        if isinstance(entry, list) and len(entry) > 1:
            yield from options(("design", "space_options", "primitives", key, 1), "layer", entry[0], entry[1])
