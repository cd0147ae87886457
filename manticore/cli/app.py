"""The verbs and the entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from manticore import __version__
from manticore.cli import recipes
from manticore.cli.faults import reported

app = typer.Typer(
    name="manticore",
    help="Turn pretrained language models of different families into one better hybrid.",
    epilog="Start here: manticore run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RECIPES = "Recipes"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"manticore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn pretrained language models of different families into one better hybrid."""


for verb in (recipes.ls, recipes.show, recipes.cp, recipes.check):
    app.command(rich_help_panel=_RECIPES)(verb)


def main() -> None:
    """Run the command line."""
    with reported():
        app(prog_name="manticore")
