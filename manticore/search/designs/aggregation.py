"""Aggregation of the best designs into one, N_c (Composer, 2025): position by position, what most of them have there.

    a_i = mode { a_i of those designs whose positions i-c .. i-1 are the ones chosen there }

c = 0 votes on each position alone, c = 1 given the one before, None (all) given everything before. What the paper
leaves open is settled here: a tie goes to the value with more accuracy behind it, then to the more accurate design's;
where no design agrees with what is chosen, one position less has to. That happens only above layers that are settled
beforehand: what is chosen by votes, some design has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from manticore.errors import ManticoreError
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design

CLUSTERS = 5


def aggregate(accuracies: Mapping[Design, float], context: int | None = 0, *, begin: Design = ()) -> Design:
    """N_context of some designs.

    Args:
        accuracies: design → a positive number, the larger the better.
        context: c; None is all positions before.
        begin: the first positions, where they are settled, as those of an incremental search are.

    Raises:
        ManticoreError: no designs, designs of different lengths, a context below 0.
    """
    if not accuracies:
        raise ManticoreError("aggregate: no designs. Fix: give one or more that have scores")
    if context is not None and context < 0:
        raise ManticoreError(f"aggregate: context is {context} (expected 0 or more, or None). Fix: context=0")
    lengths = sorted({len(design) for design in accuracies})
    if len(lengths) > 1:
        raise ManticoreError(
            f"aggregate: designs of {lengths[0]} and {lengths[-1]} positions. Fix: only those of one length"
        )
    chosen = begin
    for position in range(len(begin), lengths[0]):
        seen = position if context is None else min(context, position)
        chosen = (*chosen, _vote(accuracies, chosen, position, seen))
    return chosen


def best_cluster(scores: Scores, clusters: int = CLUSTERS) -> dict[Design, float]:
    """The designs within the limits whose score falls into the best cluster, with their accuracies.

    K-means on the first goal, by scikit-learn; of fewer different scores than clusters, each is one.

    Args:
        scores: of a search.
        clusters: how many.

    Returns:
        Design → accuracy: the goal itself where it is maximised, exp(-goal) where it is minimised, which is the
        probability of the right token where the goal is a loss.

    Raises:
        ManticoreError: scikit-learn is not installed, or no design is within the limits.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ManticoreError(
            f"aggregate: scikit-learn cannot be imported ({error}). Fix: pip install 'manticore-hybrids[design]'"
        ) from error
    goal = scores.goals[0]
    found = {design: scores.found[design][goal.measure] for design in scores.found if scores.allowed(design)}
    if not found:
        raise ManticoreError("aggregate: no design has scores and keeps the limits. Fix: more trials, or wider limits")
    points = [[value] for value in found.values()]
    means = KMeans(min(clusters, len(set(found.values()))), n_init=10, random_state=0).fit(points)
    centres = [float(centre[0]) for centre in means.cluster_centers_]
    best = centres.index((max if goal.maximise else min)(centres))
    return {
        design: value if goal.maximise else math.exp(-value)
        for (design, value), cluster in zip(found.items(), means.labels_)
        if cluster == best
    }


def _vote(accuracies: Mapping[Design, float], chosen: Design, position: int, seen: int) -> int:
    while True:
        agreeing = [d for d in accuracies if d[position - seen : position] == chosen[position - seen : position]]
        if agreeing:
            break
        seen -= 1

    def support(value: int) -> tuple[int, float, float]:
        having = [accuracies[design] for design in agreeing if design[position] == value]
        return len(having), math.fsum(having), max(having)

    # of values that are equal in all of it, the smallest
    return max(sorted({design[position] for design in agreeing}), key=support)
