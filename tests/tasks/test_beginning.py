"""Packs of text begin with BOS where the tokenizer adds one: it is read, never scored, and told everywhere."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_tokenizers import LETTERS, WORDS, adding_bos, byte_level, with_prefixes

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.token_bytes import text_bytes
from manticore.errors import ManticoreError
from manticore.runs.lineage import task_inputs
from manticore.tasks.beginning import adds_bos, beginning
from manticore.tasks.metrics import IGNORE
from manticore.tasks.task import load_task
from manticore.tasks.text import pack
from manticore.training.calibration import calibration_packs

DOCUMENTS = [f"Sentence {i}: größer, wider — {i * i} 漢字.\n" * (1 + i % 7) for i in range(60)]


@pytest.fixture(scope="module")
def plain():
    return byte_level(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def adding():
    return adding_bos(byte_level(DOCUMENTS, 300))


def test_what_a_tokenizer_does_decides_and_not_its_flags(plain, adding):
    assert adds_bos(adding)
    assert adds_bos(adding_bos(with_prefixes([*LETTERS, *WORDS], byte_fallback=True)))
    # both have a BOS token, which they do not add
    assert not adds_bos(plain)
    assert not adds_bos(with_prefixes([*LETTERS, *WORDS]))
    claiming = byte_level(DOCUMENTS, 300)
    claiming.init_kwargs["add_bos_token"] = True
    assert not adds_bos(claiming)
    silent = adding_bos(byte_level(DOCUMENTS, 300))
    silent.init_kwargs["add_bos_token"] = False
    assert adds_bos(silent)
    # the letter that everything begins with is no beginning of a text
    letter = byte_level(DOCUMENTS, 300)
    letter.bos_token = "a"
    assert not adds_bos(letter)


def test_the_choice(plain, adding):
    assert [beginning(adding, bos, stage="text") for bos in ("auto", "always", "never")] == [300, 300, None]
    assert [beginning(plain, bos, stage="text") for bos in ("auto", "always", "never")] == [None, 0, None]
    without = byte_level(DOCUMENTS, 300)
    without.bos_token = None
    assert beginning(without, "auto", stage="text") is None
    with pytest.raises(ManticoreError, match=r"bos is 'always', but the tokenizer has no BOS token\. Fix"):
        pack(DOCUMENTS, without, 16, bos="always")
    with pytest.raises(ManticoreError, match=r"bos is 'yes' \(expected one of auto, always, never\)"):
        load_task("text", tokenizer=adding, source=DOCUMENTS, length=16, bos="yes")


@pytest.mark.parametrize("length", [2, 7, 32])
def test_packs_keep_their_length_and_score_as_many_tokens(adding, length):
    without, with_bos = (pack(DOCUMENTS, adding, length, bos=bos)[:] for bos in ("never", "auto"))
    assert with_bos["input_ids"].shape == without["input_ids"].shape
    assert (with_bos["input_ids"][:, 0] == adding.bos_token_id).all()
    assert (with_bos["input_ids"][:, 1:] != adding.bos_token_id).all()
    # every token of the text is asked for once, in order; BOS never is
    assert torch.equal(with_bos["targets"].flatten(), without["input_ids"].flatten())
    assert (with_bos["targets"] != IGNORE).all()
    assert (with_bos["targets"] != adding.bos_token_id).all()
    assert torch.equal(with_bos["input_ids"][:, 1:], with_bos["targets"][:, :-1])


def test_end_of_text_still_stands_between_documents(adding):
    rows = pack(DOCUMENTS, adding, 32)[:]
    text = adding.decode(rows["targets"].flatten())
    assert adding.eos_token.join(DOCUMENTS).startswith(text.rstrip("\ufffd"))


@pytest.mark.parametrize("make", ["byte level", "prefixes"])
def test_a_score_is_the_one_computed_by_hand(make, adding):
    if make == "byte level":
        tokenizer, documents = adding, DOCUMENTS
    else:
        tokenizer = adding_bos(with_prefixes([*LETTERS, *WORDS], byte_fallback=True))
        documents = [f"The best of the {'x' * (i % 5)}, é {i}\n" * 3 for i in range(60)]
    task = load_task("text", tokenizer=tokenizer, source=documents, length=16)
    model = tiny_model("gpt_neo", vocab_size=len(tokenizer)).eval()
    found = manticore.evaluate(model, task, max_examples=3)
    rows = task.data["test"][:3]
    nats, size = 0.0, 0
    for ids, targets in zip(rows["input_ids"], rows["targets"]):
        assert int(ids[0]) == tokenizer.bos_token_id
        with torch.no_grad():
            logs = model(ids[None]).logits[0].log_softmax(-1)
        nats -= float(logs[range(16), targets].double().sum())
        for target in targets.tolist():
            if target == tokenizer.eos_token_id:
                continue
            token = tokenizer.convert_ids_to_tokens(target)
            single = token.startswith("<0x")
            shown = token if make == "byte level" else token.replace("▁", " ").encode()
            size += 1 if single else len(shown)
    assert found["loss"] == pytest.approx(nats / 48, abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, abs=1e-6)


def test_bytes_of_tokens_are_those_of_the_text(plain):
    sizes = text_bytes(plain)
    ids = torch.tensor(plain("".join(DOCUMENTS)).input_ids)
    assert int(sizes[ids].sum()) == len("".join(DOCUMENTS).encode())
    assert sizes[plain.eos_token_id] == sizes[plain.pad_token_id] == 0


def test_bits_per_byte_compare_models_whatever_their_tokenizers_are():
    """A model that says nothing at all needs log2 V bits per token: the fewer bytes these hold, the worse it is."""
    found = {}
    for vocab_size in (258, 400):
        tokenizer = byte_level(DOCUMENTS, vocab_size)
        task = load_task("text", tokenizer=tokenizer, source=DOCUMENTS, length=16)
        state, rows = task.metric_state(), task.data["test"][:]
        state.update(torch.zeros(*rows["targets"].shape, len(tokenizer)), rows["targets"])
        scores = state.compute()
        asked = rows["targets"][rows["targets"] != IGNORE].tolist()
        if vocab_size == 258:
            # every token is a byte, but for the ends of documents
            size = sum(i != tokenizer.eos_token_id for i in asked)
        else:
            size = int(text_bytes(tokenizer)[asked].sum())
        assert scores["loss"] == pytest.approx(math.log(len(tokenizer)))
        assert scores["bits_per_byte"] == pytest.approx(math.log2(len(tokenizer)) * len(asked) / size)
        found[vocab_size] = scores
    assert found[400]["loss"] > found[258]["loss"]
    assert found[400]["bits_per_byte"] < found[258]["bits_per_byte"]


def test_calibration_begins_as_the_task_does(plain, adding):
    settings = {"tokens": 512, "holdout": 0.2, "length": 16, "seed": 0}
    for tokenizer, bos, first in ((adding, "auto", "<s>"), (adding, "never", ""), (plain, "auto", "")):
        for packs in calibration_packs(DOCUMENTS, tokenizer=tokenizer, bos=bos, **settings):
            assert packs.bos == first
            assert packs.input_ids.shape[1] == 16
            assert bool((packs.input_ids[:, 0] == adding.bos_token_id).all()) == bool(first)
            assert (packs.targets != adding.bos_token_id).all()
    rows = load_task("text", tokenizer=adding, source=DOCUMENTS, length=16).data["train"]
    assert calibration_packs(rows, tokenizer=None, **settings)[0].bos is None
    with pytest.raises(ManticoreError, match="the text is tokenised already"):
        calibration_packs(rows, tokenizer=None, bos="never", **settings)


def test_a_hybrid_follows_the_owner_of_its_tokenizer(tmp_path, plain, adding):
    folders = [tmp_path / "plain", tmp_path / "adding"]
    for folder, tokenizer, family in zip(folders, (plain, adding), ("gpt_neo", "mamba")):
        tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for owner, first in enumerate(("", "<s>")):
        hybrid = manticore.combine(folders, num_blocks=2, tokenizer=owner)
        assert load_task("text", tokenizer=hybrid.tokenizer, source=DOCUMENTS, length=16).bos == first
        report = manticore.align(hybrid, DOCUMENTS, tokens=128, length=16)
        assert report.bos == first
        assert json.loads(json.dumps(report.to_dict()))["bos"] == first


def test_resume_keys_tell_beginnings_apart(adding):
    tasks = [load_task("text", tokenizer=adding, source=DOCUMENTS, length=16, bos=bos) for bos in ("auto", "never")]
    assert task_inputs(tasks[0]) != task_inputs(tasks[1])
    assert [task.bos for task in tasks] == ["<s>", ""]
