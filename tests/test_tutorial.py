"""The tutorial runs from top to bottom, as a reader would paste it, and after it what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

BETWEEN = """
import os
from manticore.tasks.text import text
from manticore.training.budget import flops_per_step
from transformers import AutoTokenizer

os.symlink(gpt, "path-or-hub-id-a")
os.symlink(mamba, "path-or-hub-id-b")


def smaller(function, **settings):
    def call(model, *arguments, **given):
        if "task" in given:
            given["task"] = text(AutoTokenizer.from_pretrained(gpt), source="library", length=32)
        fitted = {name: value(model) if callable(value) else value for name, value in settings.items()}
        return function(model, *arguments, **{**given, **fitted})

    return call


manticore.align = smaller(manticore.align, tokens=2048)
# of as few steps as a search over candidates takes
def unit(hybrid):
    parents = [manticore.discretize(hybrid, [k] * hybrid.config.num_blocks) for k in range(2)]
    return 12 * max(flops_per_step(parent, 2, 32) for parent in parents)


manticore.search = smaller(manticore.search, finetune_flops=unit, batch_size=2, validation_examples=4)
manticore.finetune = smaller(manticore.finetune, batch_size=2)
manticore.evaluate = smaller(manticore.evaluate, max_examples=8)
"""
"""Two parents by the names that the README gives them, and fewer steps and examples for the calls that it shows."""


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_tutorial_and_the_readme_run(tmp_path: Path) -> None:
    shown = blocks("README.md")
    assert len(shown) == 2
    done = run("\n".join([*blocks("docs/tutorial.md"), BETWEEN, *shown]), tmp_path)
    assert "trainable params" in done
    assert "base_model" not in done  # folders are not parents that a reader of the hub could open
    assert (tmp_path / "searched/mixture_weights.csv").is_file()
    assert (tmp_path / "adapter/adapter_config.json").is_file()


def test_the_page_on_which_hybrid_runs(tmp_path: Path) -> None:
    done = run("\n".join(blocks("docs/which-hybrid.md")), tmp_path)
    assert [line.split()[0] for line in done.splitlines()[:3]] == ["code", "english", "hybrid"]


def run(page: str, tmp_path: Path) -> str:
    """What a page prints, in a process of its own."""
    (tmp_path / "tutorial.py").write_text(page)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MANTICORE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "tutorial.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
