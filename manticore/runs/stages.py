"""Stages: finished ones are skipped, interrupted ones go on, changed ones start over.

A stage's inputs are what it was asked to do together with the inputs of all stages before it. Its folder holds
``state.json`` with the hash of those inputs; a stage that is finished with the same hash is not run again.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.cache import file_digest
from manticore.errors import ManticoreError
from manticore.file_names import MODEL
from manticore.reading import damaged
from manticore.runs.ledger import Digests, digest_of, read_record, refuse_changed, write_record
from manticore.runs.reporter import Reporter

logger = logging.getLogger(__name__)

STATE = "state.json"
DIGESTS = ".digests.json"


@dataclass(frozen=True)
class Outcome:
    """What a stage made."""

    results: dict[str, Any]
    """Its parts of ``results.json``."""
    summary: str
    """The same in a few words."""


@dataclass(frozen=True)
class GuardedStage:
    """One step of a run, with what decides whether it is done already."""

    name: str
    plan: str
    """What it will do, in a few words."""
    inputs: Mapping[str, Any]
    """What determines its result, beside the stages before it; JSON values."""
    work: Callable[[Path], Outcome]
    """Does it, in the stage's own folder. If the folder holds an interrupted attempt, it goes on from there."""
    product: Path | None = None
    """The folder of the model that it leaves behind, beside its own folder; it is checked before it is believed."""
    reads: Callable[[], Mapping[str, str | None]] = dict
    """Name → digest of what it reads beside what the stages before it have made."""


def run_stages(
    folder: Path,
    stages: Sequence[GuardedStage],
    reporter: Reporter,
    written: Callable[[dict[str, Any]], None],
    digests: Digests | None = None,
) -> dict[str, Any]:
    """Run the stages in order.

    Args:
        folder: the run folder; each stage gets a folder of its name in it.
        stages: what to do.
        reporter: told about each.
        written: called with all results so far whenever a stage is done.
        digests: of files, where they are remembered.

    Returns:
        The results of all stages, merged: a later stage may add to a part of an earlier one.

    Raises:
        ManticoreError: what a stage is to read, or what an earlier one has made, has changed since.
    """
    results: dict[str, Any] = {}
    chain = ""
    digests = digests or Digests(folder / DIGESTS)
    read: dict[str, Any] = {}
    made: dict[Path, Any] = {}
    for stage in stages:
        chain = digest_of({"before": chain, "stage": stage.name, "inputs": stage.inputs})
        own = folder / stage.name
        state = stage_state(own)
        begun = state.get("inputs") == chain
        finished = begun and state.get("status") == "finished"
        if begun:
            read = {**state.get("read", {}), **read}
        # folders of older versions name no weights
        whole = not finished or state.get("weights") in (None, _weights(stage.product))
        if not whole:
            logger.warning("%s: weights in %s are damaged or missing; it is done again", stage.name, stage.product)
        if finished and whole:
            outcome, seconds = Outcome(state["results"], state["summary"]), state["seconds"]
            reporter.skipped(stage.name, seconds, outcome.summary)
        else:
            now = stage.reads()
            refuse_changed(read, now, f"{stage.name}: {folder}", "start a new run")
            read |= now
            _refuse_changed_models(made, digests)
            if not begun and own.exists():
                logger.warning("%s: what it was asked for has changed since; it starts over", stage.name)
                shutil.rmtree(own)
            own.mkdir(exist_ok=True)
            spent = state.get("seconds", 0.0) if begun else 0.0
            key = {"inputs": chain, "read": dict(now)}
            write_record(own / STATE, {"status": "started", **key, "seconds": spent})
            reporter.started(stage.name, stage.plan)
            since = time.perf_counter()
            outcome = stage.work(own)
            seconds = spent + time.perf_counter() - since
            state = {
                "status": "finished",
                **key,
                "seconds": seconds,
                "summary": outcome.summary,
                "results": outcome.results,
                "weights": _weights(stage.product),
                "made": _digests(own / MODEL, digests),
            }
            write_record(own / STATE, state)
            reporter.finished(stage.name, seconds, outcome.summary)
        made[own / MODEL] = state.get("made", {})
        _merge(results, outcome.results)
        written(results)
    return results


def results_of(own: Path) -> dict[str, Any]:
    """The results of a finished stage, by its folder; empty if it has not run."""
    return dict(stage_state(own).get("results", {}))


def _merge(results: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(results.get(key), dict):
            results[key].update(value)
        else:
            results[key] = dict(value) if isinstance(value, Mapping) else value


def _weights(product: Path | None) -> dict[str, str] | None:
    """File name → digest of the weights of a stage's product."""
    if product is None:
        return None
    return {file.name: file_digest(file) for file in sorted(product.glob("*.safetensors")) if file.is_file()}


def _digests(model: Path, digests: Digests) -> dict[str, str]:
    """File name → digest of a model folder that later stages read."""
    return {file.name: digests.of(file) for file in sorted(model.glob("*")) if file.is_file()}


def _refuse_changed_models(made: Mapping[Path, Mapping[str, str]], digests: Digests) -> None:
    for model, files in made.items():
        there = _digests(model, digests) if files else {}
        for name, digest in files.items():
            if there.get(name) != digest:
                raise ManticoreError(
                    f"{model / name}: {'is not what was written' if name in there else 'is missing'}, and later stages "
                    f"read it. Fix: put it back, or remove the folder {model.parent} to have it made again, then resume"
                )


def stage_state(own: Path) -> dict[str, Any]:
    """The state of a stage; empty if it never started.

    Raises:
        ManticoreError: the file was damaged.
    """
    file, fix = own / STATE, f"remove the folder {own}, then resume"
    state = read_record(file, fix)
    if state is None:
        return {}
    finished = state.get("status") == "finished"
    whole = isinstance(state.get("summary"), str) and isinstance(state.get("results"), dict)
    if not isinstance(state.get("seconds"), int | float) or (finished and not whole):
        raise damaged(file, "parts of it are missing", fix)
    return state
