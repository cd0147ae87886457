"""The baselines of architecture search: distinct random designs, and all of them."""

from __future__ import annotations

import pytest
from made_up_designs import attention_and_swiglu, flat, searched

from manticore.errors import ManticoreError
from manticore.search.designs.space import Design


def first_layers(design: Design) -> dict[str, float]:
    """A loss that falls with every swiglu."""
    return {"loss": -float(sum(design))}


def test_random_designs_are_distinct_and_depend_on_the_seed_alone() -> None:
    space = attention_and_swiglu(4)
    scores, batches = searched("random", space, first_layers, 16)
    assert len(batches) == 1
    assert set(batches[0]) == set(space.designs())
    assert scores.best() == (1, 1, 1, 1)
    few = [flat(searched("random", space, first_layers, 7, seed=seed)[1]) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert len(set(few[0])) == 7


def test_batches_change_nothing_that_is_drawn() -> None:
    space = attention_and_swiglu(4)
    batches = searched("random", space, first_layers, 7, batch=3)[1]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert flat(batches) == flat(searched("random", space, first_layers, 7)[1])


def test_a_space_too_large_to_list_is_drawn_from() -> None:
    batches = searched("random", attention_and_swiglu(40), first_layers, 300)[1]
    assert len(set(flat(batches))) == 300


def test_exhaustive_asks_for_every_design_once() -> None:
    space = attention_and_swiglu(4)
    assert flat(searched("exhaustive", space, first_layers, 16)[1]) == list(space.designs())
    with pytest.raises(ManticoreError, match=r"15 trials for a space of 16 designs. Fix: trials=16, or method random"):
        searched("exhaustive", space, first_layers, 15)


def test_more_trials_than_designs_are_refused() -> None:
    with pytest.raises(ManticoreError, match=r"17 trials, but the space has 16 designs"):
        searched("random", attention_and_swiglu(4), first_layers, 17)


def test_parts_of_lists_are_never_the_best() -> None:
    scores, _ = searched("random", attention_and_swiglu(4, grown_by=2), first_layers, 3)
    scores.found[1, 1] = {"loss": -100.0}
    assert scores.best() in scores.found
    assert len(scores.best() or ()) == 4
