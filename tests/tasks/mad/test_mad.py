import hashlib
from itertools import permutations

import numpy as np
import pytest

from manticore.errors import ManticoreError
from manticore.tasks.mad.examples import KINDS, PUBLISHED_SEED, generate
from manticore.tasks.mad.fuzzy_recall import fuzzy_recall_example
from manticore.tasks.mad.memorization import facts
from manticore.tasks.mad.recall import recall_example
from manticore.tasks.mad.streams import Streams
from manticore.tasks.metrics import IGNORE

SMALL = {"num_train_examples": 40, "num_test_examples": 10}
FUZZY_SMALL = {"vocab_size": 9, "seq_len": 24, "k_motif_size": 2, "v_motif_size": 2}

BASELINES = {
    "in-context-recall": (
        (12800, 127),
        ["4def3b034c43358f", "df1f5a83139c5b2f", "b1dff59a6e8bcf35", "3a037cfacf5fa008"],
    ),
    "noisy-in-context-recall": (
        (12800, 127),
        ["78a263e323605bc6", "c9df90de54b02d9d", "e897d823b02a7f0e", "f190b2b1274ef60b"],
    ),
    "fuzzy-in-context-recall": (
        (12800, 128),
        ["2ace4cffe5326a65", "be0c004caeedd255", "665bd3aab4dd791b", "e691d917c1b275c0"],
    ),
    "selective-copying": (
        (12800, 256),
        ["2d6e2456739ad177", "1d8b7de1e6286b21", "a8ddfe6fbedba640", "8c71cebd3aa7ca4f"],
    ),
    "compression": (
        (12800, 32),
        ["772183cb20e9b7c7", "772183cb20e9b7c7", "4b751d3882fb3558", "4b751d3882fb3558"],
    ),
    "memorization": (
        (256, 32),
        ["3732a8933ac51323", "6aa6df0033e44eed", "9c1132ff8678cfe3", "2a4e4f46462e5f28"],
    ),
}
"""Task → shape of the training inputs, digests of train inputs, train targets, test inputs, test targets."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digests(data):
    return [hashlib.sha256(a.tobytes()).hexdigest()[:16] for split in ("train", "test") for a in data[split]]


def small(name, **options):
    """Few and short examples of a task, straight from the generator."""
    return generate(name, cache=False, **{**SMALL, **options})


@pytest.mark.parametrize("name", BASELINES)
def test_the_baseline_is_the_published_data_bit_for_bit(name):
    shape, expected = BASELINES[name]
    data = generate(name, cache=False)
    assert data["train"][0].shape == shape
    assert data["test"][1].shape == (1280, shape[1])
    assert all(array.dtype == np.int64 for pair in data.values() for array in pair)
    assert digests(data) == expected


def test_recall_examples_of_the_fact_sheet():
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


def test_a_fuzzy_example_by_hand():
    inputs, targets = fuzzy_recall_example(np.random.default_rng(1), training=True, **FUZZY_SMALL)
    assert inputs == [8, 8, 8, 8, 8, 1, 3, 4, 1, 5, 2, 0, 4, 7, 1, 3, 4, 0, 1, 5, 1, 5, 1, 3]
    assert targets == [*inputs[1:], 4]


def fuzzy_by_lists(rng, *, training, vocab_size, seq_len, k_motif_size, v_motif_size):
    """The definition, with whole lists of motifs shuffled for every example."""
    usable = vocab_size - 1
    keys, values = {}, {}
    for found, tokens, sizes in (
        (keys, range(usable // 2), range(1 if training else k_motif_size, k_motif_size + 1)),
        (values, range(usable // 2, usable), range(1, v_motif_size + 1)),
    ):
        for size in sizes:
            found[size] = list(permutations(tokens, size))
            rng.shuffle(found[size])

    def sizes():
        return (rng.choice(list(keys)) if training else k_motif_size), rng.choice(list(values))

    key_size, value_size = sizes()
    probe = tuple(rng.choice(keys[key_size]).tolist())
    seen = {}
    answer = tuple(rng.choice(values[value_size]).tolist())
    length = key_size + value_size
    at = rng.choice(seq_len - 2 * length)
    sequence, scored = [], []
    while len(sequence) < seq_len - length - k_motif_size - v_motif_size:
        key_size, value_size = sizes()
        if len(sequence) >= at and probe not in seen:
            key, value, is_new = probe, answer, True
        else:
            key = tuple(rng.choice(keys[key_size]).tolist())
            is_new = key not in seen
            if key == probe:
                value = answer
            elif is_new:
                value = tuple(rng.choice(values[value_size]).tolist())
            else:
                value = seen[key]
        seen[key] = value
        sequence += [*key, *value]
        scored += [IGNORE] * len(key) + ([IGNORE] * len(value) if is_new else list(value))
    sequence += [*probe, *answer]
    scored += [IGNORE] * len(probe) + list(answer)
    fill = seq_len + 1 - len(sequence)
    sequence, scored = [vocab_size - 1] * fill + sequence, [IGNORE] * fill + scored
    return sequence[:-1], sequence[1:] if training else scored[1:]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [FUZZY_SMALL, {"vocab_size": 17, "seq_len": 63, "k_motif_size": 1, "v_motif_size": 3}]
)
def test_fuzzy_recall_equals_its_definition_and_leaves_the_generator_where_that_does(training, options):
    fast, slow = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(30):
        expected = fuzzy_by_lists(slow, training=training, **options)
        assert fuzzy_recall_example(fast, training=training, **options) == expected
    assert fast.bit_generator.state == slow.bit_generator.state


def test_fuzzy_test_examples_score_values_only_and_always_the_last():
    inputs, targets = small("fuzzy-in-context-recall", num_test_examples=200)["test"]
    scored = targets != IGNORE
    assert (targets[scored] >= 7).all()
    assert (targets[scored] <= 14).all()
    assert scored[:, -1].all()
    assert (targets[:, :-1][scored[:, :-1]] == inputs[:, 1:][scored[:, :-1]]).all()


def test_copies_are_the_content_in_order():
    inputs, targets = small("selective-copying", vocab_size=8, seq_len=40, num_tokens_to_copy=5)["train"]
    assert (inputs[:, 34] == 7).all()
    assert (inputs[:, 35:] == 6).all()
    assert (targets[:, :35] == IGNORE).all()
    for row, target in zip(inputs, targets):
        assert row[:34][row[:34] < 6].tolist() == target[35:].tolist()
    # no blank follows the last content token
    assert (inputs[:, 33] < 6).all()


def test_a_copying_example_by_hand_leaves_the_global_generator_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    inputs, targets = KINDS["selective-copying"].examples(
        Streams.of(0), 1, training=True, vocab_size=8, seq_len=16, num_tokens_to_copy=3
    )
    assert inputs[0].tolist() == [6, 6, 6, 6, 5, 6, 6, 6, 3, 6, 6, 3, 7, 6, 6, 6]
    assert targets[0].tolist() == [IGNORE] * 13 + [5, 3, 3]
    assert (np.random.get_state()[1] == before).all()


def test_compression_ends_every_sequence_alike():
    inputs, targets = KINDS["compression"].examples(Streams.of(0), 1, training=True, vocab_size=8, seq_len=8)
    assert inputs[0].tolist() == targets[0].tolist() == [5, 4, 3, 1, 2, 0, 0, 7]
    inputs, targets = small("compression", vocab_size=2, seq_len=2)["test"]
    assert (inputs == [0, 1]).all()
    targets[:] = 9
    assert (inputs < 2).all()


def test_facts_are_the_same_in_all_splits_and_for_all_seeds_of_the_examples():
    keys, values = facts(10, PUBLISHED_SEED)
    known = dict(zip(keys.tolist(), values.tolist()))
    assert known == {2: 8, 0: 7, 3: 4, 1: 6}
    for seed in (PUBLISHED_SEED, 1):
        for inputs, targets in small("memorization", vocab_size=10, seq_len=8, seed=seed).values():
            assert (inputs[:, 1::2] == 9).all()
            assert (targets[:, 0::2] == IGNORE).all()
            assert [known[key] for key in inputs[:, 0::2].ravel().tolist()] == targets[:, 1::2].ravel().tolist()
    first = small("memorization", vocab_size=10, seq_len=8, seed=0)["train"]
    assert first[0][0].tolist() == [3, 9, 3, 9, 0, 9, 0, 9]
    assert first[1][0].tolist() == [IGNORE, 4, IGNORE, 4, IGNORE, 7, IGNORE, 7]
    assert dict(zip(*(a.tolist() for a in facts(10, 1)))) != known


def test_facts_that_training_never_shows_bound_memorization():
    data = generate("memorization", vocab_size=8192)
    shown = set(data["train"][0][:, 0::2].ravel().tolist())
    asked = data["test"][0][:, 0::2].ravel().tolist()
    assert sum(key in shown for key in asked) / len(asked) == pytest.approx(0.640, abs=5e-4)


@pytest.mark.parametrize("name", KINDS)
def test_test_examples_continue_the_streams_of_training(name):
    together = small(name, num_train_examples=12, num_test_examples=3)
    longer = small(name, num_train_examples=15, num_test_examples=0)
    assert (together["train"][0] == longer["train"][0][:12]).all()
    assert longer["test"][0].shape[0] == 0
    if name in ("selective-copying", "compression", "memorization"):
        assert (together["test"][0] == longer["train"][0][12:]).all()
        assert (together["test"][1] == longer["train"][1][12:]).all()


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_changes_the_data(name):
    base = digests(small(name, vocab_size=32, seq_len=66, **({"num_tokens_to_copy": 4} if "copying" in name else {})))
    for change in ({"seed": 1}, {"vocab_size": 34}, {"seq_len": 64}, {"num_train_examples": 41}):
        options = {"vocab_size": 32, "seq_len": 66, **({"num_tokens_to_copy": 4} if "copying" in name else {})}
        assert digests(small(name, **{**options, **change})) != base


@pytest.mark.parametrize("name", ["in-context-recall", "compression"])
def test_the_cache_returns_the_same_data_and_survives_damage(own_cache, name):
    first = generate(name, **SMALL)
    (entry,) = own_cache.rglob("*.npz")
    assert list(own_cache.rglob("*.part")) == []
    assert digests(generate(name, **SMALL)) == digests(first)
    entry.write_bytes(entry.read_bytes()[:100])
    again = generate(name, **SMALL)
    assert digests(again) == digests(first)
    assert again["test"][1].dtype == np.int64
    assert digests(generate(name, **SMALL)) == digests(first)


def test_the_cache_keeps_tokens_that_need_more_than_one_byte():
    first = generate("memorization", vocab_size=50001, **SMALL)
    assert digests(generate("memorization", vocab_size=50001, **SMALL)) == digests(first)
    assert first["train"][0].max() == 50000


def test_an_unusable_cache_folder_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "file"))
    data = generate("in-context-recall", **SMALL)
    assert digests(data) == digests(generate("in-context-recall", cache=False, **SMALL))
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("in-context-recal", {}, "Did you mean 'in-context-recall'"),
        ("in-context-recall", {"frac_noise": 0.1}, "unknown option 'frac_noise'"),
        ("fuzzy-in-context-recall", {"k_motif_size": 0}, "k_motif_size is 0"),
        ("fuzzy-in-context-recall", {"vocab_size": 6}, "k_motif_size is 3, but vocab_size 6 leaves 2 tokens"),
        ("fuzzy-in-context-recall", {"vocab_size": 1}, "leaves 0 tokens for it"),
        ("fuzzy-in-context-recall", {"vocab_size": 512}, "motifs, expected at most 4,000,000"),
        ("fuzzy-in-context-recall", {"seq_len": 12}, "Fix: seq_len=13"),
        ("selective-copying", {"vocab_size": 2}, "Fix: vocab_size=3"),
        ("selective-copying", {"num_tokens_to_copy": 0}, "num_tokens_to_copy is 0"),
        ("selective-copying", {"seq_len": 33}, "Fix: seq_len=34"),
        ("compression", {"vocab_size": 1}, "Fix: vocab_size=2"),
        ("compression", {"seq_len": 1}, "Fix: seq_len=2"),
        ("memorization", {"vocab_size": 2}, "Fix: vocab_size=3"),
        ("memorization", {"seq_len": 31}, "Fix: seq_len=2 or more, even"),
        ("memorization", {"num_train_examples": -1}, "num_train_examples is -1"),
        ("compression", {"seed": -1}, "seed is -1"),
        ("compression", {"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_bad_options_end_in_one_line(name, options, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        generate(name, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fuzzy-in-context-recall", {"vocab_size": 7, "seq_len": 13}),
        ("fuzzy-in-context-recall", {"vocab_size": 3, "seq_len": 5, "k_motif_size": 1, "v_motif_size": 1}),
        ("selective-copying", {"vocab_size": 3, "seq_len": 4, "num_tokens_to_copy": 1}),
        ("compression", {"vocab_size": 2, "seq_len": 2}),
        ("memorization", {"vocab_size": 3, "seq_len": 2}),
        ("in-context-recall", {"vocab_size": 4, "seq_len": 4}),
    ],
)
def test_the_smallest_settings_that_are_allowed_work(name, options):
    data = small(name, **options)
    assert data["train"][0].shape[0] == 40
    assert all(array.max() < options["vocab_size"] for pair in data.values() for array in pair)
    assert (data["test"][1] != IGNORE).any(axis=1).all()
