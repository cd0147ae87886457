"""What libraries raise ends in one line of ours, in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from manticore.errors import ManticoreError, about, told


class Sizes(BaseModel):
    widths: dict[str, int]


@pytest.mark.parametrize(
    ("fails", "line"),
    [
        (lambda: json.loads("{"), "x: cannot be read (JSONDecodeError: Expecting property name enclosed in double"),
        (lambda: Path("/no/such/file").read_text(), "x: cannot be read (No such file or directory). Fix: mend it"),
        (lambda: {}["a"], "x: cannot be read (KeyError: 'a'). Fix: mend it"),
        (lambda: next(iter(())), "x: cannot be read (StopIteration). Fix: mend it"),
        (lambda: Sizes(widths={"a": "b"}), "x: cannot be read (widths.a is 'b'). Fix: mend it"),
        (lambda: Sizes.model_validate({}), "x: cannot be read (Field required widths). Fix: mend it"),
    ],
)
def test_the_librarys_reason_stands_in_one_line(fails, line):
    with pytest.raises(ManticoreError) as caught, told("x", "cannot be read", "mend it"):
        fails()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_what_is_not_named_and_what_is_ours_passes():
    with pytest.raises(KeyError), told("x", "cannot be read", "mend it", OSError):
        raise KeyError("a")
    with (
        pytest.raises(ManticoreError, match=r"^model: y: is wrong$"),
        about("model"),
        told("x", "cannot be", "mend it"),
    ):
        raise ManticoreError("y: is wrong")
    with pytest.raises(KeyboardInterrupt), told("x", "cannot be read", "mend it"):
        raise KeyboardInterrupt


def test_a_closed_file_is_not_taken_for_a_damaged_one():
    said = pytest.raises(ManticoreError, match=r"^f: may not be read \(permission denied\). Fix: ask its owner")
    with said, told("x", "is damaged", "download it again", OSError):
        raise PermissionError(13, "Permission denied", "f")
