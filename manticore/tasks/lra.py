"""Data of the Long Range Arena: the release's files where they are, otherwise generated or from the hub.

Source: Tay et al. 2020, arXiv 2011.04006. Six tasks, each the classification of a long sequence; scored by accuracy on
the test split. Nothing is padded: ids that begin at 1 leave 0 free for it, pixels do not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, Features, List, Value

from manticore import registry
from manticore.errors import ManticoreError
from manticore.tasks import listops, lra_images, lra_text
from manticore.tasks.stored_rows import stored_rows

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
HUB_IDS = {"text": "stanfordnlp/imdb", "image": "uoft-cs/cifar10"}

Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Arena:
    """One of the six tasks."""

    vocab_size: int
    """Ids, padding and unknown symbols of the official pipeline included."""
    length: int
    """Tokens of a sequence, at most."""
    num_classes: int
    counts: tuple[int, int, int]
    """Examples of train, validation and test; Text's validation split is held out of the benchmark's training split."""
    dtype: str
    """Of the ids in a stored row."""
    sequences: int = 1


ARENAS: dict[str, Arena] = {
    "listops": Arena(len(listops.SYMBOLS) + 1, listops.LONGEST + 1, 10, (96_000, 2_000, 2_000), "uint8"),
    "text": Arena(lra_text.VOCABULARY, lra_text.LENGTH, 2, (22_500, 2_500, 25_000), "uint16"),
    "retrieval": Arena(lra_text.VOCABULARY, lra_text.LENGTH, 2, (147_086, 18_090, 17_437), "uint16", sequences=2),
    "image": Arena(lra_images.VOCABULARY, lra_images.SIDE**2, 10, (45_000, 5_000, 10_000), "uint8"),
    "pathfinder32": Arena(lra_images.VOCABULARY, 32**2, 2, (160_000, 20_000, 20_000), "uint8"),
    "pathfinder128": Arena(lra_images.VOCABULARY, 128**2, 2, (160_000, 20_000, 20_000), "uint8"),
}


@dataclass(frozen=True)
class _Source:
    """Where the rows of the splits come from."""

    origin: Any
    """What they depend on, as JSON can hold it."""
    rows: Mapping[str, Callable[[], Rows]]
    """Split → the function that makes its rows, one after the other."""
    endless: bool = False
    """Generated: the rows never end."""


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    level: str = "hard",
) -> DatasetDict:
    """``train``, ``validation`` and ``test`` with the columns ``input_ids`` and ``label``.

    Retrieval has a second document, ``input_ids_2``. What is loaded is kept in the cache folder, by content, and
    read from there through a memory map.

    Args:
        name: one of :data:`ARENAS`.
        data_dir: folder of the official release that holds the task, or the task's own folder; for ``text`` and
            ``image``, which the release lacks, ``aclImdb`` and ``cifar-10-batches-bin``. None: ListOps is generated
            by the official rules, ``text`` and ``image`` come from the hub.
        num_train: the first examples of the split only; None: all, or as many as the release has.
        num_validation: likewise.
        num_test: likewise.
        seed: of generated data; files are what they are.
        level: difficulty of Pathfinder: ``easy``, ``intermediate`` or ``hard``, the benchmark's.

    Raises:
        ManticoreError: an unknown task, a folder with another layout, or files that are not what they should be.
    """
    if name not in ARENAS:
        raise ManticoreError(f"lra: unknown task {name!r}{registry.did_you_mean(name, list(ARENAS))}")
    wanted = dict(zip(SPLITS, (num_train, num_validation, num_test)))
    for split, count in wanted.items():
        if count is not None:
            _expect_whole(name, f"num_{split}", count, at_least=1)
    _expect_whole(name, "seed", seed, at_least=0)
    if level not in lra_images.LEVELS:
        raise ManticoreError(f"lra/{name}: level is {level!r}, expected one of {', '.join(lra_images.LEVELS)}")
    source = _source(name, None if data_dir is None else Path(data_dir).expanduser(), seed, level)
    arena = ARENAS[name]
    features = Features(
        {column: List(Value(arena.dtype)) for column in ("input_ids", "input_ids_2")[: arena.sequences]}
    )
    features["label"] = Value("int64")
    data = DatasetDict()
    for split, published in zip(SPLITS, arena.counts):
        count = wanted[split]
        limit = published if count is None and source.endless else count
        content = {"format": 1, "origin": source.origin, "split": split, "limit": limit}
        rows = partial(_first, source.rows[split], limit)
        data[split] = stored_rows("lra", f"{name}-{split}", content, features, rows)
        if count is not None and len(data[split]) < count:
            raise ManticoreError(f"lra/{name}: {split} has {len(data[split])} examples (expected {count})")
        if len(data[split]) == 0:
            raise ManticoreError(f"lra/{name}: {split} is empty. Fix: give the files whole")
        if count is None and len(data[split]) != published:
            logger.warning("lra/%s: %s has %d examples, published are %d", name, split, len(data[split]), published)
    return data


def _source(name: str, data_dir: Path | None, seed: int, level: str) -> _Source:
    if data_dir is None and name == "listops":
        return _generated_listops(seed)
    if data_dir is None and name in HUB_IDS:
        return _hub_source(name)
    if data_dir is None:
        raise ManticoreError(
            f"lra/{name}: is not available without files. Fix: pass data_dir, the folder of the official release"
        )
    if not data_dir.is_dir():
        raise ManticoreError(f"lra/{name} {data_dir}: no such folder")
    if name == "listops":
        return _listops_files(data_dir)
    if name == "text":
        return _text_files(data_dir)
    if name == "retrieval":
        return _retrieval_files(data_dir)
    if name == "image":
        return _image_files(data_dir)
    return _pathfinder_files(name, data_dir, level)


def _generated_listops(seed: int) -> _Source:
    rows = {split: partial(_generated_rows, split, seed) for split in SPLITS}
    return _Source({"generator": "listops", "seed": seed}, rows, endless=True)


def _listops_files(data_dir: Path) -> _Source:
    files = {split: f"basic_{part}.tsv" for split, part in zip(SPLITS, ("train", "val", "test"))}
    folder = _locate("listops", data_dir, "listops-1000", list(files.values()))

    paths = {split: folder / file for split, file in files.items()}
    return _Source(_stamps(paths.values()), {split: partial(_listops_rows, path) for split, path in paths.items()})


def _retrieval_files(data_dir: Path) -> _Source:
    files = {split: f"new_aan_pairs.{part}.tsv" for split, part in zip(SPLITS, ("train", "eval", "test"))}
    folder = _locate("retrieval", data_dir, "tsv_data", list(files.values()))

    paths = {split: folder / file for split, file in files.items()}
    rows = {split: partial(lra_text.retrieval_rows, path) for split, path in paths.items()}
    return _Source(_stamps(paths.values()), rows)


def _text_files(data_dir: Path) -> _Source:
    folder = _locate("text", data_dir, "aclImdb", ["train", "test"])
    reviews = {split: lra_text.review_folder(folder, split) for split in ("train", "test")}
    return _text_source(reviews["train"], reviews["test"])


def _text_source(train: list[lra_text.Review], test: list[lra_text.Review]) -> _Source:
    splits = lra_text.review_splits(train, test)
    rows = {split: partial(lra_text.review_rows, reviews) for split, reviews in splits.items()}
    return _Source(lra_text.digest(splits), rows)


def _image_files(data_dir: Path) -> _Source:
    files = lra_images.CIFAR_BATCHES
    folder = _locate("image", data_dir, "cifar-10-batches-bin", [*files["train"], *files["test"]])
    train, test = ([folder / file for file in files[split]] for split in ("train", "test"))
    images = sum(path.stat().st_size for path in train) // lra_images.RECORD_BYTES
    rows = {split: partial(lra_images.cifar_rows, paths) for split, paths in (("train", train), ("test", test))}
    return _image_source(_stamps([*train, *test]), rows["train"], images, rows["test"])


def _image_source(origin: Any, train: Callable[[], Rows], images: int, test: Callable[[], Rows]) -> _Source:
    """The last tenth of the training images is the validation split."""
    boundary = images - images // 10
    return _Source(
        origin,
        {
            "train": lambda: islice(train(), boundary),
            "validation": lambda: islice(train(), boundary, None),
            "test": test,
        },
    )


def _pathfinder_files(name: str, data_dir: Path, level: str) -> _Source:
    below = lra_images.LEVELS[level]
    folder = _locate(name, data_dir, name, [f"{below}/metadata"]) / below
    side = int(name.removeprefix("pathfinder"))

    @cache
    def splits() -> dict[str, list[lra_images.Picture]]:
        return lra_images.pathfinder_splits(lra_images.pathfinder_pictures(folder))

    def rows(split: str) -> Rows:
        return lra_images.picture_rows(splits()[split], side)

    return _Source(_stamps(lra_images.pathfinder_metadata(folder)), {split: partial(rows, split) for split in SPLITS})


def _hub_source(name: str) -> _Source:
    identifier = HUB_IDS[name]
    where = f"lra/{name} {identifier}"
    try:
        rows = {split: datasets.load_dataset(identifier, split=split) for split in ("train", "test")}
    except Exception as error:
        # datasets raises dozens of classes, its own and its dependencies'; each means that there is no such data here
        reason = " ".join(str(error).split())[:200]
        raise ManticoreError(
            f"{where}: cannot be had from the hub ({type(error).__name__}: {reason}). "
            f"Fix: go online, or pass data_dir, the folder {'aclImdb' if name == 'text' else 'cifar-10-batches-bin'}"
        ) from error
    train, test = rows["train"], rows["test"]
    if name == "text":
        return _text_source(lra_text.reviews_of_rows(train, where), lra_text.reviews_of_rows(test, where))
    fingerprints = {split: part._fingerprint for split, part in rows.items()}
    return _image_source(
        {"hub": identifier, **fingerprints},
        partial(lra_images.hub_image_rows, train, where),
        len(train),
        partial(lra_images.hub_image_rows, test, where),
    )


def _generated_rows(split: str, seed: int) -> Rows:
    return _columns(listops.examples(split, seed=seed))


def _listops_rows(path: Path) -> Rows:
    return _columns(listops.read_tsv(path))


def _columns(examples: Iterable[listops.Example]) -> Rows:
    return ({"input_ids": ids, "label": label} for ids, label in examples)


def _first(rows: Callable[[], Rows], limit: int | None) -> Rows:
    return islice(rows(), limit)


def _locate(name: str, data_dir: Path, below: str, needed: list[str]) -> Path:
    """The folder that holds all that is needed: the inner one of the release first, whose Path-X is the sound copy."""
    folders = [data_dir / "lra_release" / "lra_release" / below, data_dir / "lra_release" / below, data_dir / below]
    for folder in (*folders, data_dir):
        if all((folder / entry).exists() for entry in needed):
            return folder
    found = next((folder for folder in folders if folder.is_dir()), data_dir)
    missing = next(entry for entry in needed if not (found / entry).exists())
    raise ManticoreError(
        f"lra/{name} {found}: has no {missing} (expected {below}/{missing} below data_dir, or {missing} in it). "
        f"Fix: pass as data_dir the folder that holds {below}"
    )


def _stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """What tells one state of the files from another without reading them."""
    stamps = []
    for path in paths:
        status = path.stat()
        stamps.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return stamps


def _expect_whole(name: str, option: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ManticoreError(f"lra/{name}: {option} is {value!r}, expected a whole number of at least {at_least}")
