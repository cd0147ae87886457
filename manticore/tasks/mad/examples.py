"""Data of MAD, the synthetic tasks of mechanistic architecture design: those of the public benchmark, bit for bit.

Source: Poli et al. 2024, arXiv 2403.17844. One generator, numpy's PCG64 with seed 12345, makes all training
examples and then all test examples, so the test set depends on the number of training examples.
In the recall tasks training examples score every next token, test examples only what can be known; in the other
three both score the same.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manticore import registry
from manticore.cache import Entry, cache_folder, content_key
from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Amount, Seed
from manticore.seeding import derive_seed
from manticore.tasks.mad.compression import check_compression, compression, compression_chance
from manticore.tasks.mad.copying import check_selective_copying, selective_copying, selective_copying_chance
from manticore.tasks.mad.fuzzy_recall import check_fuzzy_recall, fuzzy_recall, fuzzy_recall_chance
from manticore.tasks.mad.memorization import check_memorization, memorization, memorization_chance
from manticore.tasks.mad.recall import check_recall_options, recall, recall_chance
from manticore.tasks.mad.streams import Arrays, Streams
from manticore.tasks.shape import TaskShape
from manticore.tasks.task import Backbone

logger = logging.getLogger(__name__)

PUBLISHED_SEED = 12345
NUM_TEST_EXAMPLES = 1280
"""Test examples of every published setting."""


@dataclass(frozen=True)
class Kind:
    """One of the synthetic tasks."""

    examples: Callable[..., Arrays]
    """``examples(streams, count, training=..., **options)``."""
    check: Callable[..., None]
    """``check(task, **options)`` raises a ManticoreError for options that allow no data."""
    chance: Callable[..., float]
    """``chance(**options)``: token accuracy of a uniform guess."""
    baseline: Mapping[str, int | float]
    """The options of the published baseline setting."""
    num_train_examples: int = 12800
    """Training examples of the published baseline setting."""
    backbone: Backbone = "causal"


KINDS: dict[str, Kind] = {
    "in-context-recall": Kind(recall, check_recall_options, recall_chance, {"vocab_size": 16, "seq_len": 128}),
    "noisy-in-context-recall": Kind(
        recall,
        check_recall_options,
        recall_chance,
        {"vocab_size": 32, "seq_len": 128, "noise_vocab_size": 16, "frac_noise": 0.2},
    ),
    "fuzzy-in-context-recall": Kind(
        fuzzy_recall,
        check_fuzzy_recall,
        fuzzy_recall_chance,
        {"vocab_size": 16, "seq_len": 128, "k_motif_size": 3, "v_motif_size": 3},
    ),
    "selective-copying": Kind(
        selective_copying,
        check_selective_copying,
        selective_copying_chance,
        {"vocab_size": 16, "seq_len": 256, "num_tokens_to_copy": 16},
    ),
    "compression": Kind(
        compression, check_compression, compression_chance, {"vocab_size": 16, "seq_len": 32}, backbone="autoencoder"
    ),
    "memorization": Kind(
        memorization,
        check_memorization,
        memorization_chance,
        {"vocab_size": 256, "seq_len": 32, "map_seed": PUBLISHED_SEED},
        num_train_examples=256,
    ),
}


@checked("mad/{name}")
def generate(
    name: str,
    *,
    num_train_examples: Amount | None = None,
    num_test_examples: Amount = NUM_TEST_EXAMPLES,
    seed: Seed = PUBLISHED_SEED,
    cache: bool = True,
    **options: int | float,
) -> dict[str, Arrays]:
    """Inputs and targets of ``train`` and ``test``; with the defaults, exactly the benchmark's.

    Args:
        name: one of :data:`KINDS`, for instance ``"fuzzy-in-context-recall"``.
        num_train_examples: training examples; None: as many as the published baseline has.
        num_test_examples: test examples.
        seed: of the generator.
        cache: keep the result in the cache folder and take it from there.
        options: settings that differ from the published baseline, for instance ``vocab_size`` or ``seq_len``.

    Raises:
        ManticoreError: an unknown task or option, or a value that allows no data.
    """
    settings = checked_options(name, options)
    if num_train_examples is None:
        num_train_examples = KINDS[name].num_train_examples
    counts = {"train": num_train_examples, "test": num_test_examples}
    make = partial(_generate, name, settings, counts, seed)
    if not cache:
        return make()
    content = {"format": 1, "task": name, "settings": settings, "counts": counts, "seed": seed}
    return _cached(Entry(cache_folder("mad"), f"{name}-{content_key(content)}", ".npz"), make)


def generate_validation(
    name: str, *, num_examples: int = NUM_TEST_EXAMPLES, seed: int = PUBLISHED_SEED, **options: int | float
) -> Arrays:
    """Examples like those of the test split, from streams of their own; the benchmark itself has no validation split.

    Args:
        name: as in :func:`generate`.
        num_examples: how many.
        seed: of the data that they belong to.
        options: as in :func:`generate`.

    Raises:
        ManticoreError: as :func:`generate`.
    """
    own = derive_seed(seed, f"{name} validation")
    return generate(name, num_train_examples=0, num_test_examples=num_examples, seed=own, **options)["test"]  # type: ignore[arg-type]


def checked_options(name: str, options: Mapping[str, int | float]) -> dict[str, int | float]:
    """All options of the task `name`: the published baseline's, changed to those given.

    Raises:
        ManticoreError: an unknown task or option, or a value that allows no data.
    """
    if name not in KINDS:
        raise ManticoreError(f"mad: unknown task {name!r}{registry.did_you_mean(name, list(KINDS))}")
    kind = KINDS[name]
    for option in options:
        if option not in kind.baseline:
            raise ManticoreError(
                f"mad/{name}: unknown option {option!r}{registry.did_you_mean(option, list(kind.baseline))}"
            )
    settings = {**kind.baseline, **options}
    kind.check(f"mad/{name}", **settings)
    return settings


def _generate(name: str, settings: dict[str, int | float], counts: dict[str, int], seed: int) -> dict[str, Arrays]:
    streams = Streams.of(seed)
    examples = KINDS[name].examples
    # in this order: the test examples continue the streams of the training examples
    return {split: examples(streams, counts[split], training=split == "train", **settings) for split in counts}


def _cached(entry: Entry, make: Callable[[], dict[str, Arrays]]) -> dict[str, Arrays]:
    """The arrays of an entry; made and written if it is not there. A cache that fails costs time only."""
    try:
        content = entry.read()
        if content is not None:
            return _arrays(content)
    except OSError as error:
        logger.warning("%s cannot be read (%s); the data are generated again", entry.folder / entry.name, error)
    arrays = make()
    try:
        with entry.aside() as aside:
            _store(aside, arrays)
            entry.keep(aside)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s); the data are generated again next time", entry.folder / entry.name, error
        )
    return arrays


def _arrays(content: bytes) -> dict[str, Arrays]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {
            split: (stored[f"{split}_inputs"].astype(np.int64), stored[f"{split}_targets"].astype(np.int64))
            for split in ("train", "test")
        }


def _store(path: Path, arrays: dict[str, Arrays]) -> None:
    columns: dict[str, Any] = {
        f"{split}_{column}": _narrowed(array)
        for split, pair in arrays.items()
        for column, array in zip(("inputs", "targets"), pair)
    }
    with path.open("wb") as stream:
        np.savez(stream, **columns)


def _narrowed(array: np.ndarray) -> np.ndarray:
    """The same integers in as few bytes as hold them."""
    if array.size == 0:
        return array.astype(np.int8)
    return array.astype(np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))


def shape(name: str, options: Mapping[str, Any]) -> TaskShape:
    """Sizes of a MAD task, read from a handful of examples.

    Args:
        name: as it is registered.
        options: all of the task.
    """
    left_out = ("num_train_examples", "num_test_examples", "num_validation_examples", "data_seed")
    settings = {option: value for option, value in options.items() if option not in left_out}
    kind = name.removeprefix("mad/")
    inputs, _ = generate(kind, num_train_examples=2, num_test_examples=1, cache=False, **settings)["train"]
    tests, held_out = int(options["num_test_examples"]), int(options["num_validation_examples"])
    sizes = int(settings["vocab_size"]), inputs.shape[1], tests
    trained = int(options["num_train_examples"])
    encodes = KINDS[kind].backbone == "autoencoder"
    return TaskShape(name, *sizes, validation_examples=held_out, train_examples=trained, autoencoder=encodes)
