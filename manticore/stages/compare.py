"""Fine-tune parents, ensemble, soft supernet and hybrid at equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import MODEL, Stage

SUPERNET = "supernet (soft)"
HYBRID = "hybrid"


class Compare(Stage):
    name = "compare"

    def plan_line(self, recipe: Recipe) -> str:
        return f"parents and hybrids at equal compute, seeds {', '.join(map(str, self.settings(recipe).seeds))}"

    def work(self, run: Run, folder: Path) -> Outcome:
        section, tuning = self.settings(run.recipe), run.recipe.finetune
        path = run.results_of("discretize")["path"]
        searching = sum(run.results_of(stage).get("flops", 0) for stage in ("align", "search"))
        models = _parents(run, section.ensemble)
        models[SUPERNET] = run.soft
        models[HYBRID] = lambda seed: run.discrete(path, seed)
        comparison = manticore.compare(
            models,
            run.task,
            budget_flops=run.results_of("finetune")["flops"],
            spent_flops={SUPERNET: searching, HYBRID: searching},
            seeds=section.seeds,
            learning_rates=section.learning_rates or [tuning.lr],
            ensemble=section.ensemble,
            workers=section.workers,
            test_examples=tuning.test_examples,
            out=folder,
            resume=True,
            progress=lambda done, runs, what: run.reporter.progress(what.split(" · ")[0], done, runs, None),
            # as the hybrid was trained, to the last option
            **tuning.shared(),
        )
        metric = comparison.primary_metric
        scores = ", ".join(f"{row.model} {row.mean:.3f}" for row in comparison.rows if row.budget == 0)
        table = comparison.to_dict()
        kept = {name: table[name] for name in ("budgets", "rows", "untrained", "notes")}
        return Outcome({"compare": kept}, f"{metric}: {scores}")


def _parents(run: Run, ensemble: bool) -> dict[str, Any]:
    """The components alone; those that were re-embedded as they are then, where the task is read with a tokenizer.

    Args:
        ensemble: add the average of their logits where ``compare`` could not, since tokenizers differ.
    """
    from manticore.components.sources import model_folder
    from manticore.experiments.models import ENSEMBLE, averaged
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
