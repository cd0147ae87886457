"""design: an architecture search from scratch, as a recipe says."""

from __future__ import annotations

from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.recipes import Overrides
from manticore.cli.terminal import console, done, progress_bar, quiet_libraries, say
from manticore.errors import ManticoreError
from manticore.file_names import RECIPE, STUDY
from manticore.paths import expanded
from manticore.schema.loading import load_design
from manticore.writing import refuse_existing, write_text

_PARENT = "designs"


def design(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one, with a section design."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the study. [default: designs/NAME]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was begun before.")] = False,
    reuse: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of another study whose trainings are taken over where they are the same."
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where an accelerator is present.")] = False,
) -> None:
    """Search for architectures, each trained from scratch: a front of designs, their folders, and a page.

    Example: manticore design design-quickstart design.trials=32 -o study
    """
    loaded = load_design(recipe, overrides)
    section, place = loaded.recipe.design, out or f"{_PARENT}/{loaded.recipe.name}"
    folder = expanded(place)
    if not resume and section.storage is None:
        refuse_existing(place)
    trials, tokens = section.trials, section.training_steps * section.batch_size * section.length
    goals = ", ".join(f"{measure} {'up' if maximise else 'down'}" for measure, maximise in section.goals)
    learns = "" if section.text is None else f", each trained on {tokens:,} tokens of {Path(str(section.text)).name}"
    what = f"at most {trials} designs out of {section.space}{learns}, by {section.method}"
    say(f"design: {loaded.source}: {what}: {goals}")
    say(f"folder: {place}")
    again = ["manticore", "design", recipe, *(overrides or []), "-o", place, *(["--reuse", reuse] if reuse else [])]
    again += [*(["--cpu"] if cpu else []), "--resume"]
    quiet_libraries()
    from manticore.report.design_page import next_command, write_page
    from manticore.report.design_record import read_study
    from manticore.report.design_terminal import render_study
    from manticore.search.designs.design import design as search

    try:
        with progress_bar("design") as progress:
            found = search(
                settings=section,
                name=loaded.recipe.name,
                seed=loaded.recipe.seed,
                out=folder,
                resume=resume,
                reuse=reuse,
                cpu=cpu,
                progress=progress,
            )
    except KeyboardInterrupt as stop:
        say("stopped; finished trials are kept")
        say(f"next: {join(again)}")
        raise SystemExit(exit_code_of(stop)) from None
    write_text(folder / RECIPE, loaded.text)
    page = write_page(folder)
    console.print(render_study(found.record))
    if found.best is None:
        raise ManticoreError(f"design: {page}: no design keeps the limits. Fix: larger ones, or more trials")
    say(f"wrote {folder / STUDY}")
    done(page, next_command(read_study(folder), place) or "manticore design --help")
