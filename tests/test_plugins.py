"""Packages of other people: found by their entry points, imported when something of theirs is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plug_ins import STAGE, install, theirs, use
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import manticore
from manticore import StackConfig, StackForCausalLM, registry
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.experiments.mad.models import candidates
from manticore.file_names import MODEL
from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute
from manticore.tasks.task import load_task

PACKAGES = {
    "projector": """
        from manticore.projectors.kinds import Linear

        class Mine(Linear):
            def __init__(self, d_in, d_out, *, times: float = 2.0, init: str = "identity"):
                super().__init__(d_in, d_out, init=init)
                self.times = times

            def forward(self, x):
                return self.times * super().forward(x)
    """,
    "mixing": """
        from manticore.hybrid.routed import TranslatedMixing

        class Mine(TranslatedMixing):
            def reset_mixture(self):
                super().reset_mixture()
                self.weights.data[:, 0] += 0.25
                self.weights.data[:, 1] -= 0.25
    """,
    "layer": """
        import torch
        from manticore.stacks.mixer import Mixer

        class Mine(Mixer):
            def __init__(self, width, positions, *, start: float = 0.5):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.full((width,), start))

            def forward(self, hidden, step):
                return hidden * self.scale

            def flops(self, tokens):
                return 0
    """,
    "search": """
        from manticore.search.choice import Choice

        def Mine(curves, seed, *, gap: float = 0.5):
            mark = curves.marks[0]
            yield [((0, 1), mark), ((1, 1), mark)]
            return Choice((0, 1), mark, f"it was asked for, with {gap}")
    """,
    "stage": STAGE,
    "task": """
        from datasets import Dataset, DatasetDict
        from manticore.tasks.metrics import TokenMetrics
        from manticore.tasks.task import Task

        def Mine(*, length: int = 8):
            rows = [[(i + k) % 5 for k in range(length)] for i in range(16)]
            split = Dataset.from_dict({"input_ids": rows, "targets": rows})
            data = DatasetDict(train=split, validation=split, test=split)
            return Task("mine", 5, length, data, "accuracy", True, TokenMetrics)
    """,
}
"""Kind → the code of a package that has one thing of it."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, one for each kind."""
    site = tmp_path / "site"
    site.mkdir()
    for kind, code in PACKAGES.items():
        install(site, f"their_{kind}", code, **{f"{kind}__mine": f"their_{kind}:Mine"})
    use(site, monkeypatch)
    return site


def components(folder: Path) -> list[Path]:
    """A stack with their layer, and one without."""
    shapes = {"a": ["mine", "mlp"], "b": ["mamba", "mlp"]}
    for name, layers in shapes.items():
        torch.manual_seed(0)
        StackForCausalLM(StackConfig(layers=layers, vocab_size=5, hidden_size=8)).save_pretrained(folder / name)
    return [folder / name for name in shapes]


