import hashlib

import numpy as np
import pytest

from manticore.errors import ManticoreError
from manticore.tasks.mad import generate, in_context_recall, noisy_in_context_recall
from manticore.tasks.metrics import IGNORE
from manticore.tasks.recall import recall_example
from manticore.tasks.task import load_task

SMALL = {"num_train_examples": 40, "num_test_examples": 10}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digests(data):
    return [hashlib.sha256(a.tobytes()).hexdigest()[:16] for split in ("train", "test") for a in data[split]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "in-context-recall",
            ["4def3b034c43358f", "df1f5a83139c5b2f", "b1dff59a6e8bcf35", "3a037cfacf5fa008"],
        ),
        (
            "noisy-in-context-recall",
            ["78a263e323605bc6", "c9df90de54b02d9d", "e897d823b02a7f0e", "f190b2b1274ef60b"],
        ),
    ],
)
def test_the_baseline_is_the_published_data_bit_for_bit(name, expected):
    data = generate(name, cache=False)
    assert data["train"][0].shape == (12800, 127)
    assert data["test"][1].shape == (1280, 127)
    assert digests(data) == expected


def test_examples_of_the_fact_sheet():
    inputs, targets = recall_example(np.random.default_rng(0), training=True, vocab_size=8, seq_len=12)
    assert inputs == [2, 6, 1, 5, 0, 4, 0, 4, 0, 4, 0]
    assert targets == [6, 1, 5, 0, 4, 0, 4, 0, 4, 0, 4]
    _, scored = recall_example(np.random.default_rng(0), training=False, vocab_size=8, seq_len=12)
    assert scored == [IGNORE] * 6 + [4, IGNORE, 4, IGNORE, 4]
    inputs, scored = recall_example(
        np.random.default_rng(0),
        training=False,
        vocab_size=12,
        seq_len=12,
        noise_vocab_size=4,
        frac_noise=0.4,
    )
    assert inputs == [10, 9, 8, 8, 3, 6, 2, 6, 2, 6, 3]
    assert scored == [IGNORE] * 8 + [6, IGNORE, 6]


def test_the_cache_returns_the_same_data_and_survives_damage(own_cache):
    first = generate("in-context-recall", **SMALL)
    (entry,) = own_cache.rglob("*.npz")
    assert list(own_cache.rglob("*.part")) == []
    assert digests(generate("in-context-recall", **SMALL)) == digests(first)
    entry.write_bytes(entry.read_bytes()[:100])
    again = generate("in-context-recall", **SMALL)
    assert digests(again) == digests(first)
    assert again["test"][1].dtype == np.int64
    assert digests(generate("in-context-recall", **SMALL)) == digests(first)


def test_an_unusable_cache_folder_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "file"))
    data = generate("in-context-recall", **SMALL)
    assert digests(data) == digests(generate("in-context-recall", cache=False, **SMALL))
    assert "cannot be written" in caplog.text


def test_every_setting_changes_the_data():
    base = digests(generate("in-context-recall", **SMALL))
    for change in ({"seed": 1}, {"vocab_size": 32}, {"seq_len": 64}, {"num_train_examples": 41}):
        assert digests(generate("in-context-recall", **{**SMALL, **change})) != base


def test_the_task_scores_what_its_data_say():
    task = load_task("mad/in-context-recall", num_validation_examples=12, **SMALL)
    assert (task.vocab_size, task.length, task.chance) == (16, 127, 0.125)
    assert {split: len(rows) for split, rows in task.data.items()} == {
        "train": 40,
        "validation": 12,
        "test": 10,
    }
    train, test = task.data["train"][:], task.data["test"][:]
    assert (train["targets"][:, :-1] == train["input_ids"][:, 1:]).all()
    scored = test["targets"][:, :-1] != IGNORE
    assert (test["targets"][:, :-1][scored] == test["input_ids"][:, 1:][scored]).all()
    assert (test["targets"][:, -1] >= 8).all()
    state = task.metric_state()
    perfect = 9.0 * (test["targets"].clamp(min=0).unsqueeze(-1) == np.arange(16)).float()
    state.update(perfect, test["targets"])
    assert state.compute()[task.primary_metric] == 1.0


def test_validation_shares_no_sequence_with_train_or_test():
    task = in_context_recall(num_train_examples=1000, num_validation_examples=500, num_test_examples=500)
    rows = [tuple(row.tolist()) for split in task.data.values() for row in split[:]["input_ids"]]
    assert len(set(rows)) == len(rows)


def test_noisy_task_knows_its_chance():
    task = noisy_in_context_recall(num_validation_examples=3, **SMALL)
    assert (task.vocab_size, task.chance) == (32, 0.125)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 127}, "seq_len is 127, expected an even number"),
        ({"seq_len": 2}, "Fix: seq_len=4"),
        ({"vocab_size": 3}, "Fix: vocab_size=4"),
        ({"vocab_size": 16.5}, "expected a whole number"),
        ({"vocab_size": "16"}, "expected a whole number"),
        ({"vocab_size": True}, "expected a whole number"),
        ({"num_train_examples": 0}, "num_train_examples is 0"),
        ({"num_test_examples": -1}, "num_test_examples is -1"),
        ({"num_validation_examples": None}, "num_validation_examples is None"),
        ({"vocabsize": 16}, "Did you mean 'vocab_size'"),
    ],
)
def test_bad_options_end_in_one_line(options, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        load_task("mad/in-context-recall", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frac_noise": 1.0}, "frac_noise is 1.0"),
        ({"frac_noise": "much"}, "expected a number"),
        ({"noise_vocab_size": 0}, "noise_vocab_size is 0"),
        ({"noise_vocab_size": 30}, "leaves 2 tokens"),
        ({"seq_len": 4, "frac_noise": 0.99}, "held noise only"),
    ],
)
def test_bad_noise_ends_in_one_line(options, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        noisy_in_context_recall(**options, **SMALL)
    assert message in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(ManticoreError, match="Did you mean 'in-context-recall'"):
        generate("in-context-recal")
    with pytest.raises(ManticoreError, match="unknown task"):
        load_task("mad/in-context")
    with pytest.raises(ManticoreError, match="unknown option 'frac_noise'"):
        generate("in-context-recall", frac_noise=0.1)
