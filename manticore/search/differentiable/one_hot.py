"""What the one-hot paths of a supernet score on held-out data, whose soft weights a search has learned.

The soft network is another one than any path, so the path of its largest weights may be a bad one: these scores show
it. They choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from manticore.errors import NotFiniteError
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.views import path_view
from manticore.search.beam import compared_examples
from manticore.search.objective import held_out
from manticore.search.path_costs import PathCosts
from manticore.search.result import Candidate
from manticore.search.space import Path, Space
from manticore.tasks.task import Task
from manticore.training.budget import flops_per_step

MOST_LISTED = 16
"""Up to so many paths, all are scored; of more, those of :func:`one_hot_paths`."""


def one_hot_paths(space: Space, found: Path) -> list[Path]:
    """The paths to score, parents first: all where they are few; else the found one, and what differs in one block.

    Args:
        space: the paths.
        found: the path of the largest mixture weights.
    """
    if space.size <= MOST_LISTED:
        return space.paths()
    near = [path for n in range(space.num_blocks) for path in space.flips(found, (n,))]
    return list(dict.fromkeys([*space.parents, found, *near]))


def compared(space: Space, most: int, training: float, forward: float) -> int:
    """Held-out examples that each is scored on, so that all of it costs at most what the search's training does.

    Args:
        space: the paths.
        most: as many as there are, and as are asked for.
        training: FLOPs.
        forward: FLOPs of one example along the dearest path.
    """
    parents = len(space.parents)
    near = 1 + space.num_blocks * (space.num_components - 1)
    after = space.size if space.size <= MOST_LISTED else parents + near
    # parents before the search too
    return compared_examples(most, training, after + parents, forward)


class OneHot:
    """Scores paths of a supernet with the weights that it has at that moment.

    Args:
        hybrid: a supernet, fitted to the task; left as it is.
        task: the data.
        batch_size: examples per forward pass.
        most: held-out examples per path, at most.
        training: FLOPs of the search's training, which scoring is not to exceed.
    """

    def __init__(
        self, hybrid: ManticorePreTrainedModel, task: Task, *, batch_size: int, most: int, training: float
    ) -> None:
        self._hybrid, self._task, self._batch_size = hybrid, task, batch_size
        config = hybrid.config
        self.space = Space(config.num_blocks, config.num_components, fresh=config.fresh)
        dearest = max(map(self._costs(), self.space.alone))
        self.examples = compared(self.space, min(most, len(task.data["validation"])), training, dearest)

    def _costs(self) -> PathCosts:
        # anew each time: low-rank updates cost something until they are merged
        hybrid, length = self._hybrid, self._task.length
        return PathCosts(lambda path: flops_per_step(path_view(hybrid, path), 1, length, backward=False), additive=True)

    def scores(self, paths: Sequence[Path], steps: int) -> list[Candidate]:
        """A point of mark 0 for each path; none where its scores are not finite.

        Args:
            paths: of the supernet.
            steps: that it has trained.
        """
        found, costs = [], self._costs()
        for path in paths:
            try:
                point = held_out(path_view(self._hybrid, path), self._task, self._batch_size, self.examples)
            except NotFiniteError as error:
                found.append(Candidate(list(path), [], str(error)))
                continue
            spent = self.examples * costs(path)
            found.append(Candidate(list(path), [replace(point, steps=steps, spent=spent)]))
        return found


def beside(before: Sequence[Candidate], after: Sequence[Candidate]) -> list[Candidate]:
    """Candidates after a search, with the points that they had before it in front of their own."""
    known = {tuple(each.path): each.points for each in before}
    return [replace(each, points=[*known.get(tuple(each.path), []), *each.points]) for each in after]