def test_a_recipe_uses_things_of_every_kind_and_the_model_says_what_it_needs(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = components(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
name: plugged
components: [{{name: a, source: {a}}}, {{name: b, source: {b}}}]
task: {{name: mine, options: {{length: 6}}}}
combine: {{num_blocks: 2, mixing: mine, projector: mine, projector_options: {{times: 3.0}}}}
align: null
search: {{method: mine, gap: 0.25}}
finetune: {{steps: 12, batch_size: 8}}
compare: null
""")
    run = create_run(load_recipe(str(recipe)), str(tmp_path / "run"))
    results = execute(run)
    assert results["task"]["name"] == "mine"
    assert (results["search"]["path"], results["search"]["reason"]) == ([0, 1], "it was asked for, with 0.25")
    assert len(results["search"]["candidates"]) == 2
    assert 0 <= results["finetune"]["metrics"]["accuracy"] <= 1
    model = AutoModelForCausalLM.from_pretrained(run.path / MODEL)
    (projector,) = model.mixing.projectors.values()
    assert (type(projector).__module__, projector.times) == ("their_projector", 3.0)
    # where the packages are not installed, one line names what is missing
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(site)])
    for name in theirs():
        monkeypatch.delitem(sys.modules, name)
    missing = r"unknown {0} 'mine'.* or install the package of the plug-in '{0}\.mine'"
    with pytest.raises(ManticoreError, match=missing.format("layer")):
        AutoModelForCausalLM.from_pretrained(run.path / MODEL)
    with pytest.raises(ManticoreError, match=missing.format("mixing")):
        manticore.combine([b, b], num_blocks=2, mixing="mine")


def test_combine_a_stack_a_task_and_mad_use_them(site: Path, tmp_path: Path) -> None:
    assert theirs() == []
    hybrid = manticore.combine(components(tmp_path), num_blocks=2, mixing="mine", projector="mine")
    assert hybrid.mixture_weights.tolist() == [[0.75, 0.25]] * 2
    assert theirs() == ["their_layer", "their_mixing", "their_projector"]
    hybrid.save_pretrained(tmp_path / "hybrid")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hybrid")
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, hybrid(ids).logits)
    assert load_task("mine", length=3).length == 3
    (candidate,) = candidates(["stack:mine,mlp"])
    stack = candidate.build(vocab_size=9, positions=8, seed=0)
    assert type(stack.model.layers[0].mixer).__module__ == "their_layer"


def test_options_of_a_plug_in_are_checked_without_importing_it(site: Path) -> None:
    for arguments, expected in (
        (["check", "quickstart", "combine.projector=mine", "combine.projector_options={tims: 1}"], "mean 'times'?"),
        (
            ["check", "quickstart", "combine.projector=mine", "combine.projector_options={times: x}"],
            "expected a number",
        ),
        (["check", "mad-recall", "task={name: mine, options: {length: x}}"], "expected a whole number"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 or expected in str(result.exception), result.output
        assert expected in f"{result.output}{result.exception}"
    assert theirs() == []


def test_what_is_not_named_is_not_imported(site: Path) -> None:
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from typer.testing import CliRunner
from manticore.cli.app import app
outputs = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[2])]
print(json.dumps([[output.exit_code for output in outputs], "".join(output.output for output in outputs),
                  [name for name in sys.modules if name.startswith(("their_", "torch"))]]))
"""
    verbs = [["--help"], ["combine", "--help"], ["check", "quickstart"], ["ls"], ["show", "mine"], ["show", "linear"]]
    done = subprocess.run([sys.executable, "-c", code, str(site), json.dumps(verbs)], capture_output=True, text=True)
    codes, output, imported = json.loads(done.stdout)
    assert codes == [0] * len(verbs), output
    assert imported == []
    for kind in PACKAGES:
        assert f"mine: {kind}. plug-in of package their-{kind}" in output
    # `show` has read options and defaults from the source
    assert "times" in output
    assert "2.0" in output


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_name_that_is_taken_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = next(iter(registry.entries(kind)))
    install(tmp_path, "their_rival", PACKAGES[kind], **{f"{kind}.{taken}": "their_rival:Mine"})
    use(tmp_path, monkeypatch)
    with pytest.raises(ManticoreError, match=f"{kind} '{taken}' is the name of things of Manticore and .* their-rival"):
        registry.resolve(kind, taken)
    assert theirs() == []
    # the others of the kind, and lists of names, are none the worse
    last = list(registry.entries(kind))[-1]
    assert registry.resolve(kind, last) is not None


def test_two_packages_of_one_name_are_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "their_second", PACKAGES["projector"], projector__mine="their_second:Mine")
    use(site, monkeypatch)
    with pytest.raises(ManticoreError, match=r"things of package their-.* and package their-.*Fix: uninstall"):
        registry.resolve("projector", "mine")


@pytest.mark.parametrize(
    ("point", "value", "words"),
    [
        ("layer.broken", "their_gone:Mine", "layer 'broken': the plug-in of package their-package .*No module named"),
        ("layer.broken", "their_package:Mine", "fails .AttributeError"),
        ("layer.broken", "their_package", "package their-package fails"),
        ("layer.broken", "their_package:number", "package their-package fails .TypeError.*not a callable"),
        ("layer.broken", "their_package:nothing", "package their-package makes a NoneType .expected a .*Mixer"),
        ("layer.broken", "their_package:raises", "plug-in of package their-package .*ZeroDivisionError"),
        ("layers.broken", "their_package:nothing", "unknown layer 'broken' .the plug-in 'layers.broken' of package th"),
    ],
)  # fmt: skip
def test_a_broken_plug_in_is_one_line_with_its_package(
    point: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        number = 3
        def nothing(width, positions): pass
        def raises(width, positions): 1 / 0
    """
    install(tmp_path, "their_package", code, **{point: value})
    use(tmp_path, monkeypatch)
    with pytest.raises(ManticoreError, match=words) as caught:
        StackConfig(layers=["broken"])
    assert "\n" not in str(caught.value)
