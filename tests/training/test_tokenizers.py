import pytest
from transformers import AutoTokenizer

from manticore.errors import ManticoreError
from manticore.training.tokenizers import train_tokenizer

DOCUMENTS = ["def add(a, b):\n    return a + b\n" * 20, "one two  three\tfour\r\n" * 20]
ANYTHING = "  Größe → 漢字 🦁 \x00\x7f\r\n\ttabs  don't <|pad|> \u00e9 e\u0301 "


def test_any_text_survives(tmp_path):
    train_tokenizer(DOCUMENTS, 280).save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(ANYTHING)["input_ids"]
    assert tokenizer.decode(ids) == ANYTHING
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 1, 280)


def test_merges_shorten_the_text_and_training_is_repeatable():
    small, large = train_tokenizer(DOCUMENTS, 258), train_tokenizer(DOCUMENTS, 280)
    assert len(large(DOCUMENTS[0])["input_ids"]) < len(small(DOCUMENTS[0])["input_ids"]) == len(DOCUMENTS[0])
    assert train_tokenizer(DOCUMENTS, 280).get_vocab() == large.get_vocab()


@pytest.mark.parametrize(
    ("documents", "vocab_size", "message"),
    [
        (DOCUMENTS, 257, "Fix: give 258 or more"),
        (DOCUMENTS, 1e3, "Fix: give 258 or more"),
        ([], 300, "no text"),
        ([""], 300, "no text"),
    ],
)
def test_bad_input(documents, vocab_size, message):
    with pytest.raises(ManticoreError, match=message):
        train_tokenizer(documents, vocab_size)
