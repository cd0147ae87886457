import logging
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from manticore.errors import ManticoreError
from manticore.tasks.metrics import IGNORE
from manticore.tasks.task import load_task
from manticore.tasks.text import pack, split_documents
from manticore.training.tokenizers import train_tokenizer

DOCUMENTS = [f"Sentence {i}: größer, wider — {i * i} 漢字.\n" * (1 + i % 7) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 290)


def word_tokenizer(words, *, lowercase=False):
    """A lossy tokenizer: words or, if these are single letters, letters."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[EOS]", *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters = pre_tokenizers.Split("", "isolated")
    words_only.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), letters])
        if all(len(word) == 1 for word in words)
        else pre_tokenizers.WhitespaceSplit()
    )
    if lowercase:
        words_only.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=words_only, eos_token="[EOS]", unk_token="[UNK]")


def test_packs_decode_to_the_source(tokenizer):
    packs = pack(DOCUMENTS, tokenizer, 32)
    assert packs[:]["input_ids"].shape[1] == 32
    joined = tokenizer.eos_token.join(DOCUMENTS)
    decoded = tokenizer.decode(packs[:]["input_ids"].flatten()).rstrip("\ufffd")
    assert joined.startswith(decoded)
    # At most one pack is missing at the end.
    assert len(tokenizer(joined[len(decoded) :])["input_ids"]) < 34


def test_targets_are_the_next_tokens_across_packs(tokenizer):
    rows = pack(DOCUMENTS, tokenizer, 32)[:]
    stream, targets = rows["input_ids"].flatten(), rows["targets"].flatten()
    assert torch.equal(targets[:-1], stream[1:])
    assert targets[-1] != IGNORE
    # A stream that fills its packs exactly has no token after the last one.
    exact = pack(["aaaa"], train_tokenizer(["b"], 258), 5)[:]
    assert exact["input_ids"].tolist() == [exact["input_ids"][0].tolist()]
    assert exact["targets"][0, -1] == IGNORE


def test_every_document_goes_to_one_split_wherever_it_appears():
    splits = split_documents(DOCUMENTS)
    assert sorted(document for part in splits.values() for document in part) == sorted(DOCUMENTS)
    fewer = split_documents(DOCUMENTS[5:])
    assert all(set(fewer[name]) <= set(splits[name]) for name in splits)
    assert split_documents(DOCUMENTS, data_seed=1) != splits
    assert all(splits.values())


def test_a_single_document_is_cut_at_line_ends():
    document = "".join(f"line {i}\n" for i in range(500))
    splits = split_documents([document])
    assert splits["train"][0] + splits["validation"][0] + splits["test"][0] == document
    assert all(part[0].endswith("\n") for part in splits.values())
    assert 0.04 < len(splits["test"][0]) / len(document) < 0.08


def test_the_task(tokenizer, tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(DOCUMENTS * 4), encoding="utf-8")
    task = load_task("text", tokenizer=tokenizer, source=str(tmp_path / "corpus.txt"), length=24)
    assert (task.vocab_size, task.length, task.primary_metric, task.higher_is_better) == (None, 24, "loss", False)
    assert set(task.data) == {"train", "validation", "test"}
    assert task.chance == pytest.approx(math.log(290))
    rows = task.data["test"][:]
    state = task.metric_state()
    state.update(torch.zeros(*rows["input_ids"].shape, 290), rows["targets"])
    assert state.compute()["loss"] == pytest.approx(task.chance)


def test_the_default_corpus_is_the_standard_library(tokenizer):
    task = load_task("text", tokenizer=tokenizer, max_bytes=200_000, length=64)
    decoded = "".join(tokenizer.batch_decode(task.data["train"][:]["input_ids"]))
    assert "import" in decoded
    assert "def " in decoded


def test_lossy_but_honest_tokenizers_are_accepted_with_a_warning(caplog):
    documents = ["The  lion and THE goat\n" * 10]
    with caplog.at_level(logging.WARNING):
        pack(documents, word_tokenizer(["the", "lion", "and", "goat"], lowercase=True), 8)
    assert "changes white space, case or accents in 1 of 1 documents" in caplog.text


def test_spaced_out_characters_are_refused():
    with pytest.raises(ManticoreError, match=r"characters spaced apart .*'t h e"):
        pack(["the lion and the goat " * 10], word_tokenizer(list("thelionadg")), 8)


def test_unknown_words_are_refused():
    with pytest.raises(ManticoreError, match="10 of the 30 tokens of document 0 are unknown"):
        pack(["the lion sleeps " * 10], word_tokenizer(["the", "lion"]), 5)


def test_a_tokenizer_that_loses_text_is_refused(tokenizer):
    broken = train_tokenizer(DOCUMENTS, 290)
    broken.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("wider", "narrow")])
    with pytest.raises(ManticoreError, match=r"document 0 cannot be decoded .* got 'narrow.*expected 'wider"):
        pack(DOCUMENTS, broken, 32)


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        (["short"], 32, "too short"),
        ([], 32, "is empty"),
        (DOCUMENTS, 1, "length is 1"),
        (DOCUMENTS, 32.0, r"length is 32\.0"),
    ],
)
def test_bad_packs_end_in_one_line(tokenizer, documents, length, message):
    with pytest.raises(ManticoreError, match=message) as caught:
        pack(documents, tokenizer, length)
    assert "\n" not in str(caught.value)


def test_bad_tasks_end_in_one_line(tokenizer, tmp_path):
    with pytest.raises(ManticoreError, match="needs the components' tokenizer"):
        load_task("text")
    with pytest.raises(ManticoreError, match="no such file"):
        load_task("text", tokenizer=tokenizer, source=str(tmp_path / "nothing.txt"))
    with pytest.raises(ManticoreError, match="the validation part is too short"):
        load_task("text", tokenizer=tokenizer, source=DOCUMENTS[:30], length=1024)
    with pytest.raises(ManticoreError, match="Did you mean 'length'"):
        load_task("text", tokenizer=tokenizer, lenght=24)
    tokenizer_without_end = train_tokenizer(DOCUMENTS, 290)
    tokenizer_without_end.eos_token = None
    with pytest.raises(ManticoreError, match="no end-of-text token"):
        load_task("text", tokenizer=tokenizer_without_end, source=DOCUMENTS, length=16)
