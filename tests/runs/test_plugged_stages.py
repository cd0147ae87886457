"""A stage of another package: its section in a recipe, its line in the plan, its record, its rows on the page."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from pathlib import Path

import pytest
from plug_ins import STAGE, install, theirs, use
from safetensors.torch import load_file
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.report.results import parse_results
from manticore.runs.folder import create_run
from manticore.runs.ledger import write_record
from manticore.runs.stages import STATE, stage_state
from manticore.schema.loading import load_recipe
from manticore.stages import stages_of
from manticore.stages.pipeline import execute

SHORT = ["search=null", "discretize.path=[0,1]", "compare=null"]


def with_section(mini: Path, folder: Path, section: str) -> str:
    """A recipe with one more section."""
    recipe = folder / "mine.yaml"
    recipe.write_text(mini.read_text(encoding="utf-8") + section + "\n", encoding="utf-8")
    return str(recipe)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "their_stage", STAGE, stage__mine="their_stage:Mine")
    use(site, monkeypatch)
    return site


def shown_in_the_docs() -> str:
    """The stage of docs/plugins.md."""
    page = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n")[1:] if "class MyStage(Stage)" in block).split("```")[0]
    return textwrap.indent(code, " " * 8)


def typed(*words: str) -> tuple[int, str]:
    """Exit code of a command, and what it says."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


def test_a_stage_is_planned_runs_reports_and_resumes(
    site: Path, mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "their_shown", shown_in_the_docs(), stage__my_stage="their_shown:MyStage")
    use(site, monkeypatch)
    out, recipe = tmp_path / "run", with_section(mini_recipe, tmp_path, "mine: {digits: 3}\nmy_stage: {digits: 2}")
    assert theirs() == []
    code, planned = typed("plan", recipe, *SHORT, "--device-memory", "80GB")
    assert code == 0, planned
    assert planned.index("evaluate") < planned.index("mine ") < planned.index("finetune ") < planned.index("my_stage ")
    assert "the hybrid's weights" in planned
    assert theirs() == ["their_stage", "their_shown"]

    code, said = typed("run", recipe, *SHORT, "-o", str(out))
    assert code == 0, said
    assert "[5/7] mine: weighs the hybrid to 3 digits" in said
    results = json.loads((out / "results.json").read_text())
    size = results["stages"]["mine"]["values"]["parameters"]
    rounded = f"{size / 1e3:.3f} k"
    record = {"parameters": size, "rounded": rounded}
    record = {"package": "their-stage", "summary": f"{rounded} parameters", "values": record}
    assert results["stages"]["mine"] == record
    files = (out / "model").glob("*.safetensors")
    size_after = sum(tensor.numel() for file in files for tensor in load_file(file).values())
    assert results["stages"]["my_stage"]["values"] == {"parameters": size_after}
    assert results["stages"]["my_stage"]["summary"] == f"{size_after / 1e6:.2f} M parameters"
    assert f"mine: {rounded} parameters" in said
    assert f"mine: {rounded} parameters" in typed("report", str(out))[1]
    page = (out / "report.html").read_text()
    for words in ("Stages of other packages", "their-stage", f"{rounded} parameters", f">{size}<"):
        assert words in page, words

    # what is done is not done again; stopped in the middle, it goes on in its own folder, and so does what comes after
    weighed = out / "mine" / "weighed.txt"
    assert typed("resume", str(out))[0] == 0
    assert weighed.read_text() == "once"
    noted = stage_state(out / "mine")
    write_record(out / "mine" / STATE, {**noted, "status": "started"})
    code, said = typed("resume", str(out))
    assert code == 0, said
    assert weighed.read_text() == "onceonce"
    assert json.loads((out / "results.json").read_text())["stages"] == results["stages"]

    # another version may find something else: it starts over
    about = next(site.glob("their_stage-*")) / "METADATA"
    about.write_text(about.read_text().replace("1.0", "1.1"))
    importlib.invalidate_caches()
    code, said = typed("resume", str(out))
    assert code == 0, said
    assert stage_state(out / "mine")["inputs"] != noted["inputs"]
    assert weighed.read_text() == "once"
    # where the package is not installed, one line says what to install
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    importlib.invalidate_caches()
    for verb in ("resume", "report"):
        code, said = typed(verb, str(out))
        assert code != 0
        assert "resolved.yaml" in said
        assert MISSING.format("mine") in said


