"""Image, Pathfinder and Path-X of the Long Range Arena: grey pixels row by row, value 0 to 255 = id; no padding.

Source: Tay et al. 2020, arXiv 2011.04006. Image is CIFAR-10 in grey. In Pathfinder a label of 1 means that the two
discs lie on the same dashed curve. Letters: N images, H and W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from manticore.errors import ManticoreError, told
from manticore.making import checked
from manticore.tasks.lra import pathfinder
from manticore.tasks.lra.pathfinder import Example, Level
from manticore.tasks.lra.records import label_of, refuse_missing
from manticore.writing import write_text

VOCABULARY = 256
SIDE = 32
"""Pixels per row of a CIFAR image."""
CIFAR_BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
LEVELS: dict[Level, str] = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
"""Folders of the release by difficulty; the benchmark's tables use the hard one."""
SPLIT_SEED = 42
"""Of the random split of Pathfinder, which the release leaves to its users."""

_GREY = np.array([2989, 5870, 1140])
"""Ten thousandths of red, green and blue."""
GREY_RULE = "floor(grey * 255.5 / 255)"
"""How a grey value becomes an id; part of what cached images are known by."""
RECORD_BYTES = 1 + 3 * SIDE * SIDE
"""A label and an image in CIFAR-10's binary files."""

_AGAIN = "unpack the release again"
_CIFAR = "give the folder cifar-10-batches-bin, the binary version of CIFAR-10"
_NOT_THE_HUB = "pass data_dir, the folder cifar-10-batches-bin"

Row = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """One line of Pathfinder's metadata."""

    path: Path
    label: int


