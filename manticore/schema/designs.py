"""A recipe of architecture search: one study, as ``manticore design`` runs it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from manticore.design_settings import Design
from manticore.errors import ManticoreError
from manticore.option_sets import Settings
from manticore.option_types import Name, Seed
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
    # a space says in its own words which layers and classes there are
    known = options_of("space", section.space)
    plain = {name: value for name, value in section.space_options.items() if not isinstance(value, dict | list)}
    unknown = {name: value for name, value in section.space_options.items() if name not in (known or {})}
    yield from options(("design", "space_options"), "space", section.space, {**plain, **unknown})
    yield from options(("design", "method_options"), "design", section.method, section.method_options)
    for name, option in (known or {}).items():
        if option.default == "required" and name not in section.space_options:
            yield ("design", "space_options"), f"space {section.space!r} needs {name}. Fix: {name}: … ({option.help})"
    yield from password("design", section.storage)
    if isinstance(section.text, str):
        try:
            find_text(section.text)
        except ManticoreError as error:
            yield ("design", "text"), str(error)
