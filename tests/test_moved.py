"""Old import paths go on working, with a notice."""

from __future__ import annotations

import importlib
import sys

import pytest

from manticore._moved import MOVED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *MOVED.items(),
        ("manticore.tasks.mad", "manticore.tasks.mad.examples"),
        ("manticore.tasks.lra", "manticore.tasks.lra.examples"),
    ],
)
def test_names_of_an_old_path_are_those_of_the_new_one(old, new):
    now = importlib.import_module(new)
    own = [name for name, value in vars(now).items() if getattr(value, "__module__", None) == new]
    names = own or [name for name in vars(now) if name.isupper()]
    assert names
    before = importlib.import_module(old)
    for name in names:
        with pytest.warns(FutureWarning, match=f"{old} has moved to {new}"):
            assert getattr(before, name) is getattr(now, name)


def test_a_path_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("manticore.training.nothing_of_the_kind")
    assert "manticore.training.nothing_of_the_kind" not in sys.modules
