"""What a search found, with which candidates, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.search.costs import CostTable
from manticore.search.curves import Point, trained_for
from manticore.search.space import path_text
from manticore.training.begun import Begun


@dataclass(frozen=True)
class Candidate:
    """A path, and how far it came."""

    path: list[int]
    points: list[Point]
    """Its learning curve on held-out data."""
    failed: str = ""
    """Why it could not go on."""
    chosen: bool = False

    @property
    def flops(self) -> int:
        """What its training and its scoring have cost."""
        return (self.points[-1].flops if self.points else 0) + sum(point.spent for point in self.points)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the losses of single examples."""
        shown = ("mark", "steps", "flops", "loss", "metric", "seconds")
        points = [{name: getattr(point, name) for name in shown} for point in self.points]
        return {"path": self.path, "points": points, "failed": self.failed, "chosen": self.chosen, "flops": self.flops}


@dataclass(frozen=True)
class SearchResult:
    """What a search found and what it took."""

    model: ManticorePreTrainedModel
    """Of a search over candidates: the hybrid that was found, trained as far as the search came; ``finetune`` of this
    result goes on with it. Of one that learns mixture weights: the supernet that was given, trained in place, or for a
    task with classes the classifier made of it; it holds the weights found."""
    weights: Tensor
    """Mixture weights ``[N, K]``; those of a path are one-hot."""
    path: list[int]
    """The best component of each block, N indices."""
    history: list[dict[str, Any]]
    """Per step of a search that learns weights: ``step``; ``loss`` of its batch; ``weights`` ``[N][K]`` and their mean
    ``entropy`` in nats after it. Empty for one over candidates."""
    steps: int
    """Optimizer steps; of a search over candidates, those of all of them and of shared weights."""
    tokens: int
    """Input tokens trained on."""
    flops: int
    """All that was spent: training, forward and backward, and the scoring of candidates; losers and shared weights
    included."""
    seconds: float
    """Training time, earlier sessions of a resumed search included."""
    candidates: list[Candidate] = field(default_factory=list)
    """What was looked at; empty for a search that learns weights."""
    shared: list[Candidate] = field(default_factory=list)
    """What paths scored with the weights that they share, a point of mark 0 each: of one-shot search; and of the
    supernet after a search that learns mixture weights, parents also as they were before it (a point of 0 steps)."""
    unit_flops: int = 0
    """Training FLOPs of a unit."""
    trained_flops: int = 0
    """Training FLOPs that the model has had, and that fine-tuning goes on from."""
    reason: str = ""
    """Why the search ended there, in a sentence."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """That the path found keeps: name → the most that it may cost."""
    costs: CostTable | None = None
    """What each path costs, for searches over candidates: ``costs.of(path)``."""
    metric: str = ""
    """The task's primary metric."""
    higher_is_better: bool = True
    begun: Begun | None = None
    """The training of the model, for ``finetune`` to go on with."""
    kept: TemporaryDirectory[str] | None = None
    """Holds its checkpoints where the search had no ``out``."""

    @property
    def shared_examples(self) -> int:
        """Held-out examples that each of ``shared`` was scored on."""
        return max((len(point.losses) for each in self.shared for point in each.points), default=0)

    @property
    def verdict(self) -> str:
        """Whether the path found is worth more than the best parent, in a sentence; families stand for components."""
        return self.worded([config.model_type for config in self.model.config.components])

    def worded(self, names: Sequence[str]) -> str:
        """The verdict, with these names of the components."""
        chosen = next((each for each in self.candidates if each.chosen), None)
        found = path_text(self.path, names)
        if chosen is None:
            return f"{found} has the largest mixture weights; {self._one_hot(names)}"
        ours, sign = chosen.points[-1], 1 if self.higher_is_better else -1
        after = f"{trained_for(ours.mark)}, on held-out data"
        if self._is_parent(self.path):
            scored = f"{self.metric} {ours.metric:.3f} {after}"
            which = "was looked at and keeps the limits" if self.limits else "was looked at"
            return f"{found} alone is as good as any path that {which}: take it ({scored})"
        rivals = [
            (point.metric * sign, each.path[0])
            for each in self.candidates
            for point in each.points
            if self._is_parent(each.path) and point.mark == ours.mark and self._allows(each.path)
        ]
        if not rivals:
            beside = "keeps the limits" if self.limits else "was looked at beside it"
            return f"{found} was chosen; no parent {beside}"
        best, parent = max(rivals)
        lead = ours.metric * sign - best
        stands = f"{'ahead of' if lead >= 0 else 'behind'} the best parent, {names[parent]}, by {abs(lead):.3f}"
        return f"{found} is {stands} in {self.metric} {after}"

    def _one_hot(self, names: Sequence[str]) -> str:
        """How the path found stands among the one-hot paths of the supernet."""
        sign = -1 if self.higher_is_better else 1
        ends = [(each.path, each.points[-1]) for each in self.shared if not each.failed]
        if not ends:
            return "no path was trained"
        best, end = min(ends, key=lambda scored: (sign * scored[1].metric, scored[1].loss, scored[0]))
        among = f"of {len(ends)} one-hot paths of the supernet"
        if best == self.path:
            return f"{among} it scores best on held-out data ({self.metric} {end.metric:.3f})"
        own = next((f" against {point.metric:.3f}" for path, point in ends if path == self.path), "")
        score = f"{self.metric} {end.metric:.3f}{own}"
        return f"{among} {path_text(best, names)} {best} scores best on held-out data ({score})"

    def _is_parent(self, path: Sequence[int]) -> bool:
        return len(set(path)) == 1 and path[0] not in self._fresh

    @property
    def _fresh(self) -> frozenset[int]:
        """Components that are no parents."""
        return frozenset() if self.model is None else self.model.config.fresh

    def _allows(self, path: Sequence[int]) -> bool:
        return self.costs is None or self.costs.keeps(tuple(path), self.limits)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        names = ["path", "history", "steps", "tokens", "flops", "seconds", "unit_flops", "trained_flops"]
        names += ["reason", "metric", "higher_is_better", "shared_examples"]
        found = {name: getattr(self, name) for name in names}
        listed = {name: [each.to_dict() for each in getattr(self, name)] for name in ("candidates", "shared")}
        costs = {}
        if self.costs is not None:
            costs = {"costs": self.costs.to_dict(), "limits": dict(self.limits)}
            for candidate in listed["candidates"]:
                candidate["costs"] = self.costs.of(tuple(candidate["path"]))
        if self._fresh:
            found["fresh"] = sorted(self._fresh)
        return {**found, **costs, **listed, "weights": self.weights.tolist()}
