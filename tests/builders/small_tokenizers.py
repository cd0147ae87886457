"""Small tokenizers of the two kinds that there are, really different from each other."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from manticore.training.tokenizers import train_tokenizer

CODE = ['def f(x):\n    return "café" + x.strip()\n', "class Queue:\n    def put(self, item):\n        pass\n"] * 3
PROSE = ["The quick brown fox jumps over the lazy dog.\n", "It was the best of times, naïve 日本.\n"] * 3


def byte_level(documents: Sequence[str] = CODE, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE; id 0 begins and ends a text, id 1 is padding."""
    return train_tokenizer(documents, vocab_size)


def with_prefixes(
    pieces: Sequence[str], *, byte_fallback: bool = False, by_normaliser: bool = False
) -> PreTrainedTokenizerFast:
    """Unigram with ``▁`` for a space: ``<unk>``, ``<s>``, ``</s>``, if asked for the 256 bytes, then the pieces."""
    listed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback), *pieces]
    scores = [0.0, 0.0, 0.0, *(-20.0 if piece.startswith("<0x") else -float(len(pieces)) for piece in listed[3:])]
    scores = [score + len(piece) for score, piece in zip(scores, listed)]
    backend = Tokenizer(models.Unigram(list(zip(listed, scores)), unk_id=0, byte_fallback=byte_fallback))
    if by_normaliser:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def adding_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make a tokenizer put ``<s>`` before what it encodes, as those of Llama, Gemma and others do; the same one."""
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


LETTERS = [*'abcdefghijklmnopqrstuvwxyzTDIQ.,:()+"_\n', "▁"]
WORDS = ["▁the", "▁The", "▁of", "▁def", "▁best", "▁self", "re", "ing", "▁in", "é", "turn", "▁▁▁"]
