"""MAD, the synthetic tasks of mechanistic architecture design, with the data of the public benchmark.

Source: Poli et al. 2024, arXiv 2403.17844. One generator, numpy's PCG64 with seed 12345, makes all training
examples and then all test examples, so the test set depends on the number of training examples.
Training examples score every next token, test examples only what can be known. Validation examples are like
test examples; they come from a stream of their own, and the test set stays untouched until the end.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from manticore import registry
from manticore.cache import cache_folder, content_key
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.tasks.metrics import MadMetrics
from manticore.tasks.recall import check_recall_options, recall_chance, recall_example
from manticore.tasks.task import Task

logger = logging.getLogger(__name__)

PUBLISHED_SEED = 12345

Arrays = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, int64, [examples, tokens]."""


@dataclass(frozen=True)
class Kind:
    """One of the synthetic tasks."""

    example: Callable[..., tuple[list[int], list[int]]]
    check: Callable[..., None]
    chance: Callable[..., float]
    baseline: Mapping[str, int | float]
    """The options of the published baseline setting."""


KINDS: dict[str, Kind] = {
    "in-context-recall": Kind(recall_example, check_recall_options, recall_chance, {"vocab_size": 16, "seq_len": 128}),
    "noisy-in-context-recall": Kind(
        recall_example,
        check_recall_options,
        recall_chance,
        {"vocab_size": 32, "seq_len": 128, "noise_vocab_size": 16, "frac_noise": 0.2},
    ),
}


def generate(
    name: str,
    *,
    num_train_examples: int = 12800,
    num_test_examples: int = 1280,
    seed: int = PUBLISHED_SEED,
    cache: bool = True,
    **options: int | float,
) -> dict[str, Arrays]:
    """Inputs and targets of ``train`` and ``test``; with the defaults, exactly the benchmark's.

    Args:
        name: ``"in-context-recall"`` or ``"noisy-in-context-recall"``.
        num_train_examples: training examples.
        num_test_examples: test examples.
        seed: of the generator.
        cache: keep the result in the cache folder and take it from there.
        options: settings that differ from the published baseline, for instance ``vocab_size`` or ``seq_len``.

    Raises:
        ManticoreError: an unknown task or option, or a value that allows no data.
    """
    settings = _settings(name, options)
    counts = {"train": num_train_examples, "test": num_test_examples}
    for split, count in counts.items():
        _expect_integer(name, f"num_{split}_examples", count, at_least=0)
    make = partial(_generate, name, settings, counts, seed)
    if not cache:
        return make()
    content = {"format": 1, "task": name, "settings": settings, "counts": counts, "seed": seed}
    return _cached(cache_folder("mad") / f"{name}-{content_key(content)}.npz", make)


def in_context_recall(
    *,
    vocab_size: int = 16,
    seq_len: int = 128,
    num_train_examples: int = 12800,
    num_test_examples: int = 1280,
    num_validation_examples: int = 1280,
    data_seed: int = PUBLISHED_SEED,
) -> Task:
    """Recall the value that belongs to a key seen earlier in the sequence.

    Args:
        vocab_size: half of the tokens are keys, half values.
        seq_len: even; examples have one token less.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from a stream of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "in-context-recall",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {"vocab_size": vocab_size, "seq_len": seq_len},
    )


def noisy_in_context_recall(
    *,
    vocab_size: int = 32,
    seq_len: int = 128,
    noise_vocab_size: int = 16,
    frac_noise: float = 0.2,
    num_train_examples: int = 12800,
    num_test_examples: int = 1280,
    num_validation_examples: int = 1280,
    data_seed: int = PUBLISHED_SEED,
) -> Task:
    """In-context recall with pairs of noise tokens between the pairs of keys and values.

    Args:
        vocab_size: keys, values and noise together.
        seq_len: even; examples have one token less.
        noise_vocab_size: how many of the tokens are noise.
        frac_noise: share of pairs that are noise.
        num_train_examples: training examples.
        num_test_examples: test examples.
        num_validation_examples: drawn from a stream of their own.
        data_seed: the published data have 12345.
    """
    return _task(
        "noisy-in-context-recall",
        {"train": num_train_examples, "validation": num_validation_examples, "test": num_test_examples},
        data_seed,
        {
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "noise_vocab_size": noise_vocab_size,
            "frac_noise": frac_noise,
        },
    )


def _task(name: str, counts: dict[str, int], seed: int, options: dict[str, int | float]) -> Task:
    for split, count in counts.items():
        _expect_integer(name, f"num_{split}_examples", count, at_least=1)
    arrays = generate(
        name,
        num_train_examples=counts["train"],
        num_test_examples=counts["test"],
        seed=seed,
        cache=True,
        **options,
    )
    validation = generate(
        name,
        num_train_examples=0,
        num_test_examples=counts["validation"],
        seed=derive_seed(seed, f"{name} validation"),
        cache=True,
        **options,
    )
    arrays["validation"] = validation["test"]
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
    )


def _settings(name: str, options: Mapping[str, int | float]) -> dict[str, int | float]:
    if name not in KINDS:
        raise ManticoreError(f"mad: unknown task {name!r}{registry.did_you_mean(name, list(KINDS))}")
    kind = KINDS[name]
    for option, value in options.items():
        if option not in kind.baseline:
            raise ManticoreError(
                f"mad/{name}: unknown option {option!r}{registry.did_you_mean(option, list(kind.baseline))}"
            )
        if isinstance(kind.baseline[option], int):
            _expect_integer(name, option, value, at_least=0)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ManticoreError(f"mad/{name}: {option} is {value!r}, expected a number")
    settings = {**kind.baseline, **options}
    kind.check(f"mad/{name}", **settings)
    return settings


def _expect_integer(name: str, option: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise ManticoreError(f"mad/{name}: {option} is {value!r}, expected a whole number of at least {at_least}")


def _generate(name: str, settings: dict[str, int | float], counts: dict[str, int], seed: int) -> dict[str, Arrays]:
    example = KINDS[name].example
    rng = np.random.default_rng(seed)
    arrays = {}
    for split in ("train", "test"):
        examples = [example(rng, training=split == "train", **settings) for _ in range(counts[split])]
        stacked = np.array(examples, dtype=np.int64).reshape(counts[split], 2, -1 if examples else 0)
        arrays[split] = (np.ascontiguousarray(stacked[:, 0]), np.ascontiguousarray(stacked[:, 1]))
    return arrays


def _cached(path: Path, make: Callable[[], dict[str, Arrays]]) -> dict[str, Arrays]:
    """The arrays in ``path``; made and written if they are not there. A cache that fails costs time only."""
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {
                    split: (
                        stored[f"{split}_inputs"].astype(np.int64),
                        stored[f"{split}_targets"].astype(np.int64),
                    )
                    for split in ("train", "test")
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); the data are generated again", path, error)
    arrays = make()
    try:
        _store(path, arrays)
    except OSError as error:
        logger.warning("%s cannot be written (%s); the data are generated again next time", path, error)
    return arrays


def _store(path: Path, arrays: dict[str, Arrays]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        f"{split}_{column}": array.astype(np.int32)
        for split, pair in arrays.items()
        for column, array in zip(("inputs", "targets"), pair)
    }
    descriptor, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **columns)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
