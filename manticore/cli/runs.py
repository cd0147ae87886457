"""Verbs on runs: run, resume, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Annotated

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.recipes import Overrides, RecipeName
from manticore.cli.terminal import RunReporter, console, done, quiet_libraries, say
from manticore.errors import ManticoreError
from manticore.file_names import MODEL, PAGE, STUDY
from manticore.paths import expanded
from manticore.schema.loading import load_recipe
from manticore.stages.prerequisites import missing_prerequisites

if TYPE_CHECKING:
    from manticore.runs.folder import RunFolder

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Run folder; must not exist. [default: runs/NAME-DATE-HASH]"),
    ] = None,
) -> None:
    """Do all that a recipe says: combine, align, search, discretize, fine-tune, compare, report.

    Example: manticore run quickstart search.steps=60 -o my-run
    """
    loaded = load_recipe(recipe, overrides, needs=missing_prerequisites)
    say(f"run: {loaded.source}")
    from manticore.runs.folder import create_run

    folder = create_run(loaded, out)
    try:
        _go(folder)
    except ManticoreError as error:
        _forget_if_nothing_is_done(folder.path, error, recipe, overrides or [])
        raise


def resume(run: RunPath) -> None:
    """Go on with a run that was stopped or killed; it ends with the numbers it would have had anyway.

    Example: manticore resume runs/quickstart-20260101-120000-a1b2c3
    """
    from manticore.runs.folder import open_run

    folder = open_run(run)
    say(f"resume: {folder.path}")
    _go(folder)


def report(run: RunPath) -> None:
    """Write the report of a run, or of an architecture search, again from its results, and print them.

    Example: manticore report runs/quickstart-20260101-120000-a1b2c3
    """
    from manticore.report import read_results, render_comparison, render_summary, write_report
    from manticore.runs.folder import open_run

    if (expanded(run) / STUDY).is_file():
        return _report_study(expanded(run))
    folder = open_run(run)
    results = read_results(folder.path)
    page = write_report(folder.path)
    console.print(render_comparison(results))
    console.print(render_summary(results))
    done(page, _scoring(folder))


def _report_study(folder: Path) -> None:
    from manticore.report.design_page import next_command, write_page
    from manticore.report.design_record import read_study
    from manticore.report.design_terminal import render_study

    study = read_study(folder)
    page = write_page(folder)
    console.print(render_study(study))
    done(page, next_command(study, str(folder)) or "manticore design --help")


def _forget_if_nothing_is_done(path: Path, error: ManticoreError, recipe: str, overrides: list[str]) -> None:
    """Remove the folder of a run whose first stage already failed: there is nothing in it to go on from."""
    from manticore.components.sources import unreachable
    from manticore.runs.stages import stage_state

    if not any(stage_state(own).get("status") == "finished" for own in path.iterdir() if own.is_dir()):
        shutil.rmtree(path)
        return
    say(f"finished stages are kept in {path}")
    if unreachable(error):
        say(f"next: manticore resume {quote(str(path))}")
        return
    # what is asked for cannot be done: the same recipe would end in the same error
    mine, copied = recipe, ""
    if not Path(recipe).expanduser().is_file():
        mine = f"my-{recipe}.yaml"
        copied = f"{join(['manticore', 'cp', recipe, mine])}, "
    say(f"next: {copied}edit {quote(mine)}, {join(['manticore', 'run', mine, *overrides])}")


def _go(folder: RunFolder) -> None:
    quiet_libraries()
    from manticore.report import render_comparison, render_summary
    from manticore.stages import stages_of
    from manticore.stages.pipeline import execute

    say(f"folder: {folder.path}")
    reporter = RunReporter([stage.name for stage in stages_of(folder.recipe)])
    try:
        results = execute(folder, reporter)
    except KeyboardInterrupt as stop:
        reporter.close()
        say("stopped; finished stages and checkpoints are kept")
        say(f"next: manticore resume {quote(str(folder.path))}")
        raise SystemExit(exit_code_of(stop)) from None
    finally:
        reporter.close()
    if "compare" in results:
        console.print(render_comparison(results))
    console.print(render_summary(results))
    done(folder.path / PAGE, _scoring(folder))


def _scoring(folder: RunFolder) -> str:
    """The command that scores a run's model once more."""
    from manticore.stages.commands import evaluate_command, task_words

    task = folder.recipe.task
    return evaluate_command(str(folder.path / MODEL), task_words(task.name, task.options))
