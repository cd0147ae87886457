"""Spaces and methods of other packages, chosen by name: they are searched; what is none is named with its package."""

from __future__ import annotations

import pytest
from plug_ins import install, use
from tiny_designs import QUICK, written_text

import manticore
from manticore.errors import ManticoreError

SPACE = """
        from manticore.search.designs.layer_lists import LayerListSpace

        class Mine(LayerListSpace):
            def __init__(self, *, depth: int = 2):
                super().__init__(primitives=["attention", "swiglu"], layers=depth, width=8)
    """
METHOD = """
        def Mine(scores, seed, trials, *, first: int = 0):
            yield [(first,) * 2]
            assert (first,) * 2 in scores.found
            yield [(1 - first,) * 2]
    """
BROKEN_SPACES = {
    "makes a Mine without labels": """
        class Mine:
            key, values, size = {"kind": "mine"}, [[0, 1]], 2
            spelled = read = config = designs = problem = repaired = print
    """,
    "makes a NoneType without": """
        def Mine():
            pass
    """,
    "fails (ZeroDivisionError: division by zero)": """
        def Mine():
            return 1 / 0
    """,
}
BROKEN_METHODS = {
    "asks for (0, 5), which is no design (position 2 is 5": "yield [(0, 5)]",
    "asks for (0, 1, 0), which is no design (3 layers)": "yield [(0, 1, 0)]",
    "asks for 'AA', which is no design (expected a tuple": 'yield ["AA"]',
    "fails (ZeroDivisionError: division by zero)": "yield [(0, 1 / 0)]",
    "fails (TypeError: 'int' object is not iterable)": "return 3",
}


@pytest.fixture
def given(tmp_path):
    """Options of a study of a space and a method of other packages."""
    steps = {"steps": 1, "trials": 2, "method": "mine", "method_options": {}, "space": "mine", "space_options": {}}
    return {**QUICK, **steps, "text": str(written_text(tmp_path)), "cpu": True}


def plug_in(tmp_path, monkeypatch, space=SPACE, method=METHOD):
    site = tmp_path / "site"
    site.mkdir()
    install(site, "their_space", space, space__mine="their_space:Mine")
    install(site, "their_method", method, design__mine="their_method:Mine")
    use(site, monkeypatch)


def test_a_space_and_a_method_of_other_packages_are_searched(given, tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch)
    found = manticore.design(**{**given, "space_options": {"depth": 2}, "method_options": {"first": 1}})
    assert [trial.name for trial in found.trials] == ["MM", "AA"]


@pytest.mark.parametrize("said", BROKEN_SPACES)
def test_what_is_no_space_is_named_with_its_package(given, tmp_path, monkeypatch, said):
    plug_in(tmp_path, monkeypatch, space=BROKEN_SPACES[said])
    with pytest.raises(ManticoreError) as refused:
        manticore.design(**given)
    assert "space 'mine': the plug-in of package their-space" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("said", BROKEN_METHODS)
def test_what_asks_for_no_designs_is_named_with_its_package(given, tmp_path, monkeypatch, said):
    code = f"""
        def Mine(scores, seed, trials):
            {BROKEN_METHODS[said]}
    """
    plug_in(tmp_path, monkeypatch, method=code)
    with pytest.raises(ManticoreError) as refused:
        manticore.design(**given, out=tmp_path / "study")
    assert "design 'mine': the plug-in of package their-method" in str(refused.value)
    assert said in str(refused.value)
    assert not (tmp_path / "study").exists()


def test_what_is_no_space_in_memory_is_refused(given):
    with pytest.raises(ManticoreError, match="which has no key"):
        manticore.design(**{**given, "method": "random", "space": object()})
