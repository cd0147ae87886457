"""Motifs of designs: classes, pairs, triples, links and their distance."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manticore.experiments.motifs import LinkKind, Motifs, links_of, motifs, names_of

_WEIGHTS = ["sa-2", {}, {"weights_of": 0}]
_FEATURES = ["sa-3", {"heads": 2}, {"features_of": 1, "features": ["keys", "values"]}]


def test_the_example_of_star():
    """21211-31112-21221-32112: LIVs 1 and 3 share weights, LIV 4 takes keys and values of LIV 2."""
    layers = ["sa-2", "sa-3", _WEIGHTS, _FEATURES]
    first, second = links_of(layers)
    assert (first.kind, first.below, first.above, first.distance) == ("weights", 0, 2, 2)
    assert (second.kind, second.below, second.above, second.features) == ("features", 1, 3, ("keys", "values"))
    found = motifs([layers, ["sa-2", "sa-2", "sa-2"]])
    assert found.layers == {"sa-2": 5, "sa-3": 2}
    assert found.pairs == {("sa-2", "sa-3"): 2, ("sa-3", "sa-2"): 1, ("sa-2", "sa-2"): 2}
    assert found.triples[("sa-2", "sa-2", "sa-2")] == 1
    assert found.links == {LinkKind("weights", "sa-2"): 1, LinkKind("features", "sa-3", ("keys", "values")): 1}
    assert found.shared == {("weights",): 1, ("keys", "values"): 1}
    assert found.distances == {2: 2}
    assert found.mean_distance() == 2
    assert found.share_holding(("sa-2", "sa-2")) == 0.5
    assert found.share_of_layers("sa-2") == pytest.approx(5 / 7)


def test_links_between_classes_of_one_family_name_both_ends():
    found = motifs([["sa-1", ["sa-3", {}, {"features_of": 0, "features": ["keys", "values"]}]]])
    assert list(found.links) == [LinkKind("features", "sa-1 → sa-3", ("keys", "values"))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ABC"), min_size=1, max_size=9), max_size=8))
def test_counts_add_up(designs):
    found = motifs(designs)
    assert found.designs == len(designs)
    assert found.layers == Counter(name for layers in designs for name in layers)
    assert found.pairs.total() == sum(len(layers) - 1 for layers in designs)
    assert found.triples.total() == sum(max(0, len(layers) - 2) for layers in designs)
    assert all(0 < found.holding[motif] <= len(designs) for motif in (*found.pairs, *found.triples))
    assert found.mean_distance() is None


def test_lift_is_one_where_order_means_nothing_and_more_where_it_does():
    # every pair once: pairs are as frequent as the shares of their classes say
    even = Motifs(1, Counter("AABB"), Counter({("A", "A"): 1, ("A", "B"): 1, ("B", "A"): 1, ("B", "B"): 1}))
    assert even.lift(("A", "B")) == 1
    striped = motifs([list("ABABABAB")])
    assert striped.lift(("A", "B")) > 1.9
    assert striped.lift(("A", "A")) == 0
    assert striped.lift(("A", "C")) is None
    assert names_of(["a", ["b", {}], ("c", {}, {})]) == ("a", "b", "c")
