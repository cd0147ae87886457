"""Paths and mixture weights that were found on one task, set on another hybrid of the same parents."""

import json

import pytest
import torch
from tiny_search import make_hybrid, recall, tiny_gpt, tiny_mamba

import manticore
from manticore.errors import ManticoreError
from manticore.hybrid.found import found_by

QUICK = {"method": "darts", "batch_size": 8, "mixture_lr": 0.1, "cpu": True}


def searched(folder, weights, path, **options):
    """A folder as the verb leaves one whose search learned weights."""
    hybrid = make_hybrid(**options)
    hybrid.save_pretrained(folder)
    (folder / "search.json").write_text(json.dumps({"path": path, "weights": weights}))
    return folder


def test_a_search_goes_on_from_the_weights_that_another_one_found(tmp_path):
    first = manticore.search(make_hybrid(), recall(), steps=3, **QUICK)
    assert not torch.equal(first.weights, torch.full((2, 2), 0.5))
    folder = searched(tmp_path / "a", first.weights.tolist(), first.path)
    nearly_still = {**QUICK, "mixture_lr": 1e-7, "steps": 1}
    for source in (first, folder, str(folder)):
        again = manticore.search(make_hybrid(seed=1), recall(), weights_from=source, **nearly_still)
        torch.testing.assert_close(again.weights, first.weights, atol=1e-4, rtol=0)


def test_a_path_found_elsewhere_is_a_vertex_to_start_from_and_a_path_to_discretize_to(tmp_path):
    supernet = make_hybrid(seed=1)
    manticore.discretize(make_hybrid(), [1, 0]).save_pretrained(tmp_path / "tuned")
    learned = searched(tmp_path / "learned", [[0.4, 0.6], [0.9, 0.1]], [1, 0])
    for source in (tmp_path / "tuned", learned):
        small = manticore.discretize(supernet, weights_from=source)
        assert small.config.path == [1, 0]
        ids = recall().data["test"]["input_ids"][:2]
        torch.testing.assert_close(
            small(ids).logits, manticore.discretize(supernet, [1, 0])(ids).logits, atol=0, rtol=0
        )
    options = {**QUICK, "mixture_lr": 1e-7, "steps": 1, "start_floor": 0.05}
    low, high = 0.05 / 1.05, 1 / 1.05
    found = manticore.search(supernet, recall(), weights_from=tmp_path / "tuned", **options)
    torch.testing.assert_close(found.weights, torch.tensor([[low, high], [high, low]]), atol=1e-4, rtol=0)


def test_what_a_run_has_found_is_read_from_its_folder(tmp_path):
    searched(tmp_path / "run" / "search" / "model", [[0.0, 1.0], [0.0, 1.0]], [1, 1])
    (tmp_path / "run" / "search" / "model" / "search.json").unlink()
    record = {"search": {"path": [0, 1], "weights": [[1.0, 0.0], [0.2, 0.8]]}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(record))
    found = found_by(tmp_path / "run", "search")
    assert found.path == [0, 1]
    torch.testing.assert_close(found.weights, torch.tensor([[1.0, 0.0], [0.2, 0.8]]))


def test_other_parents_other_blocks_and_another_order_are_refused(tmp_path):
    weights = [[0.4, 0.6], [0.9, 0.1]]
    folder = searched(tmp_path / "a", weights, [1, 0])
    swapped = manticore.combine([tiny_mamba(0), tiny_gpt(0, 0.0)], num_blocks=2, check=False)
    with pytest.raises(ManticoreError, match=r"is of gpt_neo .*, mamba .*; this hybrid is of mamba .*same order"):
        manticore.discretize(swapped, weights_from=folder)
    with pytest.raises(ManticoreError, match=r"search: weights_from: .*same order"):
        manticore.search(swapped, recall(), weights_from=folder, steps=1, **QUICK)
    with pytest.raises(ManticoreError, match=r"has 2 blocks, this hybrid 1 block\. Fix: num_blocks=2"):
        manticore.discretize(make_hybrid(num_blocks=1), weights_from=folder)


def test_learned_weights_of_routed_mixing_are_no_summary(tmp_path):
    folder = searched(tmp_path / "a", [[0.4, 0.6], [0.9, 0.1]], [1, 0], mixing="routed")
    assert manticore.discretize(make_hybrid("routed"), weights_from=folder).config.path == [1, 0]
    with pytest.raises(ManticoreError, match=r"routed mixing.*adopt_mixture"):
        manticore.search(make_hybrid("routed"), recall(), weights_from=folder, steps=1, **QUICK)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"path": [1, 0], "weights": [[0.4, 0.6]]}, r"shape \[1, 2\]"),
        ({"path": [1, 0], "weights": [[0.4, 0.9], [1, 0]]}, "row 0 sums to"),
        ({"path": [1, 0], "weights": [[0.4, float("nan")], [1, 0]]}, "NaN"),
        ({"path": [1, 0]}, "expected numbers"),
        ({"path": [1, 2], "weights": [[0, 1], [1, 0]]}, r"path \[1, 2\]"),
        ({"path": "no", "weights": [[0, 1], [1, 0]]}, "path"),
        ({"weights": [[0.4, 0.6], [0.9, 0.1]]}, "path"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, record, told):
    folder = searched(tmp_path / "a", None, None)
    (folder / "search.json").write_text(json.dumps(record))
    with pytest.raises(ManticoreError, match=rf"^discretize: weights_from: \S*/a: .*{told}"):
        manticore.discretize(make_hybrid(), weights_from=folder)


def test_nothing_found_and_two_answers_are_refused(tmp_path):
    make_hybrid().save_pretrained(tmp_path / "supernet")
    for place in ("supernet", "nowhere"):
        with pytest.raises(ManticoreError, match=r"holds nothing that a search has found\. Fix: "):
            manticore.discretize(make_hybrid(), weights_from=tmp_path / place)
    with pytest.raises(ManticoreError, match="weights_from is a int"):
        manticore.discretize(make_hybrid(), weights_from=3)
    with pytest.raises(ManticoreError, match="path and weights_from are both given"):
        manticore.discretize(make_hybrid(), [0, 1], weights_from=tmp_path)
    for start in ("current", [0, 1]):
        with pytest.raises(ManticoreError, match="start and weights_from are both given"):
            manticore.search(make_hybrid(), recall(), start=start, weights_from=str(tmp_path), steps=1, **QUICK)
    with pytest.raises(ManticoreError, match="method 'auto' has no weights_from"):
        manticore.search(make_hybrid(), recall(), weights_from=str(tmp_path))
