"""What the models of a comparison write stands beside their scores: the same as by hand, kept, and made once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from class_tasks import class_task
from copying_task import copying_task
from gguf_models import llama, tokenizer
from html_pages import Page
from test_compare import BATCH
from tiny_models import seeded
from transformers import GPT2Config, PreTrainedModel

import manticore
from manticore.errors import ManticoreError
from manticore.experiments import comparison_writing
from manticore.experiments.generating import generated
from manticore.experiments.models import fit_to_task
from manticore.report import write_report
from manticore.tasks.task import load_task
from manticore.training.finetune import finetune

FEW = {"seq_len": 16, "num_train_examples": 64, "num_validation_examples": 8, "num_test_examples": 16, "vocab_size": 13}
UNIT = 8_000_000


def parents() -> dict[str, PreTrainedModel]:
    """Two tiny models with 40 positions, always the same."""
    sizes = {"vocab_size": 13, "n_layer": 1, "n_head": 2, "n_positions": 40}
    return {name: seeded(GPT2Config(n_embd=width, **sizes), width) for name, width in (("narrow", 8), ("wide", 16))}


def recalling():
    return load_task("mad/in-context-recall", **FEW)


def run(models, out=None, **options):
    settings = {"generate": True, "lengths": [8, 16, 32], "budget_flops": UNIT, "learning_rates": [1e-3, 1e-2]}
    return manticore.compare(
        models, options.pop("task", None) or recalling(), batch_size=BATCH, ensemble=False, seeds=[0], cpu=True,
        warmup_steps=2, out=out, **(settings | options),
    )  # fmt: skip


def untimed(rows):
    """What does not depend on the clock."""
    return [
        (row.model, row.budget, row.left_out, {name: value for name, value in row.generated.items() if name != "speed"})
        for row in rows
    ]


@pytest.fixture
def written(monkeypatch) -> list:
    """The task of each model that is let write."""
    models, own = [], comparison_writing.generated

    def told(model, task, *args, **options):
        models.append(task)
        return own(model, task, *args, **options)

    monkeypatch.setattr(comparison_writing, "generated", told)
    return models


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_what_is_written_is_that_of_the_model_that_was_scored(tmp_path, trainable):
    task, models = recalling(), parents()
    table = run(models, tmp_path / "out", trainable=trainable)
    assert [(row.model, row.budget) for row in table.writing] == [
        (name, budget) for name in models for budget in (None, 0)
    ]
    for name in models:
        before, after = [row for row in table.writing if row.model == name]
        assert before.left_out == ""
        lr = table.row(name).seeds[0]["lr"]
        tuning = {"budget_flops": UNIT, "warmup_steps": 2, "batch_size": BATCH, "lr": lr, "trainable": trainable}
        tuned = finetune(parents()[name], task, **tuning, cpu=True)
        for row, model in ((before, parents()[name]), (after, tuned.model)):
            expected = json.loads(json.dumps(generated(model, task, lengths=[8, 16, 32]).to_dict()))
            assert untimed([row])[0][3] == {key: value for key, value in expected.items() if key != "speed"}
            # 32 tokens and 16 that are written are beyond its 40 positions
            assert [each["context"] for each in row.generated["speed"]] == [8, 16]
    assert not (tmp_path / "out" / "weights").exists()


def test_before_training_the_table_has_what_it_can_know():
    models = parents()
    task = load_task("mad/in-context-recall", **{**FEW, "vocab_size": 11})
    models["made"] = lambda seed: fit_to_task(parents()["narrow"], task, seed)
    table = run(models, task=task, budgets=[0, 1], lengths=[8])
    found = {(row.model, row.budget): row for row in table.writing}
    assert list(found) == [
        ("narrow", None), ("narrow", 1), ("wide", None), ("wide", 1), ("made", 0), ("made", 1)
    ]  # fmt: skip
    assert found["narrow", None].left_out.endswith("narrow gets fresh embeddings and a fresh head")
    assert found["narrow", None].generated == {}
    assert found["made", 0].generated["examples"] == 16
    only = run({"narrow": parents()["narrow"]}, budgets=[0], lengths=[8])
    assert [(row.model, row.budget) for row in only.writing] == [("narrow", None)]


def test_what_was_written_is_kept_and_scores_do_not_change(tmp_path, written):
    out, models = tmp_path / "out", {"narrow": parents()["narrow"]}
    plain = run(models, out, generate=False, lengths=None)
    assert (plain.writing, written) == ([], [])
    names = []
    table = run(models, out, resume=True, progress=lambda done, runs, name: names.append((done, runs, name)))
    assert len(written) == 2
    assert names[-2:] == [(2, 4, "narrow · writes"), (3, 4, "narrow · writes")]
    # the times too: the run that was trained again only left its weights
    assert table.to_dict()["rows"] == plain.to_dict()["rows"]
    again = run(models, out, resume=True)
    assert (again.writing, len(written)) == (table.writing, 2)
    assert untimed(run(models).writing) == untimed(table.writing)
    del written[:]
    other = run(models, out, resume=True, lengths=[8])
    assert [len(row.generated["recall"]) for row in other.writing] == [1, 1]
    assert len(written) == 2


def test_a_killed_comparison_writes_with_the_weights_it_has_left(tmp_path, written, monkeypatch, caplog):
    out, models = tmp_path / "out", {"narrow": parents()["narrow"]}

    def stopped(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison_writing, "generated", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(models, out)
    files = sorted((out / "weights").iterdir())
    assert len(files) == 2
    kept = {file: file.read_bytes() for file in files}
    table = run(models, out, resume=True)
    assert caplog.text == ""
    # damaged, they are made again
    (out / "weights").mkdir()
    for file, content in kept.items():
        file.write_bytes(content[:100])
    other = run(models, out, resume=True, lengths=[8])
    assert "cannot be read" in caplog.text
    assert "is trained again, since its weights were not kept" in caplog.text
    assert [row.generated["samples"] for row in other.writing] == [row.generated["samples"] for row in table.writing]


def test_text_is_written_with_each_models_own_tokenizer(tmp_path):
    (tmp_path / "words.txt").write_text("some words of a text that is long enough\n" * 400)
    words = tokenizer()
    for seed in (0, 1):
        llama(seed).save_pretrained(tmp_path / f"parent{seed}")
        words.save_pretrained(tmp_path / f"parent{seed}")
    task = load_task("text", tokenizer=words, source=str(tmp_path / "words.txt"), length=128)
    models = {f"parent{seed}": str(tmp_path / f"parent{seed}") for seed in (0, 1)}
    options = {"test_examples": 3, "budget_flops": 3e9, "learning_rates": [1e-3]}
    table = run(models, task=task, lengths=[96, 256], **options)
    assert [row.generated["examples"] for row in table.writing] == [3] * 4
    for row in table.writing:
        # rotary positions end nowhere, whatever a configuration says
        assert [each["length"] for each in row.generated["recall"]] == [96, 256]
        assert [each["context"] for each in row.generated["speed"]] == [96, 256]
        assert row.generated["samples"][0]["prompt"].count("\n") >= 1
    # and all of it is on the page
    about = {"name": "text", "primary_metric": "loss", "higher_is_better": False}
    record = {"schema_version": 1, "task": about, "compare": table.to_dict()}
    (tmp_path / "results.json").write_text(json.dumps(record))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Recall and speed by length" in page.words()
    for row in table.writing:
        when = "as downloaded" if row.budget is None else "fine-tuning alone"
        shares = [f"{each['share']:.3f}" for each in row.generated["recall"]]
        right = round(3 * row.generated["exact_match"])
        assert page.row(f"{row.model} {when}")[1:] == [f"{row.generated['exact_match']:.3f} {right} of 3", *shares]
        sample = row.generated["samples"][0]
        assert " ".join(sample["written"].replace("\n", "↵").split())[:60] in page.words()


@pytest.mark.parametrize("why", ["classes", "autoencoder", "short", "lengths"])
def test_what_writes_nothing_is_refused_before_anything_trains(why, monkeypatch):
    task, options = copying_task(), {}
    if why == "classes":
        task, line = class_task(), "has classes, so that nothing is written. Fix: leave generate out"
    elif why == "autoencoder":
        task, line = replace(task, backbone="autoencoder"), "is made for auto-encoders, so that nothing is written"
    elif why == "short":
        words = tokenizer()
        task = load_task("text", tokenizer=words, source=__file__, length=128)
        line, options = "8 tokens do not hold a hidden key and its question", {"tokenizer": words, "lengths": [8, 512]}
    else:
        line, options = "lengths", {"generate": False}
    with pytest.raises(ManticoreError, match=line) as caught:
        run(parents(), task=task, progress=lambda *_: pytest.fail("something has begun"), **options)
    assert "\n" not in str(caught.value)
