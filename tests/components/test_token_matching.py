"""Tokens of two tokenizers are matched by what they say, not by how they are written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CODE, LETTERS, PROSE, WORDS, byte_level, with_prefixes
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from manticore.components.token_bytes import TokenBytes
from manticore.components.token_matching import Matching, match_tokens, same_tokenizer
from manticore.errors import ManticoreError


def matched(kept: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> Matching:
    return match_tokens(TokenBytes(kept, "kept"), TokenBytes(other, "other"))


@pytest.fixture(scope="module")
def code() -> PreTrainedTokenizerFast:
    return byte_level(CODE)


@pytest.fixture(scope="module")
def prose() -> PreTrainedTokenizerFast:
    return byte_level(PROSE)


@pytest.fixture(scope="module")
def prefixes() -> PreTrainedTokenizerFast:
    return with_prefixes([*LETTERS, *WORDS])


@pytest.fixture(scope="module")
def fallback() -> PreTrainedTokenizerFast:
    return with_prefixes([*LETTERS, *WORDS], byte_fallback=True)


@pytest.fixture(scope="module")
def code_table(code: PreTrainedTokenizerFast) -> TokenBytes:
    return TokenBytes(code)


@pytest.fixture(scope="module")
def fallback_table(fallback: PreTrainedTokenizerFast) -> TokenBytes:
    return TokenBytes(fallback)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_the_bytes_of_a_texts_tokens_are_the_texts(
    text: str,
    code: PreTrainedTokenizerFast,
    code_table: TokenBytes,
    fallback: PreTrainedTokenizerFast,
    fallback_table: TokenBytes,
) -> None:
    assert b"".join(code_table.ordinary[i] for i in code(text, add_special_tokens=False).input_ids) == text.encode()
    # the other kind has one more space in front, and writes what it has no piece for as bytes
    table = fallback_table
    pieces = {**table.ordinary, **{index: bytes([byte]) for index, byte in table.single.items()}}
    plain = text.replace("▁", " ")
    said = b"".join(pieces[i] for i in fallback(text, add_special_tokens=False).input_ids)
    assert said == (b" " if plain and not plain.startswith(" ") else b"") + plain.encode()


def test_equal_bytes_match_whatever_is_written_for_a_space(
    prose: PreTrainedTokenizerFast, prefixes: PreTrainedTokenizerFast
) -> None:
    kept, other = prefixes.get_vocab(), prose.get_vocab()
    found = matched(prefixes, prose)
    for ours, theirs in {"▁the": "Ġthe", "▁": "Ġ", "\n": "Ċ", "é": "Ã©", "t": "t", "▁of": "Ġof"}.items():
        if theirs in other:
            assert (found.sources[kept[ours]], found.kinds[kept[ours]]) == ((other[theirs],), "exact")
    assert "Ġthe" in other
    assert "Ã©" not in other
    assert found.sources[kept["é"]] == (other["Ã"], other["©"])
    back = matched(prose, prefixes)
    assert (back.sources[other["Ġthe"]], back.kinds[other["Ġthe"]]) == ((kept["▁the"],), "exact")


def test_other_tokens_are_cut_as_the_other_tokenizer_cuts_their_text(
    code: PreTrainedTokenizerFast, prose: PreTrainedTokenizerFast
) -> None:
    found = matched(code, prose)
    cut = [index for index, kind in enumerate(found.kinds) if kind == "pieces" and index not in (0, 1)]
    assert len(cut) > 20
    for index in cut:
        text = code.decode([index])
        assert list(found.sources[index]) == prose(text, add_special_tokens=False).input_ids, text


@pytest.mark.parametrize("by_normaliser", [False, True])
def test_no_space_is_put_in_front_of_a_token(by_normaliser: bool, code: PreTrainedTokenizerFast) -> None:
    other = with_prefixes([*LETTERS, *WORDS], by_normaliser=by_normaliser)
    kept, theirs = code.get_vocab(), other.get_vocab()
    found = matched(code, other)
    pieces = {
        text: [theirs[piece] for piece in cut] for text, cut in {"se": ["s", "e"], "Ġret": ["▁", "re", "t"]}.items()
    }
    for text, expected in pieces.items():
        if text in kept:
            assert list(found.sources[kept[text]]) == expected
    assert "se" in kept or "Ġret" in kept


def test_bytes_that_are_no_characters(code: PreTrainedTokenizerFast, fallback: PreTrainedTokenizerFast) -> None:
    table = TokenBytes(byte_level(["日本日本"] * 3, 259))
    halves = [index for index, text in table.ordinary.items() if len(text) == 2]
    assert halves
    (half,) = halves
    with pytest.raises(UnicodeDecodeError):
        table.ordinary[half].decode()
    # both of its bytes have tokens of their own everywhere
    for other in (code, fallback):
        theirs = TokenBytes(other)
        found = match_tokens(table, theirs)
        assert found.kinds[half] == "pieces"
        assert found.sources[half] == tuple(theirs.by_bytes[bytes([byte])] for byte in table.ordinary[half])
    every = match_tokens(table, TokenBytes(fallback))
    assert every.counts["none"] == 0


def test_stray_bytes_take_the_longest_tokens_that_fit() -> None:
    table = TokenBytes(byte_level(["日本日本"] * 3, 259))
    (half,) = (text for text in table.ordinary.values() if len(text) == 2)
    texts = [b"a" + half + half[:1] + b"b", b""]
    assert table.cut(texts) == [(*(table.by_bytes[part] for part in (b"a", half, half[:1], b"b")),), ()]


def test_what_a_tokenizer_has_no_token_for_has_no_match(
    code: PreTrainedTokenizerFast, prefixes: PreTrainedTokenizerFast
) -> None:
    found = matched(code, prefixes)
    kept, theirs = code.get_vocab(), prefixes.get_vocab()
    assert (found.sources[kept["~"]], found.kinds[kept["~"]]) == ((), "none")
    # unknown pieces are not part of a mean
    assert all(theirs["<unk>"] not in pieces for pieces in found.sources)


def test_byte_tokens_that_are_never_used_take_nothing_away(
    code: PreTrainedTokenizerFast, fallback: PreTrainedTokenizerFast
) -> None:
    kept = fallback.get_vocab()
    found = matched(fallback, code)
    # it has a token for "a"; for "~" it has none
    assert (found.sources[kept["<0x61>"]], found.kinds[kept["<0x61>"]]) == ((), "none")
    assert found.sources[kept["<0x7E>"]] == (code.get_vocab()["~"],)
    assert found.sources[kept["a"]] == (code.get_vocab()["a"],)
    assert matched(fallback, with_prefixes(WORDS, byte_fallback=True)).sources[kept["<0x61>"]] == (3 + 0x61,)


def test_special_tokens_match_by_name_then_by_role(
    code: PreTrainedTokenizerFast, prefixes: PreTrainedTokenizerFast
) -> None:
    unk, bos, eos = (prefixes.get_vocab()[name] for name in ("<unk>", "<s>", "</s>"))
    end, pad = code.eos_token_id, code.pad_token_id
    found = matched(prefixes, code)
    # both ends are one token there; it has no unknown ones, so that is cut like a text
    assert [(found.sources[i], found.kinds[i]) for i in (bos, eos)] == [((end,), "role"), ((end,), "role")]
    assert found.kinds[unk] == "pieces"
    back = matched(code, prefixes)
    # the end of a text counts more than its beginning
    assert (back.sources[end], back.kinds[end]) == ((eos,), "role")
    assert back.kinds[pad] == "pieces"

    named = byte_level(PROSE, 290)
    again = matched(code, named)
    assert [(again.sources[i], again.kinds[i]) for i in (end, pad)] == [((0,), "exact"), ((1,), "exact")]


def test_added_tokens(code: PreTrainedTokenizerFast, prose: PreTrainedTokenizerFast) -> None:
    kept, other = byte_level(CODE), byte_level(PROSE)
    kept.add_tokens(["Ġdog", "    ", AddedToken("<call>", special=True)])
    other.add_tokens(["<call>", AddedToken("<tool>", special=True), "    "])
    ours, theirs = kept.get_vocab(), other.get_vocab()
    found = matched(kept, other)
    # an added token is literal text: this one is no space and a dog
    assert found.sources[ours["Ġdog"]] == tuple(other("Ġdog", add_special_tokens=False).input_ids)
    assert found.kinds[ours["Ġdog"]] == "pieces"
    assert found.sources[ours["    "]] == (theirs["    "],)
    # special here, ordinary there: still the same token
    assert (found.sources[ours["<call>"]], found.kinds[ours["<call>"]]) == ((theirs["<call>"],), "exact")
    assert matched(other, kept).kinds[theirs["<tool>"]] == "pieces"


def test_counts_and_coverage(code: PreTrainedTokenizerFast, prose: PreTrainedTokenizerFast) -> None:
    found = matched(code, prose)
    assert sum(found.counts.values()) == len(code) == found.to_dict()["tokens"]
    assert found.counts["exact"] >= 258
    assert found.coverage == (found.counts["exact"] + found.counts["role"]) / len(code)
    assert found.known == len(prose)
    assert matched(code, code).coverage == 1


def test_ids_without_a_token_are_no_tokens() -> None:
    backend = Tokenizer(models.WordLevel({"▁a": 0, "b": 4, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    sparse = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    found = matched(sparse, sparse)
    assert found.kinds == ("exact", None, "exact", None, "exact")
    assert found.coverage == 1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_equal_vocabulary_in_another_order_is_a_permutation(data: st.DataObject) -> None:
    pieces = [*LETTERS, *WORDS]
    order = data.draw(st.permutations(pieces))
    found = matched(with_prefixes(pieces, byte_fallback=True), with_prefixes(order, byte_fallback=True))
    assert found.coverage == 1
    assert sorted(source for (source,) in found.sources) == list(range(len(found.sources)))
    for index, piece in enumerate(pieces):
        assert found.sources[259 + index] == (259 + order.index(piece),)


def test_tokenizers_are_the_same_where_they_do_the_same(code: PreTrainedTokenizerFast) -> None:
    assert same_tokenizer(code, byte_level(CODE))
    assert not same_tokenizer(code, byte_level(CODE, 300))
    for change in (normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents()):
        other = byte_level(CODE)
        other.backend_tokenizer.normalizer = change
        assert not same_tokenizer(code, other), change
    other = byte_level(CODE)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not same_tokenizer(code, other)


def test_tokenizers_that_cannot_be_compared_are_refused() -> None:
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    with pytest.raises(ManticoreError, match=r"the tokenizer of here is neither byte-level nor writes ▁.* Fix: choose"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]"), "here")


def test_slow_tokenizers_are_refused(tmp_path: pytest.TempPathFactory) -> None:
    from transformers import CTRLTokenizer

    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    slow = CTRLTokenizer(vocab_file=str(tmp_path / "vocab.json"), merges_file=str(tmp_path / "merges.txt"))
    assert not slow.is_fast
    with pytest.raises(
        ManticoreError, match=r"is a CTRLTokenizer without a tokenizer.json.* Fix: save its fast version"
    ):
        TokenBytes(slow)