MISSING = "or install the package of the plug-in 'stage.{0}'"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("mine: {digit: 3}", "mine.digit: unknown key. Did you mean 'digits'?"),
        ("mine: {digits: x}", "mine.digits: wrong value (got 'x', expected a whole number)"),
        ("mine: {digits: 0}", "mine.digits: wrong value (got 0, expected >= 1)"),
        ("mine: [1]", "mine: wrong value (got a list, expected a mapping)"),
        ("weigh: {}", "weigh: unknown key, nor an installed stage. Fix: leave it out, " + MISSING.format("weigh")),
        ("serch: {}", "serch: unknown key. Did you mean 'search'? Fix: choose it, " + MISSING.format("serch")),
    ],
)
def test_its_section_is_read_as_strictly_as_others(
    section: str, expected: str, site: Path, mini_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ManticoreError) as caught:
        load_recipe(with_section(mini_recipe, tmp_path, section))
    (line,) = str(caught.value).splitlines()
    assert line.endswith(expected)


def test_an_empty_section_leaves_it_out(site: Path, mini_recipe: Path, tmp_path: Path) -> None:
    recipe = with_section(mini_recipe, tmp_path, "mine:")
    assert "mine" not in [stage.name for stage in stages_of(load_recipe(recipe).recipe)]
    given = [stage.name for stage in stages_of(load_recipe(recipe, ["mine.digits=2", "discretize.path=[0,1]"]).recipe)]
    assert given[given.index("mine") - 1] == "discretize"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('name = "mine"', 'name = "yours"', "the plug-in of package their-stage has no name = 'mine'"),
        ("section = Weighing", "section = None", "no section of manticore.settings.Settings"),
        (
            'after = "discretize"',
            'after = "discretise"',
            "comes after 'discretise', which is not a stage. Did you mean",
        ),
        ("return f", "1 / 0; return f", "the plug-in of package their-stage fails (ZeroDivisionError"),
        ("class Mine(Stage)", "class Mine", "is not a manticore.stages.stage.Stage"),
        ("from manticore.option", "import nowhere; from manticore.option", "No module named 'nowhere'"),
    ],
)
def test_a_broken_stage_is_one_line_with_its_package(
    before: str, after: str, words: str, mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert before in STAGE
    install(tmp_path, "their_stage", STAGE.replace(before, after), stage__mine="their_stage:Mine")
    use(tmp_path, monkeypatch)

    def planned() -> list[str]:
        recipe = load_recipe(with_section(mini_recipe, tmp_path, "mine: {}")).recipe
        return [stage.plan_line(recipe) for stage in stages_of(recipe)]

    with pytest.raises(ManticoreError) as caught:
        planned()
    (line,) = str(caught.value).splitlines()
    assert words in line
    assert "Fix: " in line


@pytest.mark.parametrize("name", ["seed", "alike", "my-stage"])
def test_a_name_that_can_be_no_section_of_its_own(
    name: str, mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = STAGE.replace('"mine"', f'"{name}"')
    install(tmp_path, "their_stage", code, **{f"stage.{name}": "their_stage:Mine"})
    use(tmp_path, monkeypatch)
    recipe = with_section(mini_recipe, tmp_path, f"{name}: {{}}")
    with pytest.raises(ManticoreError) as caught:
        load_recipe(recipe)
    expected = "wrong value" if name == "seed" else f"cannot be a section by the name '{name}'"
    assert expected in str(caught.value)


@pytest.mark.parametrize("found", ["[1]", "float('nan')", "{'a': 1}"])
def test_what_a_stage_has_found_is_plain(
    found: str, mini_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = STAGE.replace('"discretize"\n', '"pretrain"\n').replace(
        "(folder /", f"return Outcome({{'x': {found}}}, ''); (folder /"
    )
    install(tmp_path, "their_stage", first, stage__mine="their_stage:Mine")
    use(tmp_path, monkeypatch)
    recipe = load_recipe(with_section(mini_recipe, tmp_path, "mine: {}"), SHORT)
    with pytest.raises(ManticoreError, match="their-stage returns no Outcome of texts, finite numbers"):
        execute(create_run(recipe, str(tmp_path / "run")))


def test_a_record_is_read_without_the_package_and_whatever_it_holds() -> None:
    values = {"text": "a\u202eb", "none": None, "yes": True, "whole": 3, "nan": float("nan"), "share": 0.5}
    record = {"schema_version": 1, "stages": {"mine": {"package": "p", "summary": "s", "values": values}}}
    found = parse_results(record).stages["mine"].values
    assert found == {**values, "text": "a\ufffdb", "nan": None}
    assert [type(found[name]) for name in ("yes", "whole", "share")] == [bool, int, float]
    values["list"] = [1]
    with pytest.raises(ManticoreError, match=r"stages.mine.values.list: wrong value"):
        parse_results(record)
