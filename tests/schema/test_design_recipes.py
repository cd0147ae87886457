"""Recipes of architecture search: what is wrong with the layers of a space is said by ``check``, with its line."""

from __future__ import annotations

import pytest

from manticore.schema.loading import load_design
from manticore.schema.problems import RecipeError

RECIPE = """\
name: mine
design:
  space_options:
    primitives:
      A: [mh-attention, {num_haeds: 2}]
      M: swigul
      B: 3
    layers: 3
"""


def said(folder, text, overrides=None):
    file = folder / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_design(str(file), overrides)
    return str(refused.value)


def test_layers_that_are_none_are_said_at_once_with_their_lines(tmp_path):
    lines = said(tmp_path, RECIPE).splitlines()
    assert [line.split(": ")[0].rpartition("mine.yaml:")[2] for line in lines] == ["6", "7"]
    assert "primitives.M: unknown layer 'swigul'. Did you mean 'swiglu'?" in lines[0]
    assert "primitives.B: 3 is no primitive" in lines[1]


def test_options_of_a_layer_are_checked(tmp_path):
    found = said(tmp_path, RECIPE.replace("swigul", "swiglu").replace("B: 3", "S: mamba"))
    assert (
        "mine.yaml:5: design.space_options.primitives.A[1].num_haeds: unknown option of layer 'mh-attention'" in found
    )
    assert "Did you mean 'num_heads'?" in found


def test_a_share_outside_of_its_range_is_told_the_range(tmp_path):
    text = "name: mine\ndesign: {space_options: {primitives: [mlp, mamba], layers: 3}}\n"
    found = said(tmp_path, text, ["design.method_options.mutation=2"])
    assert "(got 2, expected above 0, below 1). Fix: for instance 0.1" in found
