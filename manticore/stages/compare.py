"""Fine-tune parents, ensemble, hybrid, and the soft supernet where weights were learned, at equal compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manticore
from manticore import settings
from manticore.experiments.budgets import budgets_of, most_flops
from manticore.experiments.rows import HYBRID, SUPERNET, ensemble_row, ensembles
from manticore.file_names import MODEL
from manticore.runs.stages import Outcome
from manticore.schema.options import trains_candidates
from manticore.schema.recipe import Recipe
from manticore.stages.commands import finetune_command
from manticore.stages.records import Record
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan
from manticore.stages.written import Writing

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
    share: float | None = None
    """Of the fine-tuning budget, what was spent before left out."""
    with_spent: bool = False
    """Whether what was spent on a model before its fine-tuning counts; of old records the name tells."""

    @property
    def is_everything(self) -> bool:
        return self.with_spent or self.name.startswith("everything")


@dataclass(frozen=True)
class SeedRun(Record):
    seed: int | None = None
    lr: float | None = None
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
    rates: tuple[float, ...] = ()
    """Learning rates that were tried; older records do not say."""

    @property
    def edge(self) -> tuple[str, float] | None:
        """``"highest"`` or ``"lowest"`` and the learning rate used, where none was tried beyond it; else None.

        A higher one that diverged was tried.
        """
        used = self.seeds[0].lr if self.seeds else None
        if used is None or len(self.rates) < 2 or used not in (min(self.rates), max(self.rates)):
            return None
        return ("highest" if used == max(self.rates) else "lowest"), used

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
    """A parent as it was downloaded, or an ensemble of them, scored before any training."""

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
    writing: tuple[Writing, ...] = ()
    """What the models write by themselves."""
    seconds: float | None = None

    def row(self, model: str, budget: int) -> Row | None:
        return next((r for r in self.rows if r.model == model and r.budget == budget), None)

    def before(self, model: str, metric: str) -> float | None:
        """What a model scored as it was downloaded."""
        return next((found.metrics.get(metric) for found in self.untrained if found.model == model), None)

    @property
    def kinds(self) -> list[list[int]]:
        """Indices of the budgets of fine-tuning alone, then of those that count what was spent before; none empty."""
        indices = range(max(1, len(self.budgets)))
        everything = [index for index in indices if self.budgets and self.budgets[index].is_everything]
        return [kind for kind in ([index for index in indices if index not in everything], everything) if kind]

    @property
    def over_budgets(self) -> bool:
        """Whether there are several budgets of one kind."""
        return any(len(kind) > 1 for kind in self.kinds)

    @property
    def main_budget(self) -> int:
        """The index of all of the fine-tuning; where that is not among the budgets, of the largest of its kind."""
        alone = self.kinds[0]
        return next((index for index in alone if self.budgets and self.budgets[index].share == 1), alone[-1])

    @property
    def models(self) -> list[str]:
        """Names in order of first appearance."""
        return list(dict.fromkeys(r.model for r in self.rows))


class Compare(Stage):
    name = "compare"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        several = f", {len(section.budgets)} budgets" if section.budgets and len(section.budgets) > 1 else ""
        written = ", and what they write" if section.generate else ""
        return f"parents and hybrids at equal compute, seeds {', '.join(map(str, section.seeds))}{several}{written}"

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        section, tuning = self.settings(costing.recipe), costing.recipe.finetune
        flops = {stage.name: stage.flops for stage in costing.stages}
        budget, spent = flops["finetune"], sum(flops.get(stage, 0) for stage in ("align", "search", "distill"))
        parents = len(costing.sources) - len(costing.skeleton.hybrid.config.fresh)
        added = _ensembles(costing.recipe, of_text=costing.task.vocab_size is None) if parents > 1 else ()
        # a search over candidates leaves no mixture weights, and so nothing soft
        search = costing.recipe.search
        stays = costing.recipe.discretize is None
        soft = int(not stays and (search is None or not trains_candidates(search.method)))
        dearest = costing.tuned["supernet" if soft else "costliest"]
        # those that had no search train longer where all that the hybrid cost counts
        plain, own = parents + len(added) + int(section.larger is not None), soft + 1
        budgets = budgets_of(section.budgets, max(1, int(budget)), int(spent))
        rates, seeds = len(_rates(section, tuning)), len(section.seeds)
        trainings = sum(
            number
            * most_flops(
                sorted({b.flops - b.with_spent * before for b in budgets if b.flops > b.with_spent * before}),
                rates=rates, seeds=seeds, one_run=tuning.schedule == "constant",
            )
            for number, before in ((plain, 0), (own, int(spent)))
        )  # fmt: skip
        subject = "the soft supernet" if soft else "the hybrid" if stays else "the costliest path"
        entrants = {subject: dearest}
        if costing.larger is not None:
            entrants["the larger model"] = costing.larger
        found = {name: costing.fit(costing.tuning, case) for name, case in entrants.items()}
        costing.fits[self.name] = list(found.values())
        costing.save_checkpoints(max((case.held for case in entrants.values()), key=lambda held: held.trained_bytes))
        without = [name for name, fit in found.items() if fit.fits is None]
        verdict = f"does not fit ({' and '.join(without)}): finetune's ways out" if without else "fits"
        for name in without:
            way = "compare=null" if name == subject else "compare.larger=null"
            costing.problems.append(f"compare: {name} does not fit: {way}, or other settings of finetune")
        what = _amount(plain + own, rates, seeds, len(section.budgets or [1]), tuning.schedule)
        if section.generate and not costing.task.writes:
            costing.problems.append(f"compare.generate: {costing.task.name} writes nothing: leave generate out")
        elif section.generate:
            what += ", what they write is not counted"
        trained = [case.held.trained for name, case in costing.tuned.items() if soft or name != "supernet"]
        trained += [case.held.trained for case in entrants.values()]
        yield StagePlan(
            self.name, what,
            max(trained), max(case.flops * case.accumulation for case in entrants.values()), None,
            trainings, max(fit.smaller for fit in found.values()), verdict,
        )  # fmt: skip

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.experiments.models import reads_text

        section, tuning = self.settings(run.recipe), run.recipe.finetune
        path = run.results_of("discretize").get("path", [])
        searching = sum(run.results_of(stage).get("flops", 0) for stage in ("align", "search"))
        if path and run.begun(path) is not None:
            # what the path had when it was chosen is part of its fine-tuning
            searching -= run.results_of("search")["trained_flops"]
        spent = {SUPERNET: searching, HYBRID: searching + run.results_of("distill").get("flops", 0)}
        joined = _ensembles(run.recipe, of_text=reads_text(run.task))
        models = _parents(run, joined)
        if not path:
            models[HYBRID] = run.soft
        elif not run.by_candidates:
            models[SUPERNET] = run.soft
        if len(set(path)) > 1 or set(path) & set(run.fresh):
            # else it is a parent, which stands in the table already
            models[HYBRID] = lambda seed: run.student(path, seed)
        comparison = manticore.compare(
            models,
            run.task,
            # as the hybrid was trained, to the last option
            settings.Compare(
                **tuning.shared(),
                **{
                    **dict(section),
                    "learning_rates": _rates(section, tuning),
                    "larger": _larger(run, section.larger),
                    "ensemble": list(joined) or False,
                },
                budget_flops=run.results_of("finetune")["flops"],
                test_examples=tuning.test_examples,
            ),
            spent_flops={name: cost for name, cost in spent.items() if name in models},
            out=folder,
            resume=True,
            progress=lambda done, runs, what: run.reporter.progress(what.split(" · ")[0], done, runs, None),
        )
        metric = comparison.primary_metric
        scores = ", ".join(
            f"{row.model} {row.mean:.3f}" for row in comparison.rows if row.budget == comparison.main_budget
        )
        table = comparison.to_dict()
        if HYBRID in models and run.recipe.distill is not None and len(section.seeds) > 1:
            table["notes"] = [*table["notes"], _ONE_DISTILLED]
        kept = CompareRecord.written(
            **{name: table[name] for name in ("budgets", "rows", "untrained", "notes", "writing")}
        )
        return Outcome({"compare": kept}, f"{metric}: {scores}")

    def next_command(self, best: str, source: str, task: str) -> str:
        """Fine-tune the best model once more.

        Args:
            best: its name.
            source: its folder or hub id.
            task: as words of a command.
        """
        return finetune_command(source, Path(best).name, task)


def _ensembles(recipe: Recipe, *, of_text: bool) -> Sequence[str]:
    """Outputs of the ensembles of a comparison; by default without the one that the hybrid is itself."""
    wanted = False if recipe.compare is None else recipe.compare.ensemble
    itself = recipe.discretize is None and recipe.combine.mixing == "routed" and wanted is True
    return [output for output in ensembles(wanted, of_text=of_text) if not (itself and output == recipe.combine.output)]


def _rates(section: Any, tuning: settings.Finetune) -> list[float]:
    """The learning rates that are tried: the recipe's, else some around fine-tuning's."""
    return section.learning_rates or settings.rates_around(tuning.lr)


def _amount(models: int, rates: int, seeds: int, budgets: int, schedule: str) -> str:
    """How many runs a comparison makes, in a few words."""
    said = f"{models} models × {rates + seeds - 1}"
    if budgets == 1:
        return said
    return f"{said}, {budgets} budgets {'in one run' if schedule == 'constant' else 'in runs of their own'}"


def _larger(run: Run, larger: str | None) -> str | None:
    """The larger model to show, with the name of the recipe's entry that pretrains it."""
    made = run.pretrained.get(larger) if larger is not None else None
    return larger if made is None else f"{larger}={made}"


