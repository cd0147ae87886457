"""A recipe that goes through every stage in seconds: two models of a few thousand parameters, a few steps each."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

MINI = """\
name: mini
pretrain:
  - {{name: gpt, family: gpt_neo, layers: 3, width: 32, {shared}}}
  - {{name: mamba, family: mamba, layers: 2, width: 24, {shared}}}
components:
  - {{name: gpt, source: gpt}}
  - {{name: mamba, source: mamba}}
task:
  name: mad/in-context-recall
  options: {{seq_len: 16, num_train_examples: 64, num_test_examples: 16, num_validation_examples: 16}}
combine: {{num_blocks: 2}}
align: {{text: {text}, tokens: 2048, length: 32}}
search: {{method: darts, steps: 6, batch_size: 8, save_steps: 2}}
finetune: {{steps: 6, batch_size: 8, save_steps: 2}}
compare: {{seeds: [0], learning_rates: [1e-3]}}
"""


@pytest.fixture(scope="session")
def mini_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the recipe; its text is a file beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    text = folder / "text.py"
    text.write_text(Path(argparse.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    shared = f"text: {text}, vocab_size: 300, length: 32, steps: 6, batch_size: 4"
    recipe = folder / "mini.yaml"
    recipe.write_text(MINI.format(shared=shared, text=text), encoding="utf-8")
    return recipe
