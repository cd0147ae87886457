"""Find out which component each block of the supernet should use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar

import manticore
from manticore import settings
from manticore.file_names import SEARCHED
from manticore.runs.stages import Outcome
from manticore.schema import sections
from manticore.schema.options import trains_candidates
from manticore.schema.recipe import Recipe
from manticore.stages.commands import finetune_command
from manticore.stages.records import Record, Step, Weights
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan, amount

if TYPE_CHECKING:
    from manticore.plan.cases import Setting
    from manticore.plan.costing import Costing
    from manticore.search.forecast import Prices
    from manticore.search.result import SearchResult
    from manticore.search.space import Space
    from manticore.tasks.shape import TaskShape


@dataclass(frozen=True)
class CurvePoint(Record):
    """A candidate at a mark, on held-out data: ``loss`` in nats per scored position, ``metric`` the task's own."""

    mark: int = 0
    """In twelfths of a unit."""
    steps: int = 0
    flops: float | None = None
    loss: float | None = None
    metric: float | None = None
    seconds: float | None = None
    """Training time so far."""


@dataclass(frozen=True)
class CandidateRecord(Record):
    """A path that a search has trained; ``flops`` are those of its training and scoring."""

    path: tuple[int, ...] = ()
    points: tuple[CurvePoint, ...] = ()
    failed: str = ""
    chosen: bool = False
    flops: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    """What the path costs at the table's workload, by the names that limits have."""


@dataclass(frozen=True)
class CostRecord(Record):
    """One kind of cost of every path: a sum over blocks, hand-overs, the components on it, and its ends."""

    blocks: Weights = ()
    handovers: Weights = ()
    presence: tuple[float, ...] = ()
    ends: Weights = ()


