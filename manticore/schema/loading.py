"""From a recipe's name or file, and overrides, to a checked ``Recipe``. Imports no torch; needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from manticore import registry
from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.registry import did_you_mean
from manticore.schema.consistency import Finding, inconsistencies
from manticore.schema.designs import DesignRecipe, design_findings
from manticore.schema.document import MAX_BYTES, Document, read_document
from manticore.schema.overrides import apply_overrides
from manticore.schema.plugged import recipe_with
from manticore.schema.problems import Problem, RecipeError
from manticore.schema.recipe import Recipe
from manticore.schema.validation import findings

Needs = Callable[[Mapping[str, Any]], Iterator[Finding]]
"""From well-formed sections to what they need and this machine has not."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and what it was made from."""

    recipe: Recipe
    text: str
    """The file as it was."""
    source: str
    """The file, as given."""
    overrides: tuple[str, ...]


_OF_DESIGNS = "design"
"""What the name of a shipped recipe of architecture search begins with, and the section that tells any of them."""


@cache
def shipped() -> dict[str, Path]:
    """Name → file of every recipe of a run that comes with the package."""
    return {name: file for name, file in _shipped_files("*.yaml").items() if not name.startswith(_OF_DESIGNS)}


@cache
def every_shipped() -> dict[str, Path]:
    """The same, and behind them those of architecture search."""
    return {**shipped(), **_shipped_files("*.yaml")}


@cache
def launch_configurations() -> dict[str, Path]:
    """Name → file of what comes with the package for accelerate launch, SLURM and Kubernetes."""
    return _shipped_files("accelerate/*.yaml") | _shipped_files("slurm/*.sh") | _shipped_files("kubernetes/*.yaml")


def _shipped_files(pattern: str) -> dict[str, Path]:
    import manticore.recipes

    folders = [Path(folder) for folder in manticore.recipes.__path__]
    return {file.stem: file for folder in folders for file in sorted(folder.glob(pattern))}


def find(name: str) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped one.

    Raises:
        ManticoreError: there is no such file or recipe.
    """
    path = expanded(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ManticoreError(f"{name}: is a folder (expected a recipe file). Fix: give a .yaml file")
    known = every_shipped()
    if name in known:
        return known[name]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ManticoreError(f"{name}: no such recipe file. Fix: check the path, or see `manticore ls recipes`")
    raise ManticoreError(f"no recipe {name!r}{did_you_mean(name, list(known))}")


def load_recipe(name: str, overrides: list[str] | None = None, *, needs: Needs | None = None) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: ``key=value`` texts that replace what the file says.
        needs: says what the recipe needs of this machine and is not there, such as its texts, where it is to be run
            here: :func:`manticore.stages.prerequisites.missing_prerequisites`.

    Raises:
        RecipeError: with every problem of the recipe, one line each.
        ManticoreError: there is no such recipe.
    """
    document, text = _opened(name, overrides)
    source = document.place(()).source
    if isinstance(document.values, dict):
        if _OF_DESIGNS in document.values and _OF_DESIGNS not in registry.entries("stage"):
            raise ManticoreError(f"{source}: is a recipe of architecture search. Fix: manticore design {name}")
        recipe = check(document, needs)
        if recipe is not None and not document.problems:
            return LoadedRecipe(recipe, text, source, tuple(overrides or []))
    raise RecipeError(document.problems)


@dataclass(frozen=True)
class LoadedDesign:
    """A checked recipe of architecture search and what it was made from."""

    recipe: DesignRecipe
    text: str
    """The file as it was."""
    source: str
    """The file, as given."""
    overrides: tuple[str, ...]


def is_of_designs(name: str, overrides: list[str] | None = None) -> bool:
    """Whether a recipe is one of architecture search.

    Raises:
        ManticoreError: there is no such recipe.
    """
    values = _opened(name, overrides)[0].values
    return isinstance(values, dict) and _OF_DESIGNS in values and "components" not in values


def load_design(name: str, overrides: list[str] | None = None) -> LoadedDesign:
    """Read and check a recipe of architecture search; arguments as of :func:`load_recipe`.

    Raises:
        RecipeError: with every problem of the recipe, one line each.
        ManticoreError: there is no such recipe, or it is one of a run.
    """
    document, text = _opened(name, overrides)
    source = document.place(()).source
    if isinstance(document.values, dict):
        if "components" in document.values:
            raise ManticoreError(f"{source}: is the recipe of a run. Fix: manticore run {name}")
        recipe, found = findings(DesignRecipe, document.values)
        if isinstance(recipe, DesignRecipe):
            found += design_findings(recipe.design)
        _add(document, found)
        if isinstance(recipe, DesignRecipe) and not document.problems:
            return LoadedDesign(recipe, text, source, tuple(overrides or []))
    raise RecipeError(document.problems)


def _opened(name: str, overrides: list[str] | None) -> tuple[Document, str]:
    """A recipe's document with overrides in it, and the file's text."""
    file = find(name)
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    document = read_document(data, str(file))
    if isinstance(document.values, dict):
        apply_overrides(document, list(overrides or []))
    return document, data.decode("utf-8-sig", errors="replace")


def check(document: Document, needs: Needs | None = None) -> Recipe | None:
    """Add to ``document.problems`` all that is wrong with its values; the recipe if nothing is."""
    kind, unknown = recipe_with(document.values)
    recipe, found = findings(kind, document.values)
    told = {path for path, _ in unknown}
    found = [(path, text) for path, text in found if path not in told] + unknown
    wrong = {path[0] for path, _ in found if path}
    sections = _well_formed(kind, document.values, wrong)
    found += inconsistencies(sections)
    if needs is not None:
        found += needs(sections)
    _add(document, found)
    return recipe.settled() if isinstance(recipe, Recipe) and not found else None


def _add(document: Document, found: Iterable[Finding]) -> None:
    # what could not even be read holds no value to complain about
    spoiled = {problem.path for problem in document.problems}
    document.problems += [Problem(document.place(path), path, text) for path, text in found if path not in spoiled]


def _well_formed(kind: type[Recipe], values: dict[str, object], wrong: set[str | int]) -> dict[str, object]:
    """Section name → validated value, for each section without an error of its own."""
    sections: dict[str, object] = {}
    for name, field in kind.model_fields.items():
        if name in wrong:
            continue
        if name not in values:
            sections[name] = field.default
            continue
        try:
            annotation: Any = field.annotation
            sections[name] = TypeAdapter(annotation).validate_python(values[name])
        except ValidationError:
            continue
    return sections
