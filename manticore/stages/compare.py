"""Fine-tune parents, ensemble, hybrid, and the soft supernet where weights were learned, at equal compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manticore
from manticore import settings
from manticore.experiments.rows import ENSEMBLE, HYBRID, SUPERNET
from manticore.file_names import MODEL
from manticore.runs.stages import Outcome
from manticore.schema.options import trains_candidates
from manticore.schema.recipe import Recipe
from manticore.stages.commands import finetune_command
from manticore.stages.records import Record
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan

MISMATCH_LIMIT = 0.05
"""Training FLOPs of a seed may differ from the budget by this share."""

_ONE_DISTILLED = (
    "Every seed of the hybrid begins with the one model that was distilled: its spread is that of fine-tuning alone."
)

if TYPE_CHECKING:
    from manticore.plan.costing import Costing


@dataclass(frozen=True)
class Budget(Record):
    name: str = ""
    flops: float | None = None


@dataclass(frozen=True)
class SeedRun(Record):
    seed: int | None = None
    flops: float | None = None
    steps: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    metrics_float32: dict[str, float | None] | None = None


@dataclass(frozen=True)
class Row(Record):
    """One model trained with one budget; ``mean`` and ``interval`` (95 %) are of the task's primary metric."""

    model: str = ""
    budget: int = 0
    parameters: int | None = None
    flops_per_token: float | None = None
    cache_bytes_per_token: float | None = None
    state_bytes: float | None = None
    seeds: tuple[SeedRun, ...] = ()
    mean: float | None = None
    interval: tuple[float | None, ...] | None = None
    mismatch: bool = False  # of records from before each row told what a step costs
    diverged: tuple[float, ...] = ()
    """Learning rates with which a training ended in NaN or infinity."""
    step_flops: float | None = None
    """Training FLOPs of one step: no run can come nearer to its budget."""

    def mean_of(self, metric: str) -> float | None:
        """The mean over seeds of any metric; None where a seed has no finite one."""
        found = [seed.metrics.get(metric) for seed in self.seeds]
        finite = [value for value in found if value is not None]
        return sum(finite) / len(finite) if finite and len(finite) == len(found) else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval, or None where there is none (one seed, or a value that is not finite)."""
        if self.interval is None or len(self.interval) != 2:
            return None
        low, high = self.interval
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Untrained(Record):
    """A parent as it was downloaded, scored before any training."""

    model: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    left_out: str = ""
    """Why there is no score."""


@dataclass(frozen=True)
class CompareRecord(Record):
    budgets: tuple[Budget, ...] = ()
    rows: tuple[Row, ...] = ()
    untrained: tuple[Untrained, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences that the table cannot be read without."""
    seconds: float | None = None

    def row(self, model: str, budget: int) -> Row | None:
        return next((r for r in self.rows if r.model == model and r.budget == budget), None)

    def before(self, model: str, metric: str) -> float | None:
        """What a model scored as it was downloaded."""
        return next((found.metrics.get(metric) for found in self.untrained if found.model == model), None)

    @property
    def models(self) -> list[str]:
        """Names in order of first appearance."""
        return list(dict.fromkeys(r.model for r in self.rows))