@dataclass(frozen=True)
class CostTableRecord(Record):
    """What each path costs, as :class:`manticore.search.costs.CostTable` has it."""

    workload: str = ""
    costs: dict[str, CostRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchRecord(Record):
    method: str = ""
    order: str = ""
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    history: tuple[Step, ...] = ()
    weights: Weights = ()
    path: tuple[int, ...] = ()
    candidates: tuple[CandidateRecord, ...] = ()
    """Empty where mixture weights were learned."""
    shared: tuple[CandidateRecord, ...] = ()
    """What paths scored with the weights that they share: of one-shot search, and of the supernet whose mixture weights
    were learned, parents also before that (a point of 0 steps)."""
    shared_examples: int | None = None
    """Held-out examples that each of them was scored on."""
    unit_flops: float | None = None
    """Training FLOPs of one fine-tuning."""
    trained_flops: float | None = None
    """What the path found had cost when the search ended; fine-tuning goes on from there."""
    reason: str = ""
    """Why the search ended there."""
    costs: CostTableRecord | None = None
    limits: dict[str, float] = field(default_factory=dict)
    """That the path found keeps, by the names of costs."""
    metric: str = ""
    higher_is_better: bool = True
    fresh: tuple[int, ...] = ()
    """Components that are no parents; of a run they stand in ``combine`` too."""
    task_options: dict[str, str] = field(default_factory=dict)
    """What was others in the task that the candidates trained on, where that was a cheaper one."""

    @property
    def learned(self) -> bool:
        """Whether mixture weights were learned."""
        return any(step.weights for step in self.history)

    @property
    def chosen(self) -> CandidateRecord | None:
        """The candidate that the search found; None where none is marked."""
        return next((each for each in self.candidates if each.chosen), None)

    def allows(self, candidate: CandidateRecord) -> bool:
        """Whether a candidate keeps the limits, as far as its costs are in the record."""
        return all(candidate.costs.get(name, 0.0) <= most * (1 + 1e-9) for name, most in self.limits.items())

    @classmethod
    def of(cls, result: SearchResult, method: str, order: str) -> dict[str, Any]:
        """What a search found, as JSON values; only mixture weights that are learned have an order."""
        return cls.written(method=method, order="" if result.candidates else order, **result.to_dict())


class Search(Stage):
    name = "search"
    note: ClassVar[str] = SEARCHED

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        if trains_candidates(section.method):
            cheaper = ", ".join(f"{name}={value}" for name, value in section.task_options.items())
            where = f"{recipe.task.name} with {cheaper}" if cheaper else recipe.task.name
            return f"{section.method} over paths, scored on held-out data of {where}"
        return f"{section.method}, {amount(section, recipe)}"

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        section = self.settings(recipe)
        # absent where nothing is taken from elsewhere: runs from before there was a choice stay valid
        absent = set() if section.weights_from else {"weights_from"}
        return section.model_dump(mode="json", exclude={*settings.SHARING_OPTIONS, *absent})

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        section = self.settings(costing.recipe)
        if trains_candidates(section.method):
            yield from _cost_of_candidates(costing, section)
            return
        case = costing.measure(self.name, costing.setting(section), None)
        costing.save_model(costing.tuned["supernet"].held)
        costing.save_checkpoints(case.held)
        trained = costing.training(self.name, "supernet", case, None)
        paths, scoring = _scoring_of_one_hot_paths(costing, section, trained.flops)
        what = f"{trained.what}, then {paths} one-hot paths on held-out data"
        yield replace(trained, what=what, flops=trained.flops + scoring)

    def work(self, run: Run, folder: Path) -> Outcome:
        section, task = self.settings(run.recipe), run.search_task
        if run.by_candidates and section.finetune_flops is None:
            section = section.model_copy(update={"finetune_flops": run.unit_flops(task, section)})
        result = manticore.search(
            run.aligned(run.recipe.seed, task),
            task,
            section,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
        )
        run.save(result.model, folder)
        found = SearchRecord.of(result, section.method, section.order)
        found["task_options"] = {name: str(value) for name, value in section.task_options.items()}
        return Outcome({"search": found}, f"path {run.path_text(result.path)}")

    def next_command(self, out: str, words: str | None = None) -> str:
        """Go on with what was found, or cut it out of the supernet.

        Args:
            out: folder of what the search has left.
            words: the task, where the search has begun to train on it.
        """
        if words is not None:
            return finetune_command(out, out, words)
        return f"manticore discretize {quote(out)} -o {quote(out + '-small')}"


def _scoring_of_one_hot_paths(costing: Costing, section: sections.Search, training: float) -> tuple[int, float]:
    """How many paths of a supernet are scored after its search, and FLOPs; at most, where what is found decides."""
    from manticore.plan.cases import Setting
    from manticore.search.differentiable.one_hot import compared, one_hot_paths
    from manticore.search.path_costs import PathCosts

    plain, task = Setting("all", False, False, section.dtype), costing.task
    costs = PathCosts(
        lambda path: round(
            costing.cases.measure(plain, path, batch_size=task.sequences, length=task.length).forward_flops
        ),
        additive=True,
    )
    space = _space(costing)
    examples = compared(space, _held_out(section, task), training, max(map(costs, space.alone)))
    paths = one_hot_paths(space, tuple(costing.paths["costliest"]))
    return len(paths), examples * sum(map(costs, [*space.parents, *paths]))


def _space(costing: Costing) -> Space:
    from manticore.search.space import Space

    return Space(costing.shape.num_blocks, len(costing.sources), fresh=costing.skeleton.hybrid.config.fresh)


def _held_out(section: sections.Search, task: TaskShape) -> int:
    """Examples that a path is scored on."""
    return min(section.validation_examples, task.validation_examples or section.validation_examples)


def _cost_of_candidates(costing: Costing, section: sections.Search) -> Iterator[StagePlan]:
    """As many units as the method may need; each candidate takes the memory of one path, and is kept on the disk."""
    whole, costing = costing, costing.of_candidates()
    from manticore.registry import resolve
    from manticore.search.curves import spacing
    from manticore.search.forecast import forecast

    case = costing.tuned["costliest"]
    space = _space(costing)
    prices = candidate_prices(costing, section, space)
    scoring = prices.examples * max(map(prices.forward, space.alone))
    least, most = forecast(
        resolve("search", section.method), space, spacing(scoring, prices.unit), prices.seed, **section.method_options()
    )
    what = f"{most.candidates} paths, {least.units:.1f} to {most.units:.1f} fine-tunings"
    if least.candidates < most.candidates:
        what = f"{least.candidates} to {what}"
    whole.save_model(case.held)
    for _ in range(most.candidates):
        whole.save_checkpoints(case.held)
    if most.compared:
        what = f"shared weights on {len(most.compared)} paths, then {what}"
        # weights and moments of the whole supernet, activations of one path
        case = case.holding(costing.tuned["supernet"].held)
        whole.save_checkpoints(case.held)
    found = costing.fit(costing.tuning, case)
    verdict = "fits" if found.fits is not None else "does not fit: finetune's ways out"
    step, flops = max(map(prices.step, space.parents)), most.flops(prices)
    yield StagePlan(Search.name, what, case.held.trained, step, None, flops, found.smaller, verdict)


def candidate_prices(costing: Costing, section: sections.Search, space: Space) -> Prices:
    """What the parts of a search over candidates cost; exact where every embedding trains, else to a step of each.

    Args:
        costing: of the recipe, with the batches and the task of the search (``of_candidates``).
        section: of the search.
        space: its paths.
    """
    from manticore.search.forecast import Prices
    from manticore.search.path_costs import PathCosts

    task, tuning = costing.task, costing.recipe.finetune

    def of_step(path: Sequence[int]) -> int:
        case = costing.tuned_path(path)
        return round(case.flops * case.accumulation)

    def forward(setting: Setting) -> PathCosts:
        def of_example(path: Sequence[int]) -> int:
            case = costing.measure("finetune", setting, path)
            return round(task.sequences * case.forward_flops / case.micro_batch)

        return PathCosts(of_example, additive=True)

    step = PathCosts(of_step, additive=True)
    steps = tuning.steps or tuning.default_steps
    return Prices(
        unit=int(section.finetune_flops or tuning.budget_flops or steps * max(map(step, space.parents))),
        step=step,
        forward=forward(costing.tuning),
        shared_forward=forward(replace(costing.tuning, trainable="all")),
        examples=_held_out(section, task),
        seed=costing.recipe.seed,
        weights=[[1 / space.num_components] * space.num_components] * space.num_blocks,
    )
