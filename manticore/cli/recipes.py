"""Verbs on recipes and names: ls, show, cp, check."""

from __future__ import annotations

from pathlib import Path
from shlex import join, quote
from typing import Annotated, Any

import typer
from rich.table import Table

from manticore import registry
from manticore.cli.terminal import console, done
from manticore.errors import ManticoreError
from manticore.option_types import literals
from manticore.paths import expanded
from manticore.schema.loading import (
    every_shipped,
    find,
    is_of_designs,
    launch_configurations,
    load_design,
    load_recipe,
)
from manticore.schema.options import options_of
from manticore.schema.recipe import Recipe
from manticore.schema.validation import model_at
from manticore.stages.prerequisites import missing_prerequisites
from manticore.writing import write_text

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values over the recipe's: search.steps=40"),
]

_PLURAL = {
    "design": "design-methods",
    "layer": "layers",
    "mixing": "mixings",
    "output": "outputs",
    "projector": "projectors",
    "search": "methods",
    "space": "spaces",
    "stack": "stacks",
    "stage": "stages",
    "task": "tasks",
}


def ls(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="recipes, launch, tasks, methods, design-methods, spaces, mixings, outputs, projectors, layers, "
            "stacks or stages.",
        ),
    ] = None,
) -> None:
    """List recipes, launch configurations, tasks, methods, spaces of designs, mixings, outputs, projectors and layers.

    Example: manticore ls tasks
    """
    listings = {"recipes": {name: _headline(file) for name, file in every_shipped().items()}}
    listings["launch"] = {name: _headline(file) for name, file in launch_configurations().items()}
    for kind in registry.kinds():
        listings[_PLURAL.get(kind, kind)] = {name: e.summary for name, e in registry.entries(kind).items()}
    if what is not None and what not in listings:
        raise ManticoreError(f"ls: nothing is called {what!r}{registry.did_you_mean(what, list(listings))}")
    for title, rows in listings.items():
        if what in (None, title):
            table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
            for name, summary in rows.items():
                table.add_row(f"  {name}", summary)
            console.print(table)
    console.print("\nnext: manticore show NAME")


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, `schema`, or a name that ls lists.")],
) -> None:
    """Print a recipe, the keys of the recipe schema, or what a registered name is and which options it has.

    Example: manticore show mad/in-context-recall
    """
    if name == "schema":
        _show_schema()
        return
    # a layer and a stack made of it alone share their name
    kinds = [kind for kind in registry.kinds() if name in registry.entries(kind)]
    for kind in kinds:
        _show_entry(kind, name)
    if kinds:
        return
    known = [
        *every_shipped(),
        *launch_configurations(),
        "schema",
        *(n for kind in registry.kinds() for n in registry.entries(kind)),
    ]
    file = launch_configurations().get(name)
    if file is None and name not in every_shipped() and not Path(name).exists():
        raise ManticoreError(f"show: nothing is called {name!r}{registry.did_you_mean(name, known)}")
    console.print(
        (file or find(name)).read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True, end=""
    )


def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, or a launch configuration.")],
    destination: Annotated[str, typer.Argument(metavar="[PATH]", help="File or folder to copy it to.")] = ".",
) -> None:
    """Copy a shipped recipe or launch configuration, to make it your own.

    Example: manticore cp quickstart mine.yaml
    """
    launch = launch_configurations().get(name)
    source, target = launch or find(name), expanded(destination)
    if target.is_dir():
        target /= source.name
    if target.exists() or target.is_symlink():
        raise ManticoreError(f"{target}: exists already, nothing was changed. Fix: choose another name or remove it")
    if not target.parent.is_dir():
        raise ManticoreError(f"{target.parent}: no such folder. Fix: make it first")
    write_text(target, source.read_text(encoding="utf-8"))
    kind = source.parent.name if launch is not None else ""
    done(target, _NEXT.get(kind, "manticore check {}").format(quote(str(target))))


_NEXT = {
    "accelerate": "accelerate launch --config_file {} -m manticore finetune MODEL --task TASK -o DIR",
    "slurm": "sbatch {}",
    "kubernetes": "kubectl apply -f {}",
}
"""The folder of a launch configuration → the command that reads it."""


def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe: every problem at once, each with its line. No network, no weights, nothing is written.

    Example: manticore check mine.yaml search.steps=40
    """
    if is_of_designs(recipe, overrides):
        verb, source = "design", load_design(recipe, overrides).source
    else:
        verb, source = "run", load_recipe(recipe, overrides, needs=missing_prerequisites).source
    console.print(f"{source}: ok", markup=False, highlight=False, soft_wrap=True)
    command = join(["manticore", verb, recipe, *(overrides or [])])
    console.print(f"next: {command}", markup=False, highlight=False, soft_wrap=True)


def _headline(file: Path) -> str:
    """The first comment line of a recipe."""
    with file.open(encoding="utf-8") as stream:
        first = next(line for line in stream if not line.startswith("#!"))
        return first.lstrip("# ").strip()


def _show_entry(kind: str, name: str) -> None:
    console.print(f"{name}: {kind}. {registry.entries(kind)[name].summary}", markup=False, highlight=False)
    options = options_of(kind, name) or {}
    if options:
        table = Table("option", "type", "default", "meaning", box=None, pad_edge=False)
        for option in options.values():
            table.add_row(option.name, option.annotation, option.default, option.help)
        console.print(table)


def _show_schema() -> None:
    table = Table("key", "default", "meaning", box=None, pad_edge=False)

    def rows(model: Any, prefix: str) -> None:
        for key, field in model.model_fields.items():
            nested = model_at(model, (key,))
            many = "[]" if "list[" in str(field.annotation) else ""
            required = field.is_required()
            if nested is not None and nested is not model:
                table.add_row(f"{prefix}{key}{many}", "required" if required else "", (nested.__doc__ or "").strip())
                rows(nested, f"{prefix}{key}{many}.")
            else:
                choices = literals(field.annotation)
                meaning = f"{field.description or ''}{' One of: ' + ', '.join(choices) + '.' if choices else ''}"
                table.add_row(f"{prefix}{key}", "required" if required else str(field.default), meaning)

    rows(Recipe, "")
    console.print(table)
