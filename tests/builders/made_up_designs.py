"""Architecture search without training: methods run on scores that a function makes up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from manticore.registry import resolve
from manticore.search.designs.layer_lists import LayerListSpace
from manticore.search.designs.method import Asking
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import Design, DesignSpace

Measured = Mapping[str, float] | None
LOSS = (Goal("loss"),)


def attention_and_swiglu(layers: int = 6, **options: Any) -> LayerListSpace:
    """Composer's space, at width 32."""
    primitives = [["mh-attention", {"num_heads": 4}], "swiglu"]
    return LayerListSpace(primitives=primitives, layers=layers, width=32, **options)


def answered(asking: Asking, scores: Scores, measure: Callable[[Design], Measured]) -> list[list[Design]]:
    """The batches that a method asked for; what has no measures has failed."""
    batches = []
    for batch in asking:
        batches.append(list(batch))
        for design in batch:
            if design in scores.found or design in scores.failed:
                continue
            measures = measure(design)
            if measures is None:
                scores.failed[design] = "made to fail"
            else:
                scores.found[design] = dict(measures)
    return batches


def searched(
    method: str,
    space: DesignSpace,
    measure: Callable[[Design], Measured],
    trials: int,
    *,
    seed: int = 0,
    goals: Sequence[Goal] = LOSS,
    limits: Mapping[str, float] | None = None,
    **options: Any,
) -> tuple[Scores, list[list[Design]]]:
    """What a method of that name has scored, and in which batches."""
    scores = Scores(space, goals, limits or {})
    return scores, answered(resolve("design", method)(scores, seed, trials, **options), scores, measure)


def flat(batches: Iterable[list[Design]]) -> list[Design]:
    """All designs that were asked for."""
    return [design for batch in batches for design in batch]
