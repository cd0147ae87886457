"""Images in MNIST's files (IDX) as pixel sequences: row by row, value 0 to 255 = id; no padding.

Four files: images and labels, for training and for testing, as they are or compressed by gzip. An IDX file begins with
two zeros, the type of its numbers (8: bytes) and how many dimensions it has; their sizes as 32-bit numbers, the largest
byte first, and the numbers follow (LeCun, Cortes & Burges, "The MNIST database"). Fashion-MNIST (Xiao et al., 2017) is
such a folder, which Debian packs as ``dataset-fashion-mnist``. Like Image of the Long Range Arena, and not it.

Letters: N images, H and W pixels.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from datasets import DatasetDict

from manticore.errors import ManticoreError, told
from manticore.paths import expanded
from manticore.tasks.lra.splits import SPLITS, Rows, Source, files_digest, last_tenth_held_out, load_splits
from manticore.tasks.shape import TaskShape

FASHION = "fashion-mnist"
NAME = "idx-images"
VOCABULARY = 256
FASHION_SIDE = 28
FASHION_CLASSES = 10
FASHION_COUNTS = (54_000, 6_000, 10_000)
"""Images of train, validation and test; the validation split is the last tenth of the published training images."""
LARGEST = 128**2
"""Pixels of an image, at most: those of Path-X."""

_INSTALLED = "usr/share/datasets/fashion-mnist"
"""Where Debian's package puts its files, below the root folder or the one that it is unpacked into."""
_FASHION_FIX = (
    "apt install dataset-fashion-mnist, or apt-get download dataset-fashion-mnist, dpkg-deb -x of what it fetches into "
    "a folder, and pass that as data_dir"
)
_FILES_FIX = (
    "pass as data_dir the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each of them perhaps .gz"
)
_FILE = re.compile(r"(?P<set>.*-)?(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?P<gz>\.gz)?")
_BYTES = 8
_MOST = 2**32
_DIMENSIONS = {"images": 3, "labels": 1}


@dataclass(frozen=True)
class Part:
    """Images and labels of ``train`` or ``test``."""

    images: Path
    labels: Path


@dataclass(frozen=True)
class Images:
    """A folder of images in MNIST's format."""

    folder: Path
    parts: Mapping[str, Part]
    counts: Mapping[str, int]
    """Images of ``train``, of which a tenth is held out, and ``test``."""
    pixels: int
    """H W."""


def load(name: str, data_dir: str | Path | None, counts: Mapping[str, int | None]) -> tuple[DatasetDict, int, int]:
    """``train``, ``validation`` and ``test`` with ``input_ids`` (H W pixels) and ``label``, H W, and how many classes.

    The last tenth of the training images, in their order, is the validation split. What is loaded is kept in the cache
    folder, by content.

    Args:
        name: :data:`FASHION`, whose sizes are checked, or :data:`NAME`.
        data_dir: folder of the four files; of Fashion-MNIST also one that Debian's package is unpacked into, or None
            where it is installed.
        counts: split → its first examples only; None: all.

    Raises:
        ManticoreError: no such files, or files that are not what they should be.
    """
    images = find(name, data_dir)
    labels = {part: _labels(name, images, part) for part in images.parts}
    classes = 1 + max(int(each.max()) for each in labels.values())
    if name == FASHION and classes != FASHION_CLASSES:
        raise ManticoreError(
            f"{FASHION} {images.folder}: {classes} classes (expected {FASHION_CLASSES}). Fix: task {NAME}, or "
            f"{_FASHION_FIX}"
        )
    rows = {part: partial(_rows, name, images, part, labels[part]) for part in images.parts}
    paths = [path for part in images.parts.values() for path in (part.images, part.labels)]
    source = Source(
        {"images": files_digest(paths, name)},
        {**last_tenth_held_out(rows["train"], images.counts["train"]), "test": rows["test"]},
    )
    published = dict(zip(SPLITS, FASHION_COUNTS if name == FASHION else (None, None, None)))
    return load_splits(name, source, counts, published, "uint8"), images.pixels, classes


def find(name: str, data_dir: str | Path | None) -> Images:
    """The files of a folder, with the sizes that their headers give.

    Raises:
        ManticoreError: as in :func:`load`.
    """
    folder = _folder(name, None if data_dir is None else expanded(data_dir))
    parts = _parts(name, folder)
    shapes = {part: _shape(name, files.images, "images") for part, files in parts.items()}
    sizes = {tuple(shape[1:]) for shape in shapes.values()}
    if len(sizes) > 1:
        raise ManticoreError(f"{name} {folder}: images of several sizes, {_told(sizes)} pixels. Fix: {_fix(name)}")
    (size,) = sizes
    if not 1 <= math.prod(size) <= LARGEST:
        raise ManticoreError(
            f"{name} {folder}: images of {_told([size])} pixels (expected 1 to {LARGEST:,} of them). Fix: {_fix(name)}"
        )
    if name == FASHION and size != (FASHION_SIDE, FASHION_SIDE):
        raise ManticoreError(
            f"{FASHION} {folder}: images of {_told([size])} pixels (expected {FASHION_SIDE} x {FASHION_SIDE}). "
            f"Fix: task {NAME}, or {_FASHION_FIX}"
        )
    return Images(folder, parts, {part: shape[0] for part, shape in shapes.items()}, math.prod(size))


