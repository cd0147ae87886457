"""A run: the stages that its recipe asks for, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import manticore
from manticore.runs.folder import RunFolder
from manticore.runs.lock import locked
from manticore.runs.reporter import LogReporter, Reporter
from manticore.runs.stages import GuardedStage, run_stages
from manticore.stages import STAGES, stages_of
from manticore.stages.report import write_pages
from manticore.stages.run import Run
from manticore.stages.stage import Stage
from manticore.writing import write_text


def execute(folder: RunFolder, reporter: Reporter | None = None) -> dict[str, Any]:
    """Do all stages of a run that are not done yet.

    Args:
        folder: new, or left by an interrupted run.
        reporter: told about every stage; None sends that to the log.

    Returns:
        The content of ``results.json``.

    Raises:
        ManticoreError: the folder is in use, or a stage cannot do its work.
    """
    reporter = reporter or LogReporter()
    run = Run(folder, reporter)
    with locked(folder.path):
        folder.begin_session()
        found: dict[str, Any] = {}

        def keep(parts: dict[str, Any], status: str = "running") -> None:
            found.update(parts)
            folder.write_results(found, status)
            _write_history(folder.path, found)

        try:
            stages = [_guarded(stage, run) for stage in stages_of(folder.recipe)]
            run_stages(folder.path, stages, reporter, keep, run.digests)
        except KeyboardInterrupt:
            keep({}, "interrupted")
            raise
        except BaseException:
            keep({}, "failed")
            raise
        results = folder.write_results(found, "complete")
        write_pages(folder, results)
        return results


def _write_history(folder: Path, results: dict[str, Any]) -> None:
    """``metrics.jsonl``: every logged step of every stage; ``mixture_weights.csv``: the course of the search."""
    rows = [
        json.dumps({"stage": stage.name, **row}, sort_keys=True) + "\n"
        for stage in STAGES
        for row in results.get(stage.name, {}).get("history", [])
    ]
    write_text(folder / "metrics.jsonl", "".join(rows))
    source = folder / "search" / "mixture_weights.csv"
    if "search" in results and source.is_file():
        write_text(folder / "mixture_weights.csv", source.read_text(encoding="utf-8"))


def _guarded(stage: Stage, run: Run) -> GuardedStage:
    """The stage with what decides whether it is done already."""
    recipe = run.recipe
    inputs = {"asked": stage.inputs(recipe), "seed": recipe.seed, "version": manticore.__version__}
    work = lambda folder: stage.work(run, folder)  # noqa: E731
    return GuardedStage(stage.name, stage.plan_line(recipe), inputs, work, stage.product(run), lambda: stage.read(run))
