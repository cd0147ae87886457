"""Verbs import what they use: modules are counted, since how long imports take depends on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

TRAINING = ["optuna", "peft", "transformers.trainer", "transformers.trainer_callback"]
DATA = ["datasets", "pandas", "pyarrow"]
PAGES = ["matplotlib"]
MODELS = ["torch", "transformers"]
HEAVY = [*MODELS, *TRAINING, *DATA, *PAGES]
"""What takes long to import, and what only some verbs need."""
USES: dict[str, list[str]] = {
    "--help": [],
    "ls": [],
    "show quickstart": [],
    "check quickstart": [],
    "fetch --help": [],
    "design --help": [],
    "doctor": ["torch"],
    "combine model model --num-blocks 1 -o hybrid": MODELS,
    "generate model w1 --max-new-tokens 1": MODELS,
    # one of its rows is of low-rank updates
    "plan quickstart": [*MODELS, "peft"],
    "plan model model combine.num_blocks=1 task.options.length=8 align.length=8": [*MODELS, "peft"],
    "evaluate model --task text --task-option source=text.txt --task-option length=8": [*MODELS, *DATA],
}
"""Verb → what it may import of what takes long."""

# all verbs on models stand on transformers' class for them: imported once, before they are forked
_RUN = """
import json, os, sys
verbs, heavy = json.load(sys.stdin)
for verb, uses in verbs.items():
    if "transformers" in uses and "transformers" not in sys.modules:
        from transformers import PreTrainedModel
    child = os.fork()
    if child == 0:
        from manticore.cli import main
        sys.argv = ["manticore", *verb.split()]
        os.dup2(2, 1)
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        with open("seen.jsonl", "a") as file:
            file.write(json.dumps([verb, code, [name for name in heavy if name in sys.modules]]) + "\\n")
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def seen(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[str]]]:
    """Verb → its exit code, and what it imported of what takes long."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "model").symlink_to(shelf / "gpt")
    (folder / "text.txt").write_text(
        "\n".join(" ".join(f"w{n % 40}" for n in range(k, k + 60)) for k in range(100)), encoding="utf-8"
    )
    subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps([USES, HEAVY]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        check=True,
        timeout=300,
    )
    lines = (folder / "seen.jsonl").read_text(encoding="utf-8").splitlines()
    return {verb: (code, modules) for verb, code, modules in map(json.loads, lines)}


@pytest.mark.parametrize("verb", USES)
def test_a_verb_imports_nothing_that_takes_long_and_that_it_does_not_use(
    verb: str, seen: dict[str, tuple[Any, list[str]]]
) -> None:
    code, modules = seen[verb]
    assert code in (0, None)
    assert set(modules) <= set(USES[verb])
