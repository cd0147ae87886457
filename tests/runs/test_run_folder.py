"""Run folders: made from a recipe, found again from anywhere, never written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manticore.errors import ManticoreError
from manticore.runs.folder import create_run, open_run
from manticore.schema.loading import load_recipe
from manticore.stages import stages_of
from manticore.stages.pipeline import execute


def test_the_recipe_is_kept_as_given_and_resolved(mini_recipe: Path, tmp_path: Path) -> None:
    run = create_run(load_recipe(str(mini_recipe), ["search.lr=5e-4", "compare=null"]), str(tmp_path / "run"))
    assert (run.path / "recipe.yaml").read_text() == mini_recipe.read_text()
    again = open_run(run.path)
    assert again.recipe == run.recipe
    assert again.recipe.search.lr == 5e-4
    assert again.recipe.compare is None
    assert [stage.name for stage in stages_of(again.recipe)] == [
        *("pretrain", "combine", "align", "search", "discretize", "finetune")
    ]


def test_a_run_can_be_resumed_from_another_folder(
    mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "gpt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "text.py").write_text("words")
    overrides = ["components.mamba.source=mine", "align.text=text.py", "task={name: text, options: {source: text.py}}"]
    recipe = create_run(load_recipe(str(mini_recipe), overrides), "run").recipe
    assert [component.source for component in recipe.components] == ["gpt", str(tmp_path / "mine")]
    assert recipe.align.text == recipe.task.options["source"] == str(tmp_path / "text.py")


def test_a_run_has_a_name_of_its_own_and_never_another_ones(
    mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(str(mini_recipe))
    run = create_run(loaded)
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("mini-20")
    with pytest.raises(ManticoreError, match=rf"a run is there already.*Fix: `manticore resume {run.path}`"):
        create_run(loaded, str(run.path))
    (tmp_path / "other").mkdir()
    with pytest.raises(ManticoreError, match="exists already, nothing was changed"):
        create_run(loaded, "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManticoreError, match="no such run folder"):
        open_run(tmp_path / "none")
    with pytest.raises(ManticoreError, match="not a run folder"):
        open_run(tmp_path)


def test_an_interrupted_run_is_marked_so(mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    run = create_run(load_recipe(str(mini_recipe)), str(tmp_path / "run"))

    class Impatient:
        def started(self, stage: str, plan: str) -> None:
            raise KeyboardInterrupt

        def skipped(self, stage: str, seconds: float, outcome: str) -> None: ...

        def finished(self, stage: str, seconds: float, outcome: str) -> None: ...

        def progress(self, what: str, step: int, steps: int, loss: float | None) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        execute(run, Impatient())
    results = json.loads((run.path / "results.json").read_text())
    assert results["status"] == "interrupted"
    session = json.loads((run.path / "environment.json").read_text())["sessions"][0]
    assert session["packages"]["torch"]
    assert session["scan"]
