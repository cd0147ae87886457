"""Motifs: what designs have in common. Classes of layers, pairs and triples of neighbours, links and their distance.

A link is what one layer takes from a lower one: all its weights, or feature groups that the lower one has computed. Its
distance is the number of positions between them. Layers are entries of :class:`~manticore.StackConfig`: a name, a name
with options, or these with what is shared. L layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, TypeAlias

Run: TypeAlias = tuple[str, ...]
"""Names of neighbouring layers, the lowest first."""


@dataclass(frozen=True)
class Link:
    """What a layer takes from a lower one."""

    above: int
    """The position of the layer that takes, from 0."""
    below: int
    """Of the one that it takes from."""
    kind: str
    """``"weights"`` or ``"features"``."""
    features: tuple[str, ...] = ()
    """The feature groups, of a link of features."""

    @property
    def distance(self) -> int:
        return self.above - self.below


@dataclass(frozen=True)
class LinkKind:
    """Links that are counted together."""

    kind: str
    layer: str
    """The class of both ends, or ``"x → y"`` where these differ, the lower one first."""
    features: tuple[str, ...] = ()


@dataclass
class Motifs:
    """Counts over a set of designs; each motif counts as often as it occurs, also several times in one design."""

    designs: int = 0
    layers: Counter[str] = field(default_factory=Counter)
    pairs: Counter[Run] = field(default_factory=Counter)
    triples: Counter[Run] = field(default_factory=Counter)
    links: Counter[LinkKind] = field(default_factory=Counter)
    shared: Counter[Run] = field(default_factory=Counter)
    """What is shared, of any class: ``("weights",)`` or the feature groups → number of links."""
    distances: Counter[int] = field(default_factory=Counter)
    """Distance → number of links."""
    holding: Counter[Run | LinkKind] = field(default_factory=Counter)
    """Pair, triple or kind of link → designs in which it occurs."""

    def share_of_layers(self, name: str) -> float:
        """Of all layers, those of a class."""
        return self.layers[name] / max(1, self.layers.total())

    def share_holding(self, motif: Run | LinkKind) -> float:
        """Of all designs, those in which a motif occurs."""
        return self.holding[motif] / max(1, self.designs)

    def mean_distance(self) -> float | None:
        """Of all links; None without any."""
        total = self.distances.total()
        return sum(far * number for far, number in self.distances.items()) / total if total else None

    def lift(self, run: Run) -> float | None:
        """How often a pair or triple occurs, over how often it would if layers of these shares stood in any order.

        None where a class of it does not occur at all.
        """
        found = self.pairs if len(run) == 2 else self.triples
        expected = float(found.total())
        for name in run:
            expected *= self.share_of_layers(name)
        return found[run] / expected if expected else None


def names_of(layers: Iterable[Any]) -> Run:
    """The names of a design's layers, from the bottom to the top."""
    return tuple(entry if isinstance(entry, str) else entry[0] for entry in layers)


def links_of(layers: Sequence[Any]) -> list[Link]:
    """The links of a design, from the bottom to the top; the weights' before the features' of one layer."""
    found = []
    for above, entry in enumerate(layers):
        sharing = entry[2] if not isinstance(entry, str) and len(entry) > 2 else None
        if not sharing:
            continue
        if sharing.get("weights_of") is not None:
            found.append(Link(above, sharing["weights_of"], "weights"))
        if sharing.get("features_of") is not None:
            found.append(Link(above, sharing["features_of"], "features", tuple(sharing.get("features", ()))))
    return found


def motifs(designs: Iterable[Sequence[Any]]) -> Motifs:
    """The motifs of designs, each a list of layers as :class:`~manticore.StackConfig` takes them."""
    counted = Motifs()
    for layers in designs:
        names, links = names_of(layers), links_of(layers)
        pairs, triples = list(pairwise(names)), list(zip(names, names[1:], names[2:]))
        kinds = [LinkKind(link.kind, _ends(names, link), link.features) for link in links]
        counted.designs += 1
        counted.layers.update(names)
        counted.pairs.update(pairs)
        counted.triples.update(triples)
        counted.links.update(kinds)
        counted.shared.update(link.features or (link.kind,) for link in links)
        counted.distances.update(link.distance for link in links)
        counted.holding.update(set(chain(pairs, triples, kinds)))
    return counted


def _ends(names: Run, link: Link) -> str:
    below, above = names[link.below], names[link.above]
    return above if below == above else f"{below} → {above}"
