"""A run that was killed does not go on with other inputs than it began with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manticore.errors import ManticoreError
from manticore.runs.folder import create_run, open_run
from manticore.runs.reporter import LogReporter
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute

RECIPE = """\
name: changing
components: [{{name: gpt, source: {desk}/gpt}}, {{name: mamba, source: {desk}/mamba}}]
task: {{name: text, options: {{source: {desk}/text.txt, length: 16}}}}
combine: {{num_blocks: 2}}
align: {{text: {desk}/calibration.txt, tokens: 512, length: 16}}
search: null
discretize: {{path: [1, 0]}}
finetune: {{steps: 2, batch_size: 4, test_examples: 4}}
compare: {{seeds: [0], learning_rates: [1e-3], ensemble: false}}
"""


class StopsInCompare(LogReporter):
    def started(self, stage: str, plan: str) -> None:
        if stage == "compare":
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, checkpoints: list[Path]) -> Path:
    """Parents, texts, and a run that was stopped when it began to compare."""
    desk = tmp_path_factory.mktemp("desk")
    for checkpoint in checkpoints:
        shutil.copytree(checkpoint, desk / checkpoint.name)
    for name in ("text", "calibration"):
        lines = (f"def {name}_{i % 7}(x):\n    return x + {i % 11}\n\n" for i in range(400))
        (desk / f"{name}.txt").write_text("".join(lines))
    (desk / "recipe.yaml").write_text(RECIPE.format(desk=desk))
    with pytest.raises(KeyboardInterrupt):
        execute(create_run(load_recipe(str(desk / "recipe.yaml")), str(desk / "run")), StopsInCompare())
    return desk


def one_bit(file: Path) -> Any:
    content = bytearray(file.read_bytes())
    # the last bit of a number in the middle
    content[len(content) // 2 // 4 * 4] ^= 1
    file.write_bytes(content)


def one_word(file: Path) -> None:
    file.write_text(file.read_text().replace("return x + 5", "return x - 5"))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gpt/model.safetensors": (one_bit, "is of another model: it was started with weights of gpt="),
    "mamba/config.json": (lambda file: file.write_text(file.read_text() + "\n"), "started with weights of mamba="),
    "text.txt": (one_word, "is of other data: it was started with data, "),
    "calibration.txt": (one_word, "is of other data: it was started with data, text to align on="),
    "run/combine/model/model.safetensors": (one_bit, "is not what was written, and later stages read it"),
    "run/align/model/config.json": (Path.unlink, "is missing, and later stages read it"),
    "run/discretize/model/model.safetensors": (one_bit, "is not what was written, and later stages read it"),
    "run/finetune/state.json": (one_bit, "cannot be read"),
}


@pytest.mark.parametrize("file", CHANGES)
def test_what_changed_since_is_refused_in_one_line(desk: Path, file: str) -> None:
    change, said = CHANGES[file]
    before = (desk / file).read_bytes()
    change(desk / file)
    assert not (desk / file).exists() or (desk / file).read_bytes() != before
    with pytest.raises(ManticoreError) as caught:
        execute(open_run(desk / "run"))
    (desk / file).write_bytes(before)
    assert said in str(caught.value)
    assert "Fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_put_back_it_goes_on(desk: Path) -> None:
    results = execute(open_run(desk / "run"))
    assert results["status"] == "complete"
    lineage = json.loads((desk / "run" / "lineage.json").read_text())
    assert [component["sha256"] for component in results["components"]] == [m["sha256"] for m in lineage["models"]]
