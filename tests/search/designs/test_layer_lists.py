"""Spaces of layer lists: what they hold, how designs are spelled and read, and the stacks that they become."""

from __future__ import annotations

import random

import pytest
import torch
from made_up_designs import attention_and_swiglu

from manticore.errors import ManticoreError
from manticore.search.designs.layer_lists import LayerListSpace, lettered
from manticore.stacks.modeling import StackForCausalLM


def test_every_design_is_spelled_read_and_built() -> None:
    space = attention_and_swiglu(3)
    designs = list(space.designs())
    assert len(designs) == space.size == 8
    assert [space.read(space.spelled(design)) for design in designs] == designs
    assert [space.spelled(design) for design in designs[:3]] == ["AAA", "AAM", "AMA"]
    config = space.config(space.read("AMM"), vocab_size=11, positions=8)
    assert config.layer_names == ["mh-attention", "swiglu", "swiglu"]
    assert (config.hidden_size, config.vocab_size, config.max_position_embeddings) == (32, 11, 8)
    logits = StackForCausalLM(config)(torch.zeros(1, 5, dtype=torch.long)).logits
    assert logits.shape == (1, 5, 11)


def test_letters_are_composers_where_nothing_else_has_them() -> None:
    assert lettered(["mh-attention", "swiglu", "mamba"]) == ["A", "M", "S"]
    assert lettered(["mamba", "swiglu", "attention"]) == ["S", "M", "A"]
    # two that share their usual letter: the first free one of the name
    assert lettered(["swiglu", "mlp", "mh-attention", "attention"]) == ["M", "L", "A", "T"]
    assert LayerListSpace(primitives={"X": "mamba", "A": "swiglu"}, layers=2).spelled((0, 1)) == "XA"


def test_runs_are_read_as_composer_writes_them() -> None:
    space = attention_and_swiglu(6)
    assert space.read("2A4M") == space.read("AAMMMM")
    assert space.read("A1M2A2M") == space.read("AMAAMM")


def test_a_space_is_made_again_from_its_key() -> None:
    space = attention_and_swiglu(6, grown_by=2)
    key = dict(space.key)
    assert key.pop("kind") == "layers"
    assert LayerListSpace(**key).key == space.key


def test_many_primitives_are_numbered() -> None:
    space = LayerListSpace(primitives=[["mamba", {"state_size": n}] for n in range(1, 28)], layers=3)
    assert space.spelled((26, 0, 3)) == "26-0-3"
    assert space.read("26-0-3") == (26, 0, 3)
    assert LayerListSpace(**{k: v for k, v in space.key.items() if k != "kind"}).read("26-0-3") == (26, 0, 3)
    with pytest.raises(ManticoreError, match=r"position 2 is '27'"):
        space.read("0-27-1")


def test_width_is_kept_in_proportion_to_depth() -> None:
    space = attention_and_swiglu(12, grown_by=3)
    # of 8 and 16 and 24: heads of 4 and rotations need multiples of 8
    assert [space.width_of(layers) for layers in (3, 6, 9, 12)] == [8, 16, 24, 32]
    assert space.config(space.read("AMA"), vocab_size=5, positions=8).hidden_size == 8


def test_parts_are_designs_where_a_space_grows_and_only_there() -> None:
    growing, whole = attention_and_swiglu(6, grown_by=2), attention_and_swiglu(6)
    assert growing.spelled(growing.read("AMAM")) == "AMAM"
    with pytest.raises(ManticoreError, match=r"'AMA': 3 layers \(expected 2 or 4 or 6\)"):
        growing.read("AMA")
    for text in ("AMAM", "AMAMAMA", ""):
        with pytest.raises(ManticoreError, match=r"layers \(expected 6\)"):
            whole.read(text)


def test_repair_leaves_what_is_legal_and_mends_the_rest() -> None:
    space, draws = attention_and_swiglu(4), random.Random(0)
    assert all(space.repaired(design, draws) == design for design in space.designs())
    for broken in ((0, 1), (0, 1, 0, 1, 1, 1), (0, 7, -1, 1), ()):
        mended = space.repaired(broken, draws)
        assert len(mended) == 4
        assert set(mended) <= {0, 1}
        assert all(new == old for new, old in zip(mended, broken) if old in (0, 1))


@pytest.mark.parametrize(
    ("primitives", "options", "said"),
    [
        (["mh-attention", "swigul"], {}, r"unknown layer 'swigul'. Did you mean 'swiglu'\?"),
        (["mh-attention", ["swiglu", {"inner": 3}]], {}, "unknown option 'inner'"),
        (["mh-attention", ["swiglu", 3]], {}, "is no primitive"),
        ([3], {}, "primitives.0: 3 is no primitive"),
        ([[]], {}, "is no primitive"),
        ({"A": None}, {}, "primitives.A: None is no primitive"),
        # nothing that was written is dropped
        ([["swiglu", {}, {"weights_of": 0}]], {}, "is no primitive"),
        (["swiglu", "swiglu"], {}, "'swiglu' is given twice"),
        ([], {}, "are no primitives"),
        ("swiglu", {}, "'swiglu' are no primitives"),
        (["swiglu"], {"layers": 0}, r"layers is 0 \(expected a whole number\). Fix: give 1 to 10,000"),
        (["swiglu"], {"layers": 2.5}, "layers is 2.5"),
        (["swiglu"], {"width": 0}, "width is 0"),
        (["mh-attention"], {"width": 40}, "16 heads do not divide width 40"),
        (["swiglu"], {"grown_by": 4}, r"grown_by is 4 \(expected a divisor of the 6 layers\). Fix: grown_by=3"),
        (["swiglu"], {"grown_by": 0}, "grown_by is 0"),
        ({"AB": "swiglu"}, {}, r"'AB' is no letter for 'swiglu' \(expected one of A to Z\). Fix: for instance 'M'"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line(primitives, options, said) -> None:
    with pytest.raises(ManticoreError, match=said) as refused:
        LayerListSpace(primitives=primitives, **{"layers": 6, "width": 32, **options})
    assert "\n" not in str(refused.value)


def test_an_unknown_letter_is_named_with_its_position() -> None:
    with pytest.raises(ManticoreError, match=r"position 3 is 'X' \(expected one of A mh-attention, M swiglu\)"):
        attention_and_swiglu().read("AAXMMM")