def shape(name: str, options: Mapping[str, Any]) -> TaskShape:
    """Sizes of a task of such images; those of another folder than Fashion-MNIST are read from its headers.

    Args:
        name: as it is registered.
        options: all of the task.
    """
    pixels, counts = FASHION_SIDE**2, FASHION_COUNTS[1:]
    if name == NAME:
        images = find(name, options.get("data_dir"))
        pixels, counts = images.pixels, (images.counts["train"] // 10, images.counts["test"])
    held_out, tests = (int(options.get(f"num_{split}") or count) for split, count in zip(SPLITS[1:], counts))
    return TaskShape(name, VOCABULARY, pixels, tests, validation_examples=held_out, classes=True)


def _fix(name: str) -> str:
    return _FASHION_FIX if name == FASHION else _FILES_FIX


def _told(sizes: Any) -> str:
    return " and ".join(" x ".join(map(str, size)) for size in sorted(sizes))


def _folder(name: str, data_dir: Path | None) -> Path:
    if data_dir is None:
        installed = Path("/") / _INSTALLED
        if name != FASHION or not installed.is_dir():
            raise ManticoreError(f"{name}: needs files. Fix: {_fix(name)}")
        return installed
    if not data_dir.is_dir():
        raise ManticoreError(f"{name} {data_dir}: no such folder. Fix: {_fix(name)}")
    below = data_dir / _INSTALLED
    return below if name == FASHION and below.is_dir() else data_dir


def _parts(name: str, folder: Path) -> dict[str, Part]:
    found: dict[tuple[str, str], list[Path]] = {}
    # a file beside its compressed self comes first
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path.name)):
        match = _FILE.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        key = ("train" if match["part"] == "train" else "test", match["what"])
        alike = found.setdefault(key, [])
        if all(path.name.removesuffix(".gz") != other.name for other in alike):
            alike.append(path)
    for part in ("train", "test"):
        for what in _DIMENSIONS:
            paths = found.get((part, what), [])
            if not paths:
                shown = f"{'train' if part == 'train' else 't10k'}-{what}-idx{_DIMENSIONS[what]}-ubyte"
                raise ManticoreError(f"{name} {folder}: has no {shown}, nor {shown}.gz. Fix: {_fix(name)}")
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise ManticoreError(
                    f"{name} {folder}: {names} are both {part} {what}. Fix: a folder of one set of images alone"
                )
    return {part: Part(found[part, "images"][0], found[part, "labels"][0]) for part in ("train", "test")}


def _labels(name: str, images: Images, part: str) -> np.ndarray:
    path = images.parts[part].labels
    labels = _content(name, path, "labels")
    if len(labels) != images.counts[part]:
        raise ManticoreError(
            f"{name} {path}: {len(labels)} labels of {images.counts[part]} images. Fix: files of one set of images"
        )
    return labels


def _rows(name: str, images: Images, part: str, labels: np.ndarray) -> Rows:
    pixels = _content(name, images.parts[part].images, "images").reshape(len(labels), -1)
    for row, label in zip(pixels, labels):
        yield {"input_ids": row, "label": int(label)}


def _shape(name: str, path: Path, what: str) -> tuple[int, ...]:
    """The sizes of an IDX file's dimensions, none of them 0."""
    with _opened(name, path) as file:
        return _header(name, path, what, file)


def _content(name: str, path: Path, what: str) -> np.ndarray:
    with _opened(name, path) as file:
        shape = _header(name, path, what, file)
        expected = math.prod(shape)
        # one byte more tells a file that is too long; a header that promises too much asks for no memory
        content = file.read(expected + 1)
    if len(content) != expected:
        more = "more than " if len(content) > expected else ""
        raise ManticoreError(
            f"{name} {path}: {more}{min(len(content), expected):,} bytes behind its header (expected {expected:,}). "
            f"Fix: {_fix(name)}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


@contextmanager
def _opened(name: str, path: Path) -> Iterator[BinaryIO]:
    """An IDX file, decompressed where its name ends in .gz; what goes wrong with it ends in one line."""
    opener = gzip.open if path.suffix == ".gz" else open
    damaged = (OSError, EOFError, zlib.error, OverflowError, MemoryError)
    with told(f"{name} {path}", "cannot be read", _fix(name), *damaged), opener(path, "rb") as file:
        yield cast(BinaryIO, file)


def _header(name: str, path: Path, what: str, file: BinaryIO) -> tuple[int, ...]:
    dimensions = _DIMENSIONS[what]
    size = 4 + 4 * dimensions
    head = file.read(size)
    if len(head) < size or head[:4] != bytes((0, 0, _BYTES, dimensions)):
        raise ManticoreError(
            f"{name} {path}: begins with {head[:4].hex(' ') or 'nothing'} (expected 00 00 08 {dimensions:02}, {what} "
            f"of bytes as IDX has them). Fix: {_fix(name)}"
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if math.prod(shape) > _MOST:
        raise ManticoreError(
            f"{name} {path}: sizes {_told([shape])} (expected {_MOST:,} numbers at most). Fix: {_fix(name)}"
        )
    if 0 in shape:
        raise ManticoreError(f"{name} {path}: no {what} in it (sizes {_told([shape])}). Fix: {_fix(name)}")
    return shape
