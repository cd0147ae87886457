import inspect
import json
import random
import signal
import textwrap

import pytest
import torch
from forked import Script
from safetensors.torch import load_file
from small_tokenizers import adding_bos, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from manticore.errors import ManticoreError
from manticore.training.pretrain import pretrain
from manticore.training.tokenizers import train_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept"]
DOCUMENTS = [" ".join(random.Random(i).choices(WORDS, k=20 + i % 30)) + "\n" for i in range(60)]
TINY = {
    "layers": 2,
    "width": 32,
    "text": DOCUMENTS,
    "vocab_size": 280,
    "length": 16,
    "steps": 6,
    "batch_size": 4,
    "cpu": True,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("family", ["gpt_neo", "mamba"])
def test_the_result_is_an_ordinary_checkpoint_that_learned_something(family):
    folder = pretrain(family, **{**TINY, "steps": 80, "lr": 1e-2})
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__module__.startswith(f"transformers.models.{family}.")
    assert model.config.num_hidden_layers == 2
    assert model.config.vocab_size == len(tokenizer) == 280
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([tokenizer(DOCUMENTS[3])["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    # A uniform guess among 280 tokens costs 5.6 nats.
    assert loss < 4
    assert json.loads((folder / "pretraining.json").read_text())["heldout"]["loss"] < 4


def test_the_key_of_a_model_knows_whether_its_sequences_begin_with_bos():
    adding, small = adding_bos(byte_level(DOCUMENTS, 280)), {**TINY, "steps": 1}
    folders = {bos: pretrain("gpt_neo", **small, tokenizer=adding, bos=bos) for bos in ("auto", "always", "never")}
    assert folders["auto"] == folders["always"] != folders["never"]
    notes = {bos: json.loads((folder / "pretraining.json").read_text()) for bos, folder in folders.items()}
    assert (notes["auto"].get("bos"), notes["never"].get("bos")) == (True, None)
    assert notes["auto"]["heldout"]["loss"] != notes["never"]["heldout"]["loss"]
    assert notes["auto"]["heldout"]["bits_per_byte"] > 0
    # a new tokenizer adds none, and its models keep the key that they had before there was a choice
    new = pretrain("gpt_neo", **small)
    assert "bos" not in json.loads((new / "pretraining.json").read_text())
    assert pretrain("gpt_neo", **small, bos="never") == new != pretrain("gpt_neo", **small, bos="always")


def test_no_steps_leave_the_first_weights():
    first, other = (pretrain("mamba", **{**TINY, "steps": 0, "seed": seed}) for seed in (0, 1))
    assert json.loads((first / "pretraining.json").read_text())["tokens"] == 0
    same, different = (AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings() for folder in (first, other))
    assert not torch.equal(same.weight, different.weight)
    assert 0 < same.weight.std() < 0.2


def test_the_second_call_trains_nothing(own_cache):
    rows = []
    first = pretrain("gpt_neo", **TINY, progress=lambda *row: rows.append(row))
    assert [step for step, _, _ in rows][-1] == 6
    rows.clear()
    assert pretrain("gpt_neo", **TINY, progress=lambda *row: rows.append(row)) == first
    assert rows == []
    assert list(own_cache.rglob("*.part")) == []


def test_whatever_changes_the_numbers_changes_the_entry():
    changes = [{}, {"seed": 1}, {"lr": 1e-3}, {"text": DOCUMENTS[1:]}, {"config": {"window_size": 8}}, {"steps": 5}]
    entries = {pretrain("gpt_neo", **{**TINY, **change}) for change in changes}
    assert len(entries) == len(changes)
    assert pretrain("gpt-neo", **TINY) in entries


def test_entries_of_one_family_shape_and_seed_start_from_weights_of_their_own():
    untrained = {**TINY, "steps": 0}
    first, again, second = (pretrain("gpt_neo", **untrained, index=index) for index in (0, 0, 1))
    assert first == again
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    name = "transformer.wte.weight"
    correlation = torch.corrcoef(torch.stack([one[name].flatten(), other[name].flatten()]))[0, 1]
    assert abs(correlation) < 0.05


def test_what_changes_a_model_is_part_of_its_key():
    kept = json.loads((pretrain("gpt_neo", **{**TINY, "steps": 0}) / "pretraining.json").read_text())
    # the text stands for how much of it was read, the tokenizer for its size and the texts that it is trained on
    elsewhere = {
        "bos",
        "max_bytes",
        "text_column",
        "tokenizer_texts",
        "vocab_size",
        "out",
        "cache",
        "cpu",
        "progress",
        "settings",
    }
    assert set(inspect.signature(pretrain).parameters) - elsewhere <= kept.keys()


def test_the_same_text_gives_the_same_tokenizer_to_both_families(tmp_path):
    one, other = (pretrain(family, **TINY) for family in ("gpt_neo", "mamba"))
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    again = pretrain("gpt_neo", **{**TINY, "seed": 1, "tokenizer": one})
    assert AutoTokenizer.from_pretrained(again).get_vocab() == AutoTokenizer.from_pretrained(one).get_vocab()


def test_out_receives_the_checkpoint_with_and_without_the_cache(tmp_path, own_cache):
    pretrain("gpt_neo", **TINY, out=tmp_path / "a" / "plain", cache=False)
    assert not own_cache.exists()
    pretrain("gpt_neo", **TINY, out=tmp_path / "a" / "copied")
    entry = pretrain("gpt_neo", **TINY)
    weights = [
        load_file(path / "model.safetensors") for path in (tmp_path / "a" / "plain", tmp_path / "a" / "copied", entry)
    ]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"plain", "copied"}


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, own_cache):
    script = f"""
        import os, signal
        from manticore.training.pretrain import pretrain

        def progress(step, steps, row):
            if step == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        pretrain("mamba", **{TINY!r}, progress=progress)
    """
    code, said = Script(textwrap.dedent(script), said=tmp_path / "said.txt").end()
    assert code == -signal.SIGKILL, said
    assert list(own_cache.rglob("checkpoint-*"))
    rows = []
    resumed = pretrain("mamba", **TINY, progress=lambda *row: rows.append(row))
    assert rows[0][0] > 1
    whole = pretrain("mamba", **TINY, out=tmp_path / "whole", cache=False)
    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_two_processes_that_want_the_same_model_train_it_once(own_cache, tmp_path):
    script = f"""
        from manticore.training.pretrain import pretrain

        rows = []
        print(pretrain("gpt_neo", **{TINY!r}, progress=lambda *row: rows.append(row)), len(rows))
    """
    both = [Script(textwrap.dedent(script), said=tmp_path / f"said-{n}.txt") for n in range(2)]
    ended = [script.end() for script in both]
    assert [code for code, _ in ended] == [0, 0], ended
    answers = [said.splitlines()[-1].split() for _, said in ended]
    assert answers[0][0] == answers[1][0]
    assert sorted(int(rows) for _, rows in answers) == [0, 6]
    assert len(list((own_cache / "pretrained").iterdir())) == 1


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt_neoo", {}, "Did you mean 'gpt_neo'"),
        ("gpt_neo", {"layers": 0}, "layers is 0"),
        ("gpt_neo", {"width": 32.0}, r"width is 32\.0"),
        ("gpt_neo", {"steps": True}, "steps is True"),
        ("gpt_neo", {"vocab_size": 10}, "Fix: give 258 or more"),
        ("gpt_neo", {"text": ["too short"]}, "too short"),
        ("gpt_neo", {"text": "/no/such/file"}, "no such file"),
        ("gpt_neo", {"batch_size": 4096}, "fewer than one batch"),
        ("gpt_neo", {"cache": False}, "Fix: give out, or cache=True"),
        ("gpt_neo", {"lr": 1e30, "steps": 20}, "(loss|gradient norm) is"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_no_model(family, change, message, own_cache):
    with pytest.raises(ManticoreError, match=message) as caught:
        pretrain(family, **{**TINY, **change})
    assert "\n" not in str(caught.value)
    assert not list(own_cache.glob("pretrained/[!.]*"))


def test_bad_folders_end_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(ManticoreError, match="there exists already"):
        pretrain("gpt_neo", **TINY, out=tmp_path / "there")
    with pytest.raises(ManticoreError, match="no tokenizer in"):
        pretrain("gpt_neo", **TINY, tokenizer=tmp_path / "there")
    without_end = train_tokenizer(DOCUMENTS, 280)
    without_end.eos_token = None
    with pytest.raises(ManticoreError, match="no end-of-text token"):
        pretrain("gpt_neo", **TINY, tokenizer=without_end)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ManticoreError, match="MANTICORE_CACHE"):
        pretrain("gpt_neo", **TINY)


def test_models_of_different_texts_share_a_tokenizer_that_was_trained_on_all_of_them():
    first, second = ["def f(x):\n    return x\n" * 9] * 3, ["The quick brown fox jumps.\n" * 9] * 3
    shape = {"layers": 1, "width": 32, "steps": 0, "vocab_size": 300, "length": 8}
    models = [
        pretrain("gpt_neo", text=first, tokenizer_texts=[first, second], **shape),
        pretrain("gpt_neo", text=second, tokenizer_texts=[second, first], **shape),
    ]
    alone = pretrain("gpt_neo", text=second, **shape)
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (*models, alone)]
    assert vocabularies[0] == vocabularies[1]
    assert vocabularies[1] != vocabularies[2]
    assert len(set(models) | {alone}) == 3
    # each says something that only the other's text has taught it
    assert len(AutoTokenizer.from_pretrained(models[0])("quick").input_ids) < 5
    for texts, message in (
        (first[0], "tokenizer_texts is .* a list of texts"),
        ([], "tokenizer_texts is .* a list of texts"),
    ):
        with pytest.raises(ManticoreError, match=message):
            pretrain("gpt_neo", text=first, tokenizer_texts=texts, **shape)
    with pytest.raises(ManticoreError, match="beside a given tokenizer"):
        pretrain("gpt_neo", text=first, tokenizer=str(alone), tokenizer_texts=[first], **shape)
