"""A run that is killed in every one of its stages ends with the numbers of a run that never was."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from manticore.runs.folder import RESULTS

SOON = 0.002
"""Seconds between two looks at a stage's files."""

PATIENCE = 300
"""Seconds that a run may take on a busy machine."""

MIDDLE = {
    "search": "checkpoints/checkpoint-2",
    "finetune": "checkpoints/checkpoint-2",
    "compare": "units.jsonl",
}
"""Files that appear when a long stage is half done."""


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


def _start(recipe: Path, out: Path, cache: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manticore.stages.pipeline", "manticore.cli.terminal"])
    process = context.Process(target=_work, args=(str(recipe), str(out), str(cache)))
    process.start()
    return process


def _finish(recipe: Path, out: Path, cache: Path) -> dict[str, Any]:
    process = _start(recipe, out, cache)
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
    process = _start(recipe, out, cache)
    own = out / stage
    wanted = own / MIDDLE.get(stage, "state.json")
    deadline = time.monotonic() + PATIENCE
    while not wanted.exists() and _status(own) != "finished" and process.is_alive():
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


def test_a_run_killed_in_every_stage_resumes_to_the_same_numbers(mini_recipe: Path, tmp_path: Path) -> None:
    stages = ["pretrain", "combine", "align", "search", "discretize", "finetune", "compare"]
    caught = {stage: _kill_in(stage, mini_recipe, tmp_path / "killed", tmp_path / "cache-1") for stage in stages}
    resumed = _finish(mini_recipe, tmp_path / "killed", tmp_path / "cache-1")
    whole = _finish(mini_recipe, tmp_path / "whole", tmp_path / "cache-2")

    assert all(caught[stage] for stage in ("pretrain", *MIDDLE)), caught
    assert resumed["status"] == whole["status"] == "complete"
    assert set(whole) >= {"components", "task", "combine", "align", "search", "discretize", "finetune", "compare"}
    assert _numbers(resumed) == _numbers(whole)
    for name in ("metrics.jsonl", "mixture_weights.csv", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (tmp_path / "killed" / "report.html").is_file()
