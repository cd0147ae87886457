"""Packages of other people, installed for a test."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

STAGE = """
        from manticore.option_types import Count
        from manticore.settings import Settings
        from manticore.stages.stage import Outcome, Stage

        class Weighing(Settings):
            digits: Count = 1

        class Mine(Stage):
            name = "mine"
            section = Weighing
            after = "discretize"

            def plan_line(self, recipe):
                return f"weighs the hybrid to {recipe.mine.digits} digits"

            def cost(self, costing):
                held = costing.tuned["costliest"].held
                yield costing.judged(self.name, "the hybrid's weights", 4.0 * held.parameters, "a larger device")

            def work(self, run, folder):
                from safetensors.torch import load_file
                (folder / "weighed.txt").open("a").write("once")
                file = next((run.path / "discretize" / "model").glob("*.safetensors"))
                size = sum(tensor.numel() for tensor in load_file(file).values())
                rounded = f"{size / 1e3:.{run.recipe.mine.digits}f} k"
                return Outcome({"parameters": size, "rounded": rounded}, f"{rounded} parameters")
    """
"""A stage: it counts what discretize has left."""


def install(site: Path, package: str, code: str, **points: str) -> None:
    """A package as pip leaves it: a module, and a folder of metadata with its entry points."""
    lines = code.splitlines()
    (site / f"{package}.py").write_text("\n".join(line[8:] for line in lines))
    about = site / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    named = "\n".join(f"{name.replace('__', '.')} = {value}" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[manticore.plugins]\n{named}\n")


def use(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.startswith("their_")]:
        monkeypatch.delitem(sys.modules, name)


def theirs() -> list[str]:
    return [name for name in sys.modules if name.startswith("their_")]
