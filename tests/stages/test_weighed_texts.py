"""What a run keeps of weights that follow the text: pieces of held-out text, and the weights along them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.report.results import parse_results
from manticore.stages.combine import CombineRecord, weighed_texts
from manticore.tasks.task import load_task
from manticore.training.tokenizers import train_tokenizer

WORDS = "def once():\n\treturn upon\n\n"


def test_pieces_are_the_first_of_the_validation_split_with_the_weights_of_forward(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 300)
    tokenizer = train_tokenizer([WORDS * 20], vocab_size=300)
    parents = [tiny_model("mistral", seed=1, vocab_size=300), tiny_model("llama", seed=3, vocab_size=300)]
    hybrid = manticore.combine(parents, num_blocks=1, output="bayes", tokenizer=tokenizer, check=False)
    task = load_task("text", tokenizer=hybrid.tokenizer, source=str(tmp_path / "text.txt"), length=32)
    texts = weighed_texts(hybrid, task)
    assert 1 <= len(texts) <= 4
    for row, text in zip(task.data["validation"]["input_ids"], texts):
        ids = torch.tensor(row)[None]
        expected = hybrid(ids, output_weights=True).output_weights[0].detach()
        assert torch.allclose(torch.tensor(text["weights"]), expected, atol=1e-4)
        assert "".join(text["tokens"]) == tokenizer.decode(row).replace("\n", "⏎").replace("\t", "⇥")
    # weights that are the same everywhere are nothing to look at
    assert weighed_texts(manticore.combine(parents, num_blocks=1, tokenizer=tokenizer, check=False), task) == []
    # as the record is written, and read again
    record = CombineRecord.written(num_blocks=1, mixing="routed", output="bayes", texts=texts)
    read = parse_results({"schema_version": 1, "combine": record}).combine
    assert read is not None
    assert [len(text.tokens) for text in read.texts] == [32] * len(texts)
    assert all(math.isclose(sum(row), 1, abs_tol=1e-3) for text in read.texts for row in text.weights)