class Compare(Stage):
    name = "compare"

    def plan_line(self, recipe: Recipe) -> str:
        return f"parents and hybrids at equal compute, seeds {', '.join(map(str, self.settings(recipe).seeds))}"

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        section, tuning = self.settings(costing.recipe), costing.recipe.finetune
        flops = {stage.name: stage.flops for stage in costing.stages}
        budget, spent = flops["finetune"], sum(flops.get(stage, 0) for stage in ("align", "search", "distill"))
        parents, ensemble = len(costing.sources), int(section.ensemble and len(costing.sources) > 1)
        # a search over candidates leaves no mixture weights, and so nothing soft
        search = costing.recipe.search
        stays = costing.recipe.discretize is None
        soft = int(not stays and (search is None or not trains_candidates(search.method)))
        dearest = costing.tuned["supernet" if soft else "costliest"]
        per_row = len(section.seeds) + len(section.learning_rates or [tuning.lr]) - 1
        # with fine-tuning's FLOPs each; with all that the hybrid cost, those that had no search train longer
        models = parents + ensemble + soft + 1
        trainings = models * budget + (parents + ensemble) * (budget + spent) * (spent > 0)
        found = costing.fit(costing.tuning, dearest)
        costing.fits[self.name] = [found]
        costing.save_checkpoints(dearest.held)
        subject = "the soft supernet" if soft else "the hybrid" if stays else "the costliest path"
        verdict = "fits" if found.fits is not None else f"does not fit ({subject}): finetune's ways out"
        if found.fits is None:
            costing.problems.append(f"compare: {subject} does not fit: compare=null, or other settings of finetune")
        yield StagePlan(
            self.name, f"{models} models × {per_row}",
            max(case.held.trained for name, case in costing.tuned.items() if soft or name != "supernet"),
            dearest.flops * dearest.accumulation, None,
            trainings * per_row, found.smaller, verdict,
        )  # fmt: skip

    def work(self, run: Run, folder: Path) -> Outcome:
        section, tuning = self.settings(run.recipe), run.recipe.finetune
        path = run.results_of("discretize").get("path", [])
        searching = sum(run.results_of(stage).get("flops", 0) for stage in ("align", "search"))
        if path and run.begun(path) is not None:
            # what the path had when it was chosen is part of its fine-tuning
            searching -= run.results_of("search")["trained_flops"]
        spent = {SUPERNET: searching, HYBRID: searching + run.results_of("distill").get("flops", 0)}
        models = _parents(run, section.ensemble)
        if not path:
            models[HYBRID] = run.soft
        elif not run.by_candidates:
            models[SUPERNET] = run.soft
        if len(set(path)) > 1:
            # else it is a parent, which stands in the table already
            models[HYBRID] = lambda seed: run.student(path, seed)
        comparison = manticore.compare(
            models,
            run.task,
            # as the hybrid was trained, to the last option
            settings.Compare(
                **tuning.shared(),
                **{**dict(section), "learning_rates": section.learning_rates or [tuning.lr]},
                budget_flops=run.results_of("finetune")["flops"],
                test_examples=tuning.test_examples,
            ),
            spent_flops={name: cost for name, cost in spent.items() if name in models},
            out=folder,
            resume=True,
            progress=lambda done, runs, what: run.reporter.progress(what.split(" · ")[0], done, runs, None),
        )
        metric = comparison.primary_metric
        scores = ", ".join(f"{row.model} {row.mean:.3f}" for row in comparison.rows if row.budget == 0)
        table = comparison.to_dict()
        if HYBRID in models and run.recipe.distill is not None and len(section.seeds) > 1:
            table["notes"] = [*table["notes"], _ONE_DISTILLED]
        kept = CompareRecord.written(**{name: table[name] for name in ("budgets", "rows", "untrained", "notes")})
        return Outcome({"compare": kept}, f"{metric}: {scores}")

    def next_command(self, best: str, source: str, task: str) -> str:
        """Fine-tune the best model once more.

        Args:
            best: its name.
            source: its folder or hub id.
            task: as words of a command.
        """
        return finetune_command(source, Path(best).name, task)


def _parents(run: Run, ensemble: bool) -> dict[str, Any]:
    """The components alone; those that were re-embedded as they are then, where the task is read with a tokenizer.

    Args:
        ensemble: add the average of their logits where ``compare`` could not, since tokenizers differ.
    """
    from manticore.components.sources import model_folder
    from manticore.experiments.models import averaged
    from manticore.hybrid.modeling import ManticoreForCausalLM

    models: dict[str, Any] = {
        component.name: str(model_folder(source, component.revision) or source)
        for component, source in zip(run.recipe.components, run.sources)
    }
    if run.tokenizer_component is None or run.task.vocab_size is not None:
        return models
    hybrid = ManticoreForCausalLM.from_pretrained(run.path / "combine" / MODEL)
    if hybrid.config.reembedded is None:
        return models
    components = [hybrid.component(k) for k in range(len(models))]
    for name, component, matched in zip(models, components, hybrid.config.reembedded):
        if matched is not None:
            models[name] = component
    if ensemble:
        models[ENSEMBLE] = lambda seed: averaged(components, run.task, tokenizer=hybrid.tokenizer, seed=seed)
    return models
