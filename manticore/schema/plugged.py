"""Sections of stages that other packages bring: a recipe that names one is checked as a recipe that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, create_model

from manticore import registry
from manticore.errors import ManticoreError
from manticore.schema.consistency import Finding
from manticore.schema.recipe import Recipe
from manticore.settings import Settings


def recipe_with(values: Mapping[Any, Any]) -> tuple[type[Recipe], list[Finding]]:
    """The recipe that has the sections which ``values`` names; their packages are imported, no others.

    Args:
        values: of a recipe, unchecked.

    Returns:
        ``Recipe`` or a subclass with a field for each of these stages, in order; what is wrong with keys that belong to
        no section.
    """
    sections: dict[str, Any] = {}
    wrong: list[Finding] = []
    for key in values:
        if not isinstance(key, str) or key in Recipe.model_fields:
            continue
        try:
            if key in registry.entries("stage"):
                section = _section(key)
                sections[key] = (section | None, Field(None, description=section.__doc__ or "Of a plug-in."))
            else:
                hint = registry.did_you_mean(key, list(Recipe.model_fields))
                fix = f"{hint} Fix: choose it" if hint.endswith("?") else ", nor an installed stage. Fix: leave it out"
                wrong.append(((key,), f"unknown key{fix}, or {registry.install('stage', key)}"))
        except ManticoreError as error:
            wrong.append(((key,), str(error)))
    return create_model(Recipe.__name__, __base__=Recipe, **sections) if sections else Recipe, wrong


def plugged_names(recipe: Recipe) -> list[str]:
    """The stages of other packages that a recipe has sections for, in its order."""
    return [name for name in type(recipe).model_fields if name not in Recipe.model_fields]


def _section(name: str) -> type[Settings]:
    """What a plug-in's section is read as.

    Raises:
        ManticoreError: the package cannot be imported, or what it names is not a stage of this name.
    """
    stage = registry.resolve("stage", name)
    section, called = getattr(stage, "section", None), getattr(stage, "name", None)
    if not name.isidentifier() or hasattr(Recipe, name):
        raise registry.at_fault("stage", name, f"cannot be a section by the name {name!r}")
    if called != name or not isinstance(section, type) or not issubclass(section, Settings):
        raise registry.at_fault("stage", name, f"has no name = {name!r} and no section of manticore.settings.Settings")
    return section
