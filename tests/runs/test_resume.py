"""A run that is killed in every one of its stages ends with the numbers of a run that never was."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import forked

from manticore.runs.folder import RESULTS

SOON = 0.002
"""Seconds between two looks at a stage's files."""

PATIENCE = 300
"""Seconds that a run may take on a busy machine."""

MIDDLE = {
    "search": "c*/*",
    "finetune": "checkpoints/checkpoint-*",
    "compare": "units.jsonl",
}
"""What appears when a long stage is half done: patterns of files."""


def _work(recipe: str, out: str, cache: str) -> None:
    """The child process: start the run, or go on with it."""
    os.environ["MANTICORE_CACHE"] = cache
    import torch

    from manticore.cli.terminal import quiet_libraries
    from manticore.runs.folder import create_run, open_run
    from manticore.schema.loading import load_recipe
    from manticore.stages.pipeline import execute

    torch.set_num_threads(1)
    quiet_libraries()
    execute(open_run(out) if Path(out).exists() else create_run(load_recipe(recipe), out))


def _finish(recipe: Path, out: Path, cache: Path) -> dict[str, Any]:
    process = forked(_work, str(recipe), str(out), str(cache))
    process.join(PATIENCE)
    assert process.exitcode == 0
    return json.loads((out / RESULTS).read_text(encoding="utf-8"))


def _status(own: Path) -> str | None:
    try:
        return json.loads((own / "state.json").read_text(encoding="utf-8"))["status"]
    except FileNotFoundError:
        return None


def _kill_in(stage: str, recipe: Path, out: Path, cache: Path) -> bool:
    """Start or resume the run and kill it in a stage; whether it was caught before the stage's end."""
    process = forked(_work, str(recipe), str(out), str(cache))
    own = out / stage
    deadline = time.monotonic() + PATIENCE
    while not any(own.glob(MIDDLE.get(stage, "state.json"))) and _status(own) != "finished" and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(SOON)
    os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL, f"the run ended by itself before {stage}"
    return _status(own) == "started"


def _numbers(value: Any) -> Any:
    """Results without what depends on the clock."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items() if key not in ("seconds", "created")}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


STAGES = ("pretrain", "combine", "align", "search", "discretize", "finetune", "compare")


@pytest.mark.parametrize("search", ["weights", "candidates"])
def test_a_run_killed_in_every_stage_resumes_to_the_same_numbers(
    mini_recipe: Path, tmp_path: Path, search: str
) -> None:
    recipe = tmp_path / "run.yaml"
    text = mini_recipe.read_text(encoding="utf-8")
    if search == "candidates":
        # it ends after half a unit, so that fine-tuning has something left
        text = text.replace(
            "search: {method: darts, steps: 6, batch_size: 8, save_steps: 2}", "search: {method: blockwise}"
        )
        text = text.replace("finetune: {steps: 6,", "finetune: {steps: 12,")
        text = text.replace("compare: {", "compare: {ensemble: false, ")
    recipe.write_text(text, encoding="utf-8")
    # what is before a search is the same for both, so that the second is killed from its search on, and makes its
    # parents once
    stages, second_cache = (STAGES, "cache-2") if search == "weights" else (STAGES[3:], "cache-1")
    caught = {stage: _kill_in(stage, recipe, tmp_path / "killed", tmp_path / "cache-1") for stage in stages}
    resumed = _finish(recipe, tmp_path / "killed", tmp_path / "cache-1")
    whole = _finish(recipe, tmp_path / "whole", tmp_path / second_cache)

    assert all(caught[stage] for stage in ("pretrain", *MIDDLE) if stage in stages), caught
    assert resumed["status"] == whole["status"] == "complete"
    assert set(whole) >= {"components", "task", "combine", "align", "search", "discretize", "finetune", "compare"}
    assert _numbers(resumed) == _numbers(whole)
    for name in ("metrics.jsonl", "mixture_weights.csv", "model/model.safetensors"):
        ours, theirs = tmp_path / "killed" / name, tmp_path / "whole" / name
        assert ours.exists() is theirs.exists() is (search == "weights" or not name.startswith("mixture"))
        assert not ours.exists() or ours.read_bytes() == theirs.read_bytes(), name
    assert (tmp_path / "killed" / "report.html").is_file()
