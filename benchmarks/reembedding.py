"""What a component loses by being re-embedded for another tokenizer, and what a hybrid of two tokenizers gains.

    python benchmarks/reembedding.py               # the two models are pretrained once and cached

A GPT-Neo with a byte-level BPE of 1,024 tokens and a Mamba with a Unigram (``▁`` for a space, byte fallback) of as
many are pretrained on the standard library's source. Each is then re-embedded for the other's tokenizer. Figures are
bits per byte of held-out text, since losses per token of different tokenizers cannot be compared.
Bar: re-embedded rows beat random ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from measure import write_json
from pairs import TEXT_BYTES, TOKENS
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import manticore
from manticore.components.loading import load_component, load_tokenizer
from manticore.components.reembedding import rearranged, reembed
from manticore.components.token_bytes import TokenBytes
from manticore.components.token_matching import EXACT, ROLE, Matching, match_tokens
from manticore.components.vocabulary import exchange_rows, with_vocabulary
from manticore.tasks.corpus import STDLIB, read_corpus
from manticore.tasks.text import split_documents, text
from manticore.training.pretrain import pretrain

VOCABULARY, EVALUATION, CALIBRATION = 1024, 256, 32_768
NAMES = ("GPT-Neo", "Mamba")


def train_unigram(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: Unigram, ``▁`` for a space, bytes where it has no piece."""
    special = ["<unk>", "<s>", "</s>"]
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        documents,
        trainers.UnigramTrainer(
            vocab_size=vocab_size - 256, special_tokens=special, unk_token=special[0], show_progress=False
        ),
    )
    pieces = [tuple(piece) for piece in json.loads(learned.to_str())["model"]["vocab"]]
    single = [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram(pieces[:3] + single + pieces[3:], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


class Side:
    """One parent, its tokenizer, and the text in its tokens."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self.tokenizer: Any = load_tokenizer(path)
        self.task = text(self.tokenizer, source=STDLIB, length=TOKENS, max_bytes=TEXT_BYTES)
        held_out = split_documents(read_corpus(STDLIB, max_bytes=TEXT_BYTES))["test"]
        tokens = len(self.task.data["test"]) * TOKENS
        self.tokens_per_byte = tokens / sum(len(document.encode()) for document in held_out)

    def bits_per_byte(self, model: Any) -> float:
        """Of the held-out text, read with this tokenizer."""
        loss = manticore.evaluate(model, self.task, split="test", max_examples=EVALUATION)["loss"]
        return loss / math.log(2) * self.tokens_per_byte

    def trained(self, model: Any, steps: int) -> float:
        """The same after some steps of fine-tuning of everything."""
        model = copy.deepcopy(model)
        manticore.finetune(model, self.task, steps=steps, batch_size=16, lr=1e-3, test_examples=16)
        return self.bits_per_byte(model)


def only_exact(matching: Matching) -> Matching:
    """The same without pieces."""
    sources = tuple(s if kind in (EXACT, ROLE) else () for s, kind in zip(matching.sources, matching.kinds))
    return Matching(sources, matching.kinds, matching.known)


def moved(kept: Side, other: Side, steps: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of ``other``'s parent with the tokenizer of ``kept``."""
    matching = match_tokens(TokenBytes(kept.tokenizer), TokenBytes(other.tokenizer))
    found = {"own tokenizer": other.bits_per_byte(load_component(other.path))}
    models: dict[str, Any] = {name: load_component(other.path) for name in ("re-embedded", "exact", "random", "mean")}
    reembed(models["re-embedded"], matching, kept.tokenizer)
    reembed(models["exact"], only_exact(matching), kept.tokenizer)
    with_vocabulary(models["random"], len(kept.tokenizer))
    nothing = Matching(((),) * len(matching.sources), matching.kinds, matching.known)
    exchange_rows(models["mean"], len(kept.tokenizer), lambda old: rearranged(old, nothing))
    models["mean"].tie_weights()
    labels = {
        "re-embedded": "re-embedded",
        "exact": "exact matches only, else the mean row",
        "random": "random rows",
        "mean": "the mean row for every token",
    }
    for name, label in labels.items():
        found[label] = kept.bits_per_byte(models[name])
    found[f"own tokenizer, {steps} steps"] = other.trained(load_component(other.path), steps)
    for name in ("re-embedded", "random"):
        found[f"{labels[name]}, {steps} steps"] = kept.trained(models[name], steps)
    return found, matching.to_dict()


def hybrids(kept: Side, sides: Sequence[Side], owner: int) -> dict[str, float]:
    """Figures of hybrids that keep the tokenizer of component ``owner``."""
    paths = [side.path for side in sides]
    found = {}
    hybrid = manticore.combine(paths, num_blocks=2, tokenizer=owner)
    for k, name in enumerate(NAMES):
        hybrid.set_mixture_weights([k, k])
        found[f"vertex {name}"] = kept.bits_per_byte(hybrid)
    for when in ("untranslated", "aligned"):
        if when == "aligned":
            manticore.align(hybrid, kept.task.data["train"].shuffle(seed=0), tokens=CALIBRATION)
        hybrid.set_mixture_weights([[0.5, 0.5], [0.5, 0.5]])
        found[f"supernet, equal weights, {when}"] = kept.bits_per_byte(hybrid)
    found["average of the parents' logits"] = kept.bits_per_byte(
        manticore.combine(paths, num_blocks=2, mixing="routed", tokenizer=owner)
    )
    return found


def main() -> int:
    """Print the tables, write the JSON, and fail where re-embedded rows do not beat random ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    shared: dict[str, Any] = {
        "layers": 4, "steps": arguments.pretrain_steps, "batch_size": 16, "length": TOKENS, "max_bytes": TEXT_BYTES
    }  # fmt: skip
    documents = split_documents(read_corpus(STDLIB, max_bytes=TEXT_BYTES))["train"]
    sides = [
        Side(pretrain("gpt_neo", width=64, vocab_size=VOCABULARY, **shared)),
        Side(pretrain("mamba", width=80, tokenizer=train_unigram(documents, VOCABULARY), **shared)),
    ]
    console = Console()
    payload: dict[str, Any] = {}
    for owner, (kept, other) in enumerate([(sides[0], sides[1]), (sides[1], sides[0])]):
        alone, matched = moved(kept, other, arguments.steps)
        together = hybrids(kept, sides, owner)
        title = f"{NAMES[1 - owner]} for the tokenizer of {NAMES[owner]}"
        table = Table("", "bits per byte", title=title)
        for name, value in {**alone, **together}.items():
            table.add_row(name, f"{value:.2f}")
        console.print(table)
        console.print(matched)
        payload[title] = {"matched": matched, "alone": alone, "together": together}
    met = all(part["alone"]["re-embedded"] < part["alone"]["random rows"] for part in payload.values())
    seconds = time.process_time() - start
    console.print(
        f"re-embedded rows beat random ones: {met}; {seconds:.0f} CPU seconds "
        "(with pretraining, where it was not cached)"
    )
    payload |= {"tokens_per_byte": [side.tokens_per_byte for side in sides], "cpu_seconds": seconds, "met": met}
    console.print(f"written to {write_json('reembedding', payload)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
