"""The six MAD tasks as tasks that models are trained, searched and compared on.

Source: Poli et al. 2024, arXiv 2403.17844. Training and test examples are those of ``generate`` in ``examples.py``.
Validation examples are like test examples; they come from streams of their own, and the test set stays untouched
until the end. The benchmark itself has no validation set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict

from manticore.making import checked, sharing
from manticore.option_types import Count, Seed
from manticore.tasks.mad.examples import (
    KINDS,
    PUBLISHED_SEED,
    generate,
    generate_validation,
)
from manticore.tasks.metrics import MadMetrics
from manticore.tasks.task import Task


def _data(
    *,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> None:
    """What all six take.

    Args:
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """


@checked("mad/in-context-recall")
@sharing(_data)
def in_context_recall(*, vocab_size: int = 16, seq_len: int = 128, **shared: Any) -> Task:
    """Recall the value that belongs to a key seen earlier in the sequence.

    Args:
        vocab_size: half of the tokens are keys, half values.
        seq_len: even; examples have one token less.
    """
    return _task("in-context-recall", shared, vocab_size=vocab_size, seq_len=seq_len)


@checked("mad/noisy-in-context-recall")
@sharing(_data)
def noisy_in_context_recall(
    *, vocab_size: int = 32, seq_len: int = 128, noise_vocab_size: int = 16, frac_noise: float = 0.2, **shared: Any
) -> Task:
    """In-context recall with pairs of noise tokens between the pairs of keys and values.

    Args:
        vocab_size: keys, values and noise together.
        seq_len: even; examples have one token less.
        noise_vocab_size: how many of the tokens are noise.
        frac_noise: share of pairs that are noise.
    """
    return _task(
        "noisy-in-context-recall",
        shared,
        vocab_size=vocab_size,
        seq_len=seq_len,
        noise_vocab_size=noise_vocab_size,
        frac_noise=frac_noise,
    )


@checked("mad/fuzzy-in-context-recall")
@sharing(_data)
def fuzzy_in_context_recall(
    *, vocab_size: int = 16, seq_len: int = 128, k_motif_size: int = 3, v_motif_size: int = 3, **shared: Any
) -> Task:
    """In-context recall where keys and values are several tokens long.

    Args:
        vocab_size: keys, values and one padding token together.
        seq_len: tokens per example.
        k_motif_size: tokens of the longest keys; keys of test examples all have so many.
        v_motif_size: tokens of the longest values.
    """
    return _task(
        "fuzzy-in-context-recall",
        shared,
        vocab_size=vocab_size,
        seq_len=seq_len,
        k_motif_size=k_motif_size,
        v_motif_size=v_motif_size,
    )


@checked("mad/selective-copying")
@sharing(_data)
def selective_copying(*, vocab_size: int = 16, seq_len: int = 256, num_tokens_to_copy: int = 16, **shared: Any) -> Task:
    """Repeat the tokens of a sequence in order, without the blanks between them.

    Args:
        vocab_size: content, the blank and the copy token together.
        seq_len: tokens per example.
        num_tokens_to_copy: content tokens per example; more than twice as many must fit.
    """
    return _task(
        "selective-copying", shared, vocab_size=vocab_size, seq_len=seq_len, num_tokens_to_copy=num_tokens_to_copy
    )


@checked("mad/compression")
@sharing(_data)
def compression(*, vocab_size: int = 16, seq_len: int = 32, **shared: Any) -> Task:
    """Restore a random sequence from one vector. Made for an auto-encoder: other models see what they shall answer.

    Args:
        vocab_size: content and the token that ends every sequence.
        seq_len: tokens per example.
    """
    return _task("compression", shared, vocab_size=vocab_size, seq_len=seq_len)


@checked("mad/memorization")
@sharing(_data)
def memorization(
    *,
    vocab_size: int = 256,
    seq_len: int = 32,
    num_train_examples: Count = 256,
    data_seed: Seed = PUBLISHED_SEED,
    **shared: Any,
) -> Task:
    """Learn facts by heart that are the same in every sequence; test and training examples ask for the same facts.

    Args:
        vocab_size: keys, values and the token between them.
        seq_len: even; tokens per example.
        num_train_examples: training examples.
        data_seed: of the examples and of the facts; the published data have 12345.
    """
    shared |= {"num_train_examples": num_train_examples, "data_seed": data_seed}
    return _task("memorization", shared, vocab_size=vocab_size, seq_len=seq_len, map_seed=data_seed)


def _task(name: str, shared: Mapping[str, Any], **options: Any) -> Task:
    counts = {f"num_{split}_examples": shared[f"num_{split}_examples"] for split in ("train", "test")}
    seed, held_out = shared["data_seed"], shared["num_validation_examples"]
    arrays = generate(name, **counts, seed=seed, **options)
    arrays["validation"] = generate_validation(name, num_examples=held_out, seed=seed, **options)
    data = DatasetDict()
    for split in ("train", "validation", "test"):
        inputs, targets = arrays[split]
        data[split] = Dataset.from_dict({"input_ids": inputs, "targets": targets}).with_format("torch")
    return Task(
        name=f"mad/{name}",
        vocab_size=int(options["vocab_size"]),
        length=arrays["train"][0].shape[1],
        data=data,
        primary_metric="accuracy",
        higher_is_better=True,
        metric_state=MadMetrics,
        chance=KINDS[name].chance(**options),
        backbone=KINDS[name].backbone,
    )
