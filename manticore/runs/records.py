"""Parts of ``results.json`` and the files that are views of it: ``metrics.jsonl`` and ``mixture_weights.csv``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.schema.sections import Component
from manticore.writing import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task


def component_record(component: Component, model: PreTrainedModel, lineage: dict[str, Any]) -> dict[str, Any]:
    """What a component is."""
    return {
        "name": component.name,
        "source": component.source,
        "revision": lineage["commit"] or component.revision,
        "family": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "license": lineage["license"],
        "sha256": lineage["sha256"],
    }


def task_record(
    task: Task, options: Mapping[str, Any] | None = None, *, test_examples: int | None = None
) -> dict[str, Any]:
    """What the task is, how much data it has and how it is scored.

    Args:
        options: those it was loaded with.
        test_examples: as many of the test split are scored; None: all.
    """
    examples = {str(split): len(rows) for split, rows in task.data.items()}
    return {
        "name": task.name,
        "options": {name: str(value) for name, value in (options or {}).items()},
        "examples": examples,
        "scored": min(examples["test"], test_examples or examples["test"]),
        "length": task.length,
        "bos": task.bos,
        "primary_metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
        "chance": task.chance,
    }


def write_history(folder: Path, results: dict[str, Any]) -> None:
    """``metrics.jsonl``: every logged step of every stage; ``mixture_weights.csv``: the course of the search."""
    rows = [
        json.dumps({"stage": stage, **row}, sort_keys=True) + "\n"
        for stage in ("search", "finetune")
        for row in results.get(stage, {}).get("history", [])
    ]
    write_text(folder / "metrics.jsonl", "".join(rows))
    source = folder / "search" / "mixture_weights.csv"
    if "search" in results and source.is_file():
        write_text(folder / "mixture_weights.csv", source.read_text(encoding="utf-8"))