def _parents(run: Run, outputs: Sequence[str]) -> dict[str, Any]:
    """The components alone; those that were re-embedded as they are then, where the task is read with a tokenizer.

    Args:
        outputs: of the ensembles to add where ``compare`` could not, since tokenizers differ.
    """
    from manticore.components.sources import model_folder
    from manticore.experiments.models import averaged
    from manticore.hybrid.modeling import ManticoreForCausalLM

    models: dict[str, Any] = {
        component.name: str(model_folder(source, component.revision) or source)
        for k, (component, source) in enumerate(zip(run.recipe.components, run.sources))
        # what was made beside a parent is none
        if k not in run.fresh
    }
    if run.tokenizer_component is None or run.task.vocab_size is not None:
        return models
    hybrid = ManticoreForCausalLM.from_pretrained(run.path / "combine" / MODEL)
    if hybrid.config.reembedded is None:
        return models
    parents = [k for k in range(hybrid.config.num_components) if k not in run.fresh]
    components = [hybrid.component(k) for k in parents]
    for name, component, matched in zip(models, components, [hybrid.config.reembedded[k] for k in parents]):
        if matched is not None:
            models[name] = component
    join = partial(averaged, components, run.task, tokenizer=hybrid.tokenizer)
    for output in outputs:
        models[ensemble_row(output)] = lambda seed, output=output: join(output=output, seed=seed)
    return models
