"""Stages: finished ones are skipped, interrupted ones go on, changed ones start over.

A stage's inputs are what it was asked to do together with the inputs of all stages before it. Its folder holds
``state.json`` with the hash of those inputs; a stage that is finished with the same hash is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.cache import file_digest
from manticore.reading import damaged, read_object
from manticore.runs.reporter import Reporter
from manticore.writing import write_json

logger = logging.getLogger(__name__)

STATE = "state.json"


@dataclass(frozen=True)
class Outcome:
    """What a stage made."""

    results: dict[str, Any]
    """Its parts of ``results.json``."""
    summary: str
    """The same in a few words."""


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    plan: str
    """What it will do, in a few words."""
    inputs: Mapping[str, Any]
    """What determines its result, beside the stages before it; JSON values."""
    work: Callable[[Path], Outcome]
    """Does it, in the stage's own folder. If the folder holds an interrupted attempt, it goes on from there."""
    product: Path | None = None
    """The folder of the model that it leaves behind, beside its own folder; it is checked before it is believed."""


def run_stages(
    folder: Path, stages: Sequence[Stage], reporter: Reporter, written: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run the stages in order.

    Args:
        folder: the run folder; each stage gets a folder of its name in it.
        stages: what to do.
        reporter: told about each.
        written: called with all results so far whenever a stage is done.

    Returns:
        The results of all stages, merged: a later stage may add to a part of an earlier one.
    """
    results: dict[str, Any] = {}
    chain = ""
    for stage in stages:
        chain = _hash({"before": chain, "stage": stage.name, "inputs": stage.inputs})
        own = folder / stage.name
        state = stage_state(own)
        finished = state.get("inputs") == chain and state.get("status") == "finished"
        # folders of older versions name no weights
        whole = not finished or state.get("weights") in (None, _weights(stage.product))
        if not whole:
            logger.warning("%s: weights in %s are damaged or missing; it is done again", stage.name, stage.product)
        if finished and whole:
            outcome, seconds = Outcome(state["results"], state["summary"]), state["seconds"]
            reporter.skipped(stage.name, seconds, outcome.summary)
        else:
            if state.get("inputs") != chain and own.exists():
                shutil.rmtree(own)
            own.mkdir(exist_ok=True)
            spent = state.get("seconds", 0.0) if state.get("inputs") == chain else 0.0
            write_json(own / STATE, {"status": "started", "inputs": chain, "seconds": spent})
            reporter.started(stage.name, stage.plan)
            begun = time.perf_counter()
            outcome = stage.work(own)
            seconds = spent + time.perf_counter() - begun
            write_json(
                own / STATE,
                {
                    "status": "finished",
                    "inputs": chain,
                    "seconds": seconds,
                    "summary": outcome.summary,
                    "results": outcome.results,
                    "weights": _weights(stage.product),
                },
            )
            reporter.finished(stage.name, seconds, outcome.summary)
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


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stage_state(own: Path) -> dict[str, Any]:
    """The state of a stage; empty if it never started.

    Raises:
        ManticoreError: the file was damaged.
    """
    file, fix = own / STATE, f"remove the folder {own}, then resume"
    state = read_object(file, fix)
    if state is None:
        return {}
    finished = state.get("status") == "finished"
    whole = isinstance(state.get("summary"), str) and isinstance(state.get("results"), dict)
    if not isinstance(state.get("seconds"), int | float) or (finished and not whole):
        raise damaged(file, "parts of it are missing", fix)
    return state
