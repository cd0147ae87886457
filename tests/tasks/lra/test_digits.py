import sys

import numpy as np
import pytest

from manticore.errors import ManticoreError
from manticore.tasks.lra import digits

PINNED = [2, 4, 8, 3, 4, 3, 4, 5]
"""Labels of the first test images."""


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn", reason="the images are scikit-learn's, an optional dependency")
    return digits.load()


def test_every_image_is_in_one_split_and_classes_are_balanced(data):
    from sklearn.datasets import load_digits

    assert {split: len(rows) for split, rows in data.items()} == dict(
        zip(("train", "validation", "test"), digits.COUNTS)
    )
    rows = sorted((*row["input_ids"], row["label"]) for split in data for row in data[split])
    source = load_digits()
    assert rows == sorted(tuple(map(int, (*image, label))) for image, label in zip(source.data, source.target))
    for split in ("validation", "test"):
        assert np.bincount(data[split]["label"]).tolist() == [25] * digits.CLASSES
    assert np.bincount(data["train"]["label"]).min() == 174 - 50


def test_ids_are_the_pixels_in_order_and_rows_are_not_sorted(data):
    ids = np.array(data["train"]["input_ids"])
    assert ids.shape == (digits.COUNTS[0], digits.LENGTH)
    assert (ids.min(), ids.max()) == (0, digits.VOCABULARY - 1)
    # row by row: the outer columns of an image are nearly empty, its outer rows are not
    images = ids.reshape(-1, 8, 8)
    assert images[:, :, [0, 7]].mean() < 1 < images[:, [0, 7], :].mean()
    assert len(set(data["train"]["label"][:20])) > 5


def test_the_split_never_changes(data):
    again = digits.load()
    assert all(again[split][:] == data[split][:] for split in data)
    assert data["test"]["label"][:8] == PINNED


def test_without_scikit_learn_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ManticoreError, match=r"pip install 'manticore-hybrids\[digits\]'") as caught:
        digits.load()
    assert "\n" not in str(caught.value)
