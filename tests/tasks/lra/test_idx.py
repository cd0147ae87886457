"""Images in MNIST's files: plain and compressed, splits, classes, damaged and hostile files, other layouts."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from manticore.errors import ManticoreError
from manticore.registry import entries
from manticore.schema.sections import TaskChoice
from manticore.tasks.lra import idx
from manticore.tasks.shape import task_shape
from manticore.tasks.task import load_task

TRAIN, TEST = 30, 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))


def packed(array: np.ndarray) -> bytes:
    """The bytes of an IDX file."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, *, side: int = 28, classes: int = 10, compress: bool = True, prefix: str = "") -> dict:
    """Four files of random images; returns the arrays by part."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        arrays[part] = (images, labels)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}{part}-{what}-ubyte"
            if compress:
                Path(f"{path}.gz").write_bytes(gzip.compress(packed(array)))
            else:
                path.write_bytes(packed(array))
    return arrays


@pytest.mark.parametrize("compress", [True, False])
def test_pixels_labels_and_splits_are_those_of_the_files(tmp_path: Path, compress: bool) -> None:
    arrays = write(tmp_path / "files", compress=compress)
    task = load_task("fashion-mnist", data_dir=str(tmp_path / "files"))
    assert (task.name, task.length, task.vocab_size, task.num_classes) == ("fashion-mnist", 784, 256, 10)
    # a black pixel is a value as any other
    assert (task.pad_token_id, task.primary_metric, task.chance) == (None, "accuracy", 0.1)
    images, labels = arrays["train"]
    expected = {"train": (images[:27], labels[:27]), "validation": (images[27:], labels[27:]), "test": arrays["t10k"]}
    for split, (pixels, classes) in expected.items():
        assert np.array_equal(task.data[split]["input_ids"], pixels.reshape(len(pixels), -1))
        assert task.data[split]["label"] == classes.tolist()


def test_what_debian_packs_is_found_where_it_is_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "usr/share/datasets/fashion-mnist")
    task = load_task("fashion-mnist", data_dir=str(tmp_path), num_train=5, num_validation=2, num_test=3)
    assert [len(rows) for rows in task.data.values()] == [5, 2, 3]


def test_what_debian_has_installed_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "installed")
    monkeypatch.setattr(idx, "_INSTALLED", tmp_path / "installed")
    assert len(load_task("fashion-mnist").data["test"]) == TEST
    with pytest.raises(ManticoreError, match=r"idx-images: needs files. Fix: pass as data_dir the folder of train-im"):
        load_task("idx-images")


@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
def test_other_sets_in_this_format_have_the_size_and_classes_of_their_files(tmp_path: Path, prefix: str) -> None:
    arrays = write(tmp_path / "letters", side=5, classes=13, compress=False, prefix=prefix)
    task = load_task("idx-images", data_dir=str(tmp_path / "letters"))
    assert (task.name, task.length, task.num_classes) == ("idx-images (letters)", 25, 13)
    assert task.data["test"]["label"] == arrays["t10k"][1].tolist()
    shape = task_shape(TaskChoice(name="idx-images", options={"data_dir": str(tmp_path / "letters"), "num_test": 4}))
    assert (shape.length, shape.vocab_size, shape.validation_examples, shape.test_examples) == (25, 256, 3, 4)
    with pytest.raises(ManticoreError, match=r"images of 5 x 5 pixels \(expected 28 x 28\). Fix: task idx-images"):
        load_task("fashion-mnist", data_dir=str(tmp_path / "letters"))


def test_names_with_a_dot_and_a_set_called_test(tmp_path: Path) -> None:
    write(tmp_path, side=4, compress=False)
    for path in list(tmp_path.glob("*-ubyte")):
        path.rename(tmp_path / path.name.replace("t10k", "test").replace("-idx", ".idx"))
    assert len(load_task("idx-images", data_dir=str(tmp_path)).data["test"]) == TEST


def test_a_file_beside_its_compressed_self_is_one_set_and_two_sets_are_refused(tmp_path: Path) -> None:
    write(tmp_path, compress=True)
    write(tmp_path, compress=False)
    assert len(load_task("idx-images", data_dir=str(tmp_path)).data["test"]) == TEST
    write(tmp_path, prefix="other-")
    with pytest.raises(ManticoreError, match=r"are both test images|are both train images"):
        load_task("idx-images", data_dir=str(tmp_path))


def test_images_that_have_changed_are_read_again(tmp_path: Path) -> None:
    write(tmp_path, side=4, compress=False)
    before = load_task("idx-images", data_dir=str(tmp_path)).data["test"]["input_ids"]
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    after = load_task("idx-images", data_dir=str(tmp_path)).data["test"]["input_ids"]
    assert before != after
    assert before[:-1] == after[:-1]


def test_a_plan_of_fashion_mnist_needs_no_files() -> None:
    shape = task_shape(TaskChoice(name="fashion-mnist"))
    assert (shape.length, shape.validation_examples, shape.test_examples, shape.classes) == (784, 6000, 10_000, True)
    assert all("not LRA" in entries("task")[name].summary for name in ("fashion-mnist", "idx-images"))


def refused(folder: Path, name: str = "idx-images") -> str:
    with pytest.raises(ManticoreError) as caught:
        load_task(name, data_dir=str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_of_another_layout_say_which_package_to_get(tmp_path: Path) -> None:
    get = "apt-get download dataset-fashion-mnist, dpkg-deb -x"
    said = refused(tmp_path, "fashion-mnist")
    assert "has no train-images-idx3-ubyte, nor train-images-idx3-ubyte.gz" in said
    assert get in said
    assert get in refused(tmp_path / "none", "fashion-mnist")
    write(tmp_path, classes=7)
    assert "7 classes (expected 10)" in refused(tmp_path, "fashion-mnist")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "has no t10k-labels-idx1-ubyte, nor" in refused(tmp_path)


LABELS, IMAGES = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (LABELS, b"", "begins with nothing (expected 00 00 08 01, labels"),
        (LABELS, b"PK\3\4 and more than a header", "begins with 50 4b 03 04 (expected"),
        (IMAGES, packed(np.zeros(20, np.uint8)), "begins with 00 00 08 01 (expected 00 00 08 03, images"),
        (LABELS, packed(np.zeros(19, np.uint8)), "19 labels of 20 images"),
        (LABELS, packed(np.zeros(0, np.uint8)), "no labels in it"),
        (LABELS, packed(np.zeros(20, np.uint8))[:-1], "19 bytes behind its header (expected 20)"),
        (LABELS, packed(np.zeros(20, np.uint8)) + b"x", "more than 20 bytes behind its header"),
        (IMAGES, packed(np.zeros((20, 5, 4), np.uint8)), "images of several sizes, 4 x 4 and 5 x 4 pixels"),
        (IMAGES, b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 4), "numbers at most"),
        (IMAGES, packed(np.zeros((20, 4, 4), np.uint8))[:16], "0 bytes behind its header (expected 320)"),
        (f"{LABELS}.gz", b"no gzip file", "cannot be read"),
        (f"{LABELS}.gz", gzip.compress(packed(np.zeros(20, np.uint8)), mtime=0)[:-9], "cannot be read"),
    ],
)
def test_damaged_and_hostile_files_are_refused_by_name(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    write(tmp_path, side=4, compress=False)
    (tmp_path / file.removesuffix(".gz")).unlink()
    (tmp_path / file).write_bytes(content)
    said = refused(tmp_path)
    assert words in said
    assert f"{tmp_path}" in said


def test_images_larger_than_any_task_has(tmp_path: Path) -> None:
    write(tmp_path, side=129, compress=False)
    assert "images of 129 x 129 pixels (expected 1 to 16,384 of them)" in refused(tmp_path)