def grey(pixels: np.ndarray) -> np.ndarray:
    """Luminance of ``pixels`` [..., 3] from 0 to 255, by :data:`GREY_RULE`; uint8 [...].

    In whole numbers. The benchmark's code computes the same in float32, which gives another level for 237 of the
    256^3 colours, where the value is all but a whole number.
    """
    return (pixels.astype(np.int64) @ _GREY * 511 // (510 * 10_000)).astype(np.uint8)


def cifar_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Rows with ``input_ids`` and ``label`` of CIFAR-10's binary version.

    Raises:
        ManticoreError: a file of another format, or a label above 9.
    """
    for path in paths:
        content = np.fromfile(path, np.uint8)
        if content.size == 0 or content.size % RECORD_BYTES:
            raise ManticoreError(f"lra/image {path}: {content.size} bytes (expected n x {RECORD_BYTES}). Fix: {_CIFAR}")
        for index, record in enumerate(content.reshape(-1, RECORD_BYTES)):
            label = label_of(int(record[0]), 10, f"lra/image {path}, image {index}", _CIFAR)
            # a record holds all red values, then green, then blue
            yield {"input_ids": grey(record[1:].reshape(3, -1).T), "label": label}


def hub_image_rows(rows: Iterable[Row], where: str) -> Iterator[Row]:
    """Rows with ``input_ids`` and ``label`` of a data set with the columns ``img`` and ``label``.

    Raises:
        ManticoreError: a column is missing, an image of another size, or a label above 9.
    """
    for index, row in enumerate(rows):
        refuse_missing(("img", "label"), row, where, _NOT_THE_HUB)
        label = label_of(row["label"], 10, f"{where}, row {index}", _NOT_THE_HUB)
        pixels = np.asarray(row["img"].convert("RGB"))
        if pixels.shape[:2] != (SIDE, SIDE):
            raise ManticoreError(
                f"{where}, row {index}: an image of {pixels.shape[1]} x {pixels.shape[0]} pixels "
                f"(expected {SIDE} x {SIDE}). Fix: {_NOT_THE_HUB}"
            )
        yield {"input_ids": grey(pixels).reshape(-1), "label": label}


def pathfinder_metadata(folder: Path) -> list[Path]:
    """The metadata files of one level in the order of their numbers.

    Raises:
        ManticoreError: there are none.
    """
    paths = [path for path in (folder / "metadata").glob("*.npy") if path.stem.isdigit()]
    if not paths:
        raise ManticoreError(f"lra/pathfinder {folder}: no metadata/<number>.npy. Fix: unpack the release whole")
    return sorted(paths, key=lambda path: int(path.stem))


def pathfinder_pictures(folder: Path) -> list[Picture]:
    """All images of one level, in the order of the metadata; empty files, of which the release has one, left out.

    Raises:
        ManticoreError: no metadata, a line without its columns, a label that is not 0 or 1, a missing image, or one
            that lies elsewhere.
    """
    pictures = []
    inside = _Inside(folder)
    for metadata in pathfinder_metadata(folder):
        for number, fields in enumerate(_metadata_lines(metadata), start=1):
            where = f"lra/pathfinder {metadata}, line {number}"
            if len(fields) < 4:
                raise ManticoreError(
                    f"{where}: too few columns (got {len(fields)}, expected 11: folder, file, index, label, seven "
                    f"settings). Fix: {_AGAIN}"
                )
            label = label_of(fields[3], 2, where, _AGAIN)
            path = folder / fields[0] / fields[1]
            if not inside(path):
                raise ManticoreError(
                    f"{where}: leads out of {folder} (got {fields[0]!r} and {fields[1]!r}). "
                    "Fix: give the release with its images below that folder"
                )
            if not path.is_file():
                raise ManticoreError(f"{where}: no image {path}. Fix: unpack the release whole")
            if path.stat().st_size:
                pictures.append(Picture(path, label))
    return pictures


class _Inside:
    """Whether an image lies in a folder, links followed; each of its folders is looked up once."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._real: dict[Path, Path] = {}

    def __call__(self, path: Path) -> bool:
        if path.parent not in self._real:
            self._real[path.parent] = path.parent.resolve()
        real = path.resolve() if path.is_symlink() else self._real[path.parent] / path.name
        return ".." not in path.name and real.is_relative_to(self._root)


def pathfinder_splits(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """A random split: a tenth each for ``validation`` and ``test``, the rest for ``train``."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    tenth = len(pictures) // 10
    first, second = len(pictures) - 2 * tenth, len(pictures) - tenth
    cuts = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    return {split: [pictures[index] for index in indices] for split, indices in cuts.items()}


def picture_rows(pictures: Iterable[Picture], side: int) -> Iterator[Row]:
    """Rows with ``input_ids`` and ``label`` of grey images of ``side`` x ``side`` pixels.

    Raises:
        ManticoreError: a file that is not an image, or one of another size or kind.
    """
    for picture in pictures:
        where = f"lra/pathfinder {picture.path}"
        # PIL's error for a file of no known kind is an OSError
        with told(where, "cannot be read as an image", _AGAIN, OSError), Image.open(picture.path) as image:
            if image.mode != "L" or image.size != (side, side):
                raise ManticoreError(
                    f"{where}: an image of {image.size[0]} x {image.size[1]} pixels, mode {image.mode} "
                    f"(expected {side} x {side}, mode L). Fix: give the release's folder pathfinder{side}"
                )
            pixels = np.asarray(image).reshape(-1)
        yield {"input_ids": pixels, "label": picture.label}


@checked("lra/pathfinder")
def write_pathfinder(
    root: str | Path, examples: Iterable[Example], level: Level = "hard", *, batch: int = 1000
) -> Path:
    """Writes images as the release has them, and returns the level's folder below ``root``.

    A batch gets its metadata when all of its images are there: what was stopped halfway lacks its last batch only.

    Raises:
        ManticoreError: an unknown level, or the folder has images already.
    """
    folder = Path(root) / LEVELS[level]
    if (folder / "metadata").exists():
        raise ManticoreError(f"lra/pathfinder {folder}: has images already. Fix: write to another folder")
    (folder / "metadata").mkdir(parents=True)
    remaining = iter(examples)
    for number in itertools.count():
        images = list(itertools.islice(remaining, batch))
        if not images:
            break
        (folder / f"imgs/{number}").mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image.pixels).save(folder / f"imgs/{number}/sample_{index}.png")
        lines = [
            f"imgs/{number} sample_{index}.png {index} {_fields(image, level)}" for index, image in enumerate(images)
        ]
        write_text(folder / f"metadata/{number}.npy", "".join(f"{line}\n" for line in lines))
    return folder


def _fields(image: Example, level: Level) -> str:
    settings, segments = pathfinder.SETTINGS[len(image.pixels)], pathfinder.LEVELS[level]
    return (
        f"{image.label} {settings.continuity} {segments} {segments // 3} {settings.length} {settings.thickness} "
        f"{image.margin} 1"
    )


def _metadata_lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line: the release has plain text under the name .npy, its generator writes real arrays."""
    content = path.read_bytes()
    if not content.startswith(b"\x93NUMPY"):
        yield from (line.split() for line in content.decode("utf-8", errors="replace").splitlines() if line.strip())
        return
    with told(f"lra/pathfinder {path}", "cannot be read as metadata", _AGAIN, ValueError, EOFError):
        array = np.load(path, allow_pickle=False)
    if array.ndim != 2:
        raise ManticoreError(f"lra/pathfinder {path}: shape {array.shape} (expected images x 11). Fix: {_AGAIN}")
    for row in array:
        yield [item.decode() if isinstance(item, bytes) else str(item) for item in row]
