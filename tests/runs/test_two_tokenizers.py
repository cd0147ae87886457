"""A run over two components with tokenizers of their own, on text: everything reads it with the one that was kept."""

from __future__ import annotations

import json
from pathlib import Path

from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute


def test_a_run_on_text_compares_what_reads_the_same_tokens(mini_recipe: Path, tmp_path: Path) -> None:
    text = mini_recipe.parent / "text.py"
    recipe = tmp_path / "two.yaml"
    written = mini_recipe.read_text(encoding="utf-8").replace("vocab_size: 300", "vocab_size: 420", 1)
    before, after = written.split("task:\n")[0], written.split("combine:")[1]
    task = f"task: {{name: text, options: {{source: {text}, length: 32}}}}\n"
    recipe.write_text(before + task + "combine:" + after.replace("num_blocks: 2", "num_blocks: 2, tokenizer: mamba"))

    run = create_run(
        load_recipe(str(recipe), ["finetune.test_examples=8", "search.steps=2", "align.tokens=1024"]),
        str(tmp_path / "run"),
    )
    results = execute(run)

    combined = results["combine"]
    assert combined["tokenizer"] == "mamba"
    gpt, mamba = combined["reembedded"]
    assert mamba is None
    # the larger vocabulary has all tokens of the smaller one, from the same text
    assert gpt["tokens"] == gpt["exact"] == 300
    hybrid = ManticoreForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert hybrid.config.vocab_size == 300
    assert len(hybrid.tokenizer) == 300
    scores = {row["model"]: row["mean"] for row in results["compare"]["rows"] if row["budget"] == 0}
    found = {"hybrid"} if len(set(results["discretize"]["path"])) > 1 else set()
    assert set(scores) == {"gpt", "mamba", "ensemble (probabilities)", "ensemble (bayes)", "supernet (soft)"} | found
    assert all(0 < score < 7 for score in scores.values())
    for page in (tmp_path / "run" / "report.html", tmp_path / "run" / "model" / "README.md"):
        assert "gpt was re-embedded for the tokenizer of mamba (100% of the tokens" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["tokenizer_component"] == 1
