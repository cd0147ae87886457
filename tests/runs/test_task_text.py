"""Alignment on a task's own rows scores what the task asks for."""

from __future__ import annotations

from pathlib import Path

from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.align import task_text
from manticore.stages.run import Run
from manticore.tasks.metrics import IGNORE
from manticore.training.calibration import calibration_packs


def test_rows_of_a_task_come_with_their_targets(mini_recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(
        str(mini_recipe), ["align.text=task", "task.name=mad/selective-copying", "task.options.num_tokens_to_copy=4"]
    )
    run = Run(create_run(loaded, str(tmp_path / "run")))
    # the tokenizers of its components are not needed for rows of numbers
    run.sources = [str(tmp_path)] * 2
    fit, _ = calibration_packs(task_text(run), tokens=2048, holdout=0.1, length=32, seed=0, tokenizer=None)
    asked = fit.targets != IGNORE
    # this task asks at the end only, next-token prediction would ask everywhere
    assert asked.any()
    assert not asked[:, : asked.shape[1] // 4].any()
