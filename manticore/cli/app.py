"""The verbs and the entry point."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from manticore import __version__
from manticore.cli import (
    design,
    doctor,
    fetching,
    mad,
    plan,
    recipes,
    runs,
    scaling,
    sharing,
    stages,
    teaching,
    twins,
    using,
)
from manticore.cli.faults import end_tidily_on_sigterm, reported, usage_reported
from manticore.cli.launching import refuse_unshared
from manticore.processes import end_with_launcher, leave, process_count


class _Verbs(TyperGroup):
    """Reports errors itself: typer would end on Ctrl-C before anyone else hears of it."""

    def invoke(self, ctx: Any) -> Any:
        with reported(), usage_reported():
            return super().invoke(ctx)

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with usage_reported():
            return super().make_context(*arguments, **named)


class _Verb(TyperCommand):
    """Helps in plain lines: typer's table cuts the names of long options off on a narrow terminal."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named | {"rich_markup_mode": None})


app = typer.Typer(
    name="manticore",
    cls=_Verbs,
    epilog="Start here: manticore run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"manticore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn pretrained language models of different families into one better hybrid."""
    refuse_unshared(context.invoked_subcommand)


_VERBS: dict[str, tuple[Callable[..., None], ...]] = {
    "Recipes and runs": (
        recipes.ls,
        recipes.show,
        recipes.cp,
        recipes.check,
        plan.plan,
        runs.run,
        runs.resume,
        runs.report,
    ),
    "Stages, one at a time": (
        fetching.fetch,
        stages.pretrain,
        twins.twin,
        stages.combine,
        stages.align,
        stages.search,
        stages.discretize,
        teaching.distill,
        stages.finetune,
        using.evaluate,
        stages.compare,
        using.generate,
        sharing.share,
        sharing.export,
    ),
    "Stacks from scratch": (design.design, scaling.scale),
    "Benchmarks": (mad.mad,),
    "This machine": (doctor.doctor,),
}

for panel, verbs in _VERBS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel, cls=_Verb)(verb)


def main() -> None:
    """Run the command line."""
    # read when torch is imported: idle threads sleep instead of spinning, several times faster on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if process_count() > 1:
        # DistributedDataParallel's advice on every run without skipped branches
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        # a terminal that knows ASCII only, or a file name that is not text, is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    end_tidily_on_sigterm()
    end_with_launcher()
    try:
        app(prog_name="manticore")
    finally:
        leave()
