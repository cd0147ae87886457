"""The six MAD tasks as tasks that models are trained, searched and compared on.

Source: Poli et al. 2024, arXiv 2403.17844. Training and test examples are those of ``generate`` in ``examples.py``.
Validation examples are like test examples; they come from streams of their own, and the test set stays untouched
until the end. The benchmark itself has no validation set.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from manticore.making import checked
from manticore.settings import Count, Seed
from manticore.tasks.mad.examples import (
    KINDS,
    PUBLISHED_SEED,
    generate,
    generate_validation,
)
from manticore.tasks.metrics import MadMetrics
from manticore.tasks.task import Task


@checked("mad/in-context-recall")
def in_context_recall(
    *,
    vocab_size: int = 16,
    seq_len: int = 128,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """Recall the value that belongs to a key seen earlier in the sequence.

    Args:
        vocab_size: half of the tokens are keys, half values.
        seq_len: even; examples have one token less.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "in-context-recall",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len},
    )


@checked("mad/noisy-in-context-recall")
def noisy_in_context_recall(
    *,
    vocab_size: int = 32,
    seq_len: int = 128,
    noise_vocab_size: int = 16,
    frac_noise: float = 0.2,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """In-context recall with pairs of noise tokens between the pairs of keys and values.

    Args:
        vocab_size: keys, values and noise together.
        seq_len: even; examples have one token less.
        noise_vocab_size: how many of the tokens are noise.
        frac_noise: share of pairs that are noise.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "noisy-in-context-recall",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len, "noise_vocab_size": noise_vocab_size, "frac_noise": frac_noise},
    )


@checked("mad/fuzzy-in-context-recall")
def fuzzy_in_context_recall(
    *,
    vocab_size: int = 16,
    seq_len: int = 128,
    k_motif_size: int = 3,
    v_motif_size: int = 3,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """In-context recall where keys and values are several tokens long.

    Args:
        vocab_size: keys, values and one padding token together.
        seq_len: tokens per example.
        k_motif_size: tokens of the longest keys; keys of test examples all have so many.
        v_motif_size: tokens of the longest values.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "fuzzy-in-context-recall",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len, "k_motif_size": k_motif_size, "v_motif_size": v_motif_size},
    )


@checked("mad/selective-copying")
def selective_copying(
    *,
    vocab_size: int = 16,
    seq_len: int = 256,
    num_tokens_to_copy: int = 16,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """Repeat the tokens of a sequence in order, without the blanks between them.

    Args:
        vocab_size: content, the blank and the copy token together.
        seq_len: tokens per example.
        num_tokens_to_copy: content tokens per example; more than twice as many must fit.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "selective-copying",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len, "num_tokens_to_copy": num_tokens_to_copy},
    )


@checked("mad/compression")
def compression(
    *,
    vocab_size: int = 16,
    seq_len: int = 32,
    num_train_examples: Count = 12800,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """Restore a random sequence from one vector. Made for an auto-encoder: other models see what they shall answer.

    Args:
        vocab_size: content and the token that ends every sequence.
        seq_len: tokens per example.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "compression",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len},
    )


@checked("mad/memorization")
def memorization(
    *,
    vocab_size: int = 256,
    seq_len: int = 32,
    num_train_examples: Count = 256,
    num_test_examples: Count = 1280,
    num_validation_examples: Count = 1280,
    data_seed: Seed = PUBLISHED_SEED,
) -> Task:
    """Learn facts by heart that are the same in every sequence; test and training examples ask for the same facts.

    Args:
        vocab_size: keys, values and the token between them.
        seq_len: even; tokens per example.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from streams of their own.
        data_seed: of the examples and of the facts; the published data have 12345.
    """
    return _task(
        "memorization",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len, "map_seed": data_seed},
    )


def _task(name: str, counts: dict[str, int], seed: int, options: dict[str, Any]) -> Task:
    arrays = generate(
        name,
        num_train_examples=counts["train"],
        num_test_examples=counts["test"],
        seed=seed,
        **options,
    )
    arrays["validation"] = generate_validation(name, num_examples=counts["validation"], seed=seed, **options)
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
