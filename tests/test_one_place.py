"""An option of every training is written once: in a copy of the package, one field is added to one file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import manticore

FIELD = '''    example: Count = 7
    """An option that this test has added."""
'''

USE = """
import inspect, json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], *json.loads(sys.argv[3])]
import manticore
from copying_task import VOCABULARY, copying_task
from typer.testing import CliRunner
from manticore.cli.app import app
from manticore.experiments import comparison_runs
from manticore.schema.recipe import Recipe
from manticore.settings import Compare
from tests.conftest import gpt_neo
import public_stub

assert manticore.__file__.startswith(sys.argv[1])
recipe = Recipe.model_validate({
    "name": "run", "components": [{"name": name, "source": name} for name in "ab"], "task": {"name": "text"},
    "finetune": {"example": 5}, "search": {"example": 4},
})
given = []
train = comparison_runs.finetune

def watched(model, task, settings, **options):
    given.append(settings.example)
    return train(model, task, settings, **options)

comparison_runs.finetune = watched
settings = Compare(**recipe.finetune.shared(), seeds=[0], learning_rates=[1e-3], ensemble=False, budget_flops=10**8)
out, model = Path(sys.argv[2]), gpt_neo(VOCABULARY)
manticore.compare({"one": model}, copying_task(), settings, batch_size=8, cpu=True, out=out / "c")
manticore.finetune(model, copying_task(), steps=1, batch_size=8, example=6, cpu=True, out=out / "f")
kept = [file.read_text() for file in out.rglob("*.json*")]
print(json.dumps({
    "signatures": [inspect.signature(getattr(manticore, name)).parameters["example"].default
                   for name in ("finetune", "search", "compare")],
    "help": "example: An option that this test has added." in manticore.finetune.__doc__,
    "verbs": ["--example" in CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
              for verb in ("finetune", "search", "compare")],
    "schema": "example" in CliRunner().invoke(app, ["show", "schema"]).output,
    "stub": public_stub.stub().count("example: int = 7"),
    "given": given,
    "keys": sorted({value for text in kept for value in (5, 6) if f'"example": {value}' in text}),
}))
"""


def test_an_option_of_every_training_is_added_in_one_place(tmp_path):
    root = Path(manticore.__file__).parent
    copy = tmp_path / "package" / "manticore"
    shutil.copytree(root, copy, symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "settings.py"
    text = file.read_text(encoding="utf-8")
    start = text.index("class Training(Settings)")
    end = text.index("    batch_size: Size = 32\n", start)
    file.write_text(text[:end] + FIELD + text[end:], encoding="utf-8")
    paths = [str(root.parent), str(root.parent / "tests" / "builders")]
    done = subprocess.run(
        [sys.executable, "-c", USE, str(copy.parent), str(tmp_path / "runs"), json.dumps(paths)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "signatures": [7, 7, 7],
        "help": True,
        "verbs": [True, True, True],
        "schema": True,
        "stub": 4,
        "given": [5],
        "keys": [5, 6],
    }
