"""What a model writes is scored by itself: exact match, recall by length, speed, beside its likelihood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from gguf_models import llama, tokenizer
from tiny_models import gpt_neo_config, seeded
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.experiments.generating import generated
from manticore.tasks.answers import answers
from manticore.tasks.task import load_task
from manticore.training.budget import cache_cost

FEW = {"num_train_examples": 4, "num_validation_examples": 4, "num_test_examples": 24, "vocab_size": 8}


def recall_task(length: int):
    return load_task("mad/in-context-recall", seq_len=length, **FEW)


def greedy(model, task) -> list[list[int]]:
    """What plain forward passes without a cache would write."""
    found = []
    for answer in answers(task, "test"):
        ids = answer.prompt[None]
        for _ in answer.tokens:
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        found.append(ids[0, len(answer.prompt) :].tolist())
    return found


def told(task, written: list[list[int]]):
    """The task whose answers are those."""
    rows = []
    for answer, tokens in zip(answers(task, "test"), written, strict=True):
        ids, before = [*answer.prompt.tolist(), *tokens[:-1]], len(answer.prompt) - 1
        rows.append({"input_ids": ids, "targets": [-100] * before + tokens})
    return replace(task, data=DatasetDict(test=Dataset.from_list(rows)))


@pytest.mark.parametrize("name", ["in-context-recall", "selective-copying"])
def test_exact_match_is_that_of_greedy_decoding_without_a_cache(name):
    # a token that the family takes for the end of a text may be an answer
    model = seeded(gpt_neo_config(8, 16, 2, eos_token_id=5, bos_token_id=5), 3)
    options = {"num_tokens_to_copy": 2} if name == "selective-copying" else {}
    task = load_task(f"mad/{name}", seq_len=24, **{**FEW, **options})
    wanted = [answer.tokens for answer in answers(task, "test")]
    found = generated(model, task, lengths=[16, 32, 512])
    right = [written == tokens for written, tokens in zip(greedy(model, task), wanted, strict=True)]
    assert (found.exact_match, found.examples) == (sum(right) / 24, 24)
    assert [sample.written for sample in found.samples] == [" ".join(map(str, ids)) for ids in greedy(model, task)[:3]]
    assert generated(model, told(task, greedy(model, task)), lengths=[]).exact_match == 1
    # 512 lies beyond the model's 64 positions
    assert [each.length for each in found.recall] == [16, 32]
    longer = load_task(f"mad/{name}", seq_len=32, **{**FEW, **options})
    hits = [w == a.tokens for w, a in zip(greedy(model, longer), answers(longer, "test"), strict=True)]
    assert found.recall[1].share == sum(hits) / 24
    cost = cache_cost(model, 32)
    assert found.speed[1].cache_bytes == cost.bytes_per_token * 32 + cost.state_bytes
    assert all(each.first_token_ms > 0 and each.tokens_per_second > 0 for each in found.speed)
    assert len(found.samples) == 3


def test_what_writes_nothing_is_refused():
    task = load_task("mad/compression", seq_len=8, **FEW)
    with pytest.raises(ManticoreError, match="made for auto-encoders"):
        generated(seeded(gpt_neo_config(8, 16, 2), 0), task)


def test_the_verb_writes_it_all_beside_the_likelihood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hybrid = manticore.combine([llama(0), llama(1)], num_blocks=2, tokenizer=None)
    hybrid.tokenizer = tokenizer()
    hybrid.save_pretrained("hybrid")
    Path("words.txt").write_text("some words of a text that is long enough\n" * 400)
    words = ["evaluate", "hybrid", "-t", "text", "--task-option", "source=words.txt", "--task-option", "length=128"]
    few = ["--max-examples", "2"]
    result = CliRunner().invoke(app, [*words, *few, "--generate", "--lengths", "256,128", "-o", "scores.json"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "exact match 0.000 of 2 answers, written greedily" in said
    assert "recall at 256 tokens: 0.000 of 8" in said
    assert "after 128 tokens: first token " in said
    assert "it writes " in said
    kept = json.loads(Path("scores.json").read_text())
    assert "loss" in kept["metrics"]
    assert [each["length"] for each in kept["generated"]["recall"]] == [128, 256]
    assert [each["context"] for each in kept["generated"]["speed"]] == [128, 256]
    assert len(kept["generated"]["samples"]) == 3

    for options, line in [
        (["--lengths", "128"], "--lengths is for what a model writes. Fix: add --generate"),
        (["--generate", "--lengths", "12,x"], "--lengths: wrong value (got '12,x', expected whole numbers from 2"),
        (["--generate", "--lengths", "0"], "--lengths: wrong value (got '0'"),
    ]:
        result = CliRunner().invoke(app, [*words, *options])
        assert result.exit_code == 2
        assert line in " ".join(result.output.split())
