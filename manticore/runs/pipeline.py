"""A run: pretrain → combine → align → search → discretize → finetune → compare → report, by the public functions.

Every stage reads models from the folders of earlier stages, never from memory, so that a resumed run and an
uninterrupted one see the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

import manticore
from manticore.components.loading import load_tokenizer
from manticore.components.sources import model_folder
from manticore.experiments.models import ENSEMBLE, averaged
from manticore.hybrid.base import ManticorePreTrainedModel
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.report import write_model_card, write_report
from manticore.runs.folder import RunFolder
from manticore.runs.lineage import data_lineage, model_lineage
from manticore.runs.lock import locked
from manticore.runs.models import load_hybrid
from manticore.runs.records import component_record, task_record, write_history
from manticore.runs.reporter import LogReporter, Reporter
from manticore.runs.stages import Outcome, Stage, results_of, run_stages
from manticore.schema.options import reads_tokenizer
from manticore.settings import Compare, Settings
from manticore.tasks.task import Task, load_task
from manticore.training.batches import Collator
from manticore.training.classifiers import loading_class
from manticore.training.prepare import fit_to_task
from manticore.training.pretrain import pretrain, read_record
from manticore.writing import new_folder, write_json

MODEL = "model"
SUPERNET = "supernet (soft)"
HYBRID = "hybrid"


def execute(folder: RunFolder, reporter: Reporter | None = None) -> dict[str, Any]:
    """Do all stages of a run that are not done yet.

    Args:
        folder: new, or left by an interrupted run.
        reporter: told about every stage; None sends that to the log.

    Returns:
        The content of ``results.json``.

    Raises:
        ManticoreError: the folder is in use, or a stage cannot do its work.
    """
    reporter = reporter or LogReporter()
    with locked(folder.path):
        folder.begin_session()
        found: dict[str, Any] = {}

        def keep(parts: dict[str, Any], status: str = "running") -> None:
            found.update(parts)
            folder.write_results(found, status)
            write_history(folder.path, found)

        try:
            run_stages(folder.path, Pipeline(folder, reporter).stages(), reporter, keep)
        except KeyboardInterrupt:
            keep({}, "interrupted")
            raise
        except BaseException:
            keep({}, "failed")
            raise
        results = folder.write_results(found, "complete")
        if (folder.path / MODEL).is_dir():
            write_model_card(folder.path / MODEL, results)
        if folder.recipe.report is not None:
            write_report(folder.path)
        return results


class Pipeline:
    """The stages of one run."""

    def __init__(self, folder: RunFolder, reporter: Reporter | None = None) -> None:
        self.folder = folder
        self.path = folder.path
        self.recipe = folder.recipe
        self.reporter = reporter or LogReporter()

    def stages(self) -> list[Stage]:
        """What the recipe asks for, in order."""
        recipe = self.recipe
        names = " + ".join(component.name for component in recipe.components)
        stages = []
        if recipe.pretrain:
            plan = ", ".join(
                f"{entry.family} of {entry.layers} layers, width {entry.width}" for entry in recipe.pretrain
            )
            made = {"pretrain": [entry.model_dump(mode="json") for entry in recipe.pretrain]}
            stages.append(self._stage("pretrain", plan, made, self._pretrain))
        inputs: dict[str, Any] = {
            "components": [component.model_dump(mode="json") for component in recipe.components],
            "task": recipe.task.model_dump(mode="json"),
            "combine": recipe.combine.model_dump(mode="json"),
        }
        plan = f"{names}, {recipe.combine.num_blocks} blocks, {recipe.combine.mixing}"
        stages.append(self._stage("combine", plan, inputs, self._combine))
        if recipe.align is not None:
            plan = f"{recipe.align.tokens:,} tokens of {recipe.align.text}"
            stages.append(self._stage("align", plan, recipe.align, self._align))
        if recipe.search is not None:
            plan = f"{recipe.search.method}, {_amount(recipe.search)} on {recipe.task.name}{self._vocabulary()}"
            stages.append(self._stage("search", plan, recipe.search, self._search))
        inputs = {
            "path": recipe.discretize.path,
            "start": recipe.finetune.start,
            "test_examples": recipe.finetune.test_examples,
        }
        stages.append(self._stage("discretize", "one component per block", inputs, self._discretize))
        plan = f"{_amount(recipe.finetune)} on {recipe.task.name}{self._vocabulary()}"
        stages.append(self._stage("finetune", plan, recipe.finetune, self._finetune, self.path / MODEL))
        if recipe.compare is not None:
            plan = f"parents and hybrids at equal compute, seeds {', '.join(map(str, recipe.compare.seeds))}"
            stages.append(self._stage("compare", plan, recipe.compare, self._compare))
        return stages

    def _vocabulary(self) -> str:
        """What becomes of the components' vocabulary, where it does not stay."""
        return "" if reads_tokenizer(self.recipe.task.name) else " (its own vocabulary: fresh embeddings and heads)"

    def _stage(
        self, name: str, plan: str, inputs: Settings | Mapping[str, Any], work: Any, product: Path | None = None
    ) -> Stage:
        asked = inputs.model_dump(mode="json") if isinstance(inputs, Settings) else inputs
        determined = {"asked": asked, "seed": self.recipe.seed, "version": manticore.__version__}
        return Stage(name, plan, determined, work, product)

    # What stages share

    @cached_property
    def pretrained(self) -> dict[str, str]:
        """Folder of each model that the recipe pretrains."""
        made: dict[str, str] = {}
        for index, entry in enumerate(self.recipe.pretrain):
            # in the cache since the first stage, and made again if it was emptied
            settings = entry.model_dump(exclude={"name"})
            made[entry.name] = str(pretrain(**settings, index=index, progress=self._progress(entry.name)))
        return made

    @cached_property
    def sources(self) -> list[str]:
        """Folder or hub id of each component."""
        made = self.pretrained
        return [made.get(component.source, component.source) for component in self.recipe.components]

    @cached_property
    def task(self) -> Task:
        """The task, read with the tokenizer that the hybrid keeps."""
        owner = self._tokenizer_component or 0
        tokenizer = load_tokenizer(self.sources[owner], revision=self.recipe.components[owner].revision)
        choice = self.recipe.task
        return load_task(choice.name, tokenizer=tokenizer, seed=self.recipe.seed, **choice.options)

    @property
    def _tokenizer_component(self) -> int | None:
        """The component that the recipe takes the tokenizer from."""
        chosen = self.recipe.combine.tokenizer
        return None if chosen is None else [component.name for component in self.recipe.components].index(chosen)

    @property
    def fresh_at_once(self) -> bool:
        """Whether the hybrid gets the task's vocabulary when it is combined: where no text is to be read before."""
        align = self.recipe.align
        return self.task.vocab_size is not None and (align is None or align.text == "task")

    def aligned(self, seed: int) -> ManticorePreTrainedModel:
        """The supernet before any training on the task, with the vocabulary and the heads that the task needs.

        Args:
            seed: of fresh embeddings and heads.
        """
        stage = "combine" if self.recipe.align is None else "align"
        return fit_to_task(load_hybrid(self.path / stage / MODEL), self.task, seed)  # type: ignore[return-value]

    def searched(self) -> ManticorePreTrainedModel:
        """The supernet after the search; where there was none, before."""
        if self.recipe.search is None:
            return self.aligned(self.recipe.seed)
        return load_hybrid(self.path / "search" / MODEL)

    def discrete(self, path: list[int], seed: int) -> ManticorePreTrainedModel:
        """The hybrid of a path before its fine-tuning.

        Args:
            path: one component index per block.
            seed: of fresh embeddings and heads, where it starts from aligned weights.
        """
        return manticore.discretize(self.soft(seed), path)

    def soft(self, seed: int) -> ManticorePreTrainedModel:
        """The supernet before its fine-tuning: the weights that the search found, on what it started from or left.

        Args:
            seed: of fresh embeddings and heads, where it starts from aligned weights.
        """
        searched = self.searched()
        if self.recipe.finetune.start == "searched":
            return searched
        hybrid = self.aligned(seed)
        hybrid.mixing.adopt_mixture(searched.mixing)
        return hybrid

    def _parents(self, ensemble: bool) -> dict[str, Any]:
        """The components alone; those that were re-embedded as they are then, where the task is read with a tokenizer.

        Args:
            ensemble: add the average of their logits where ``compare`` could not, since tokenizers differ.
        """
        models: dict[str, Any] = {
            component.name: str(model_folder(source, component.revision) or source)
            for component, source in zip(self.recipe.components, self.sources)
        }
        if self._tokenizer_component is None or self.task.vocab_size is not None:
            return models
        hybrid = ManticoreForCausalLM.from_pretrained(self.path / "combine" / MODEL)
        if hybrid.config.reembedded is None:
            return models
        components = [hybrid.component(k) for k in range(len(models))]
        for name, component, matched in zip(models, components, hybrid.config.reembedded):
            if matched is not None:
                models[name] = component
        if ensemble:
            models[ENSEMBLE] = lambda seed: averaged(components, self.task, tokenizer=hybrid.tokenizer, seed=seed)
        return models

    def _progress(self, what: str) -> Any:
        return lambda step, steps, row: self.reporter.progress(what, step, steps, row.get("loss"))

    # The stages

    def _pretrain(self, own: Path) -> Outcome:
        found = []
        for entry in self.recipe.pretrain:
            record = read_record(self.pretrained[entry.name])
            loss = record["heldout"].get("loss")
            found.append({"name": entry.name, "tokens": record["tokens"], "heldout_loss": loss})
        said = ", ".join(
            f"{one['name']} {'first weights' if one['heldout_loss'] is None else format(one['heldout_loss'], '.3f')}"
            for one in found
        )
        folder = Path(next(iter(self.pretrained.values()))).parent
        return Outcome({"pretrain": {one["name"]: one for one in found}}, f"held-out loss: {said}; in {folder}")

    def _combine(self, own: Path) -> Outcome:
        recipe = self.recipe
        hybrid = manticore.combine(
            self.sources,
            revisions=[component.revision for component in recipe.components],
            vocab_size=self.task.vocab_size if self.fresh_at_once else None,
            seed=recipe.seed,
            **{**recipe.combine.model_dump(), "tokenizer": self._tokenizer_component},
        )
        lineages = [
            model_lineage(source, component.revision) for source, component in zip(self.sources, recipe.components)
        ]
        write_json(self.path / "lineage.json", {"models": lineages, "data": data_lineage(self.task)})
        _save(hybrid, own)
        components = [
            component_record(component, hybrid.component(k), lineages[k])
            for k, component in enumerate(recipe.components)
        ]
        combined = {
            "num_blocks": recipe.combine.num_blocks,
            "mixing": recipe.combine.mixing,
            "projector": recipe.combine.projector,
            "boundaries": hybrid.config.boundaries,
        }
        if hybrid.config.reembedded is not None:
            combined["tokenizer"] = recipe.combine.tokenizer
            combined["reembedded"] = hybrid.config.reembedded
        sizes = " + ".join(f"{record['parameters']:,}" for record in components)
        task = task_record(self.task, recipe.task.options, test_examples=recipe.finetune.test_examples)
        results = {"components": components, "task": task, "combine": combined}
        return Outcome(results, f"{sizes} parameters")

    def _align(self, own: Path) -> Outcome:
        section = self.recipe.align
        if section is None:
            return Outcome({}, "left out")
        hybrid = ManticoreForCausalLM.from_pretrained(self.path / "combine" / MODEL)
        settings = section.model_dump()
        if section.text == "task":
            settings["text"] = self._task_text()
        report = manticore.align(hybrid, seed=self.recipe.seed, progress=self._progress("align"), **settings)
        _save(hybrid, own)
        found = {"text": section.text, **report.to_dict()}
        return Outcome({"align": found}, f"loss {found['loss_before']:.3f} before, {found['loss_after']:.3f} after")

    def _task_text(self) -> Dataset:
        """Its training rows with what they ask for, so that losses and gradient steps are the task's own.

        Rows of a task with classes ask for nothing that a language model could say; they are text like any other.
        """
        train = self.task.data["train"]
        if self.task.num_classes is not None:
            wanted = self.recipe.align.tokens // self.task.length if self.recipe.align is not None else 0
            rows = train.select(range(min(len(train), max(2, wanted))))
            batch = Collator(self.task.length)(list(rows.with_format("numpy")))
            columns = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
            return Dataset.from_dict(columns).with_format("torch")
        return train.select_columns([n for n in ("input_ids", "targets", "attention_mask") if n in train.column_names])

    def _search(self, own: Path) -> Outcome:
        section = self.recipe.search
        if section is None:
            return Outcome({}, "left out")
        result = manticore.search(
            self.aligned(self.recipe.seed),
            self.task,
            section,
            seed=self.recipe.seed,
            out=own,
            resume=True,
            progress=self._progress("search"),
        )
        _save(result.model, own)
        found = {"method": section.method, "order": section.order, **result.to_dict()}
        return Outcome({"search": found}, f"path {self._path_text(result.path)}")

    def _discretize(self, own: Path) -> Outcome:
        searched = self.searched()
        path = self.recipe.discretize.path or manticore.discretize(searched).config.path
        small = self.discrete(path, self.recipe.seed)
        _save(small, own)
        scored = self.recipe.finetune.test_examples
        before = manticore.evaluate(searched, self.task, max_examples=scored)
        after = manticore.evaluate(manticore.discretize(searched, path), self.task, max_examples=scored)
        metric = self.task.primary_metric
        found = {
            "path": path,
            "loss_before": before["loss"],
            "loss_after": after["loss"],
            "metric_before": before[metric],
            "metric_after": after[metric],
        }
        summary = f"{self._path_text(path)}, loss {before['loss']:.3f} soft, {after['loss']:.3f} discrete"
        return Outcome({"discretize": found}, summary)

    def _finetune(self, own: Path) -> Outcome:
        section = self.recipe.finetune
        result = manticore.finetune(
            load_hybrid(self.path / "discretize" / MODEL),
            self.task,
            section,
            seed=self.recipe.seed,
            out=own,
            resume=True,
            progress=self._progress("finetune"),
        )
        _save(result.model, own)
        self.folder.replace(MODEL, own / MODEL)
        metric = self.task.primary_metric
        results = {
            "finetune": result.to_dict(),
            "discretize": {"loss_finetuned": result.metrics["loss"], "metric_finetuned": result.metrics[metric]},
            "model": {"path": MODEL, "loads_with": loading_class(result.model)},
        }
        return Outcome(results, f"{metric} {result.metrics[metric]:.3f} after {result.steps} steps")

    def _compare(self, own: Path) -> Outcome:
        section, tuning = self.recipe.compare, self.recipe.finetune
        if section is None:
            return Outcome({}, "left out")
        found = {stage: self._found(stage) for stage in ("align", "search", "discretize", "finetune")}
        path = found["discretize"]["path"]
        searching = found["align"].get("flops", 0) + found["search"].get("flops", 0)
        models = self._parents(section.ensemble)
        models[SUPERNET] = self.soft
        models[HYBRID] = lambda seed: self.discrete(path, seed)
        comparison = manticore.compare(
            models,
            self.task,
            # as the hybrid was trained, to the last option
            Compare(
                **tuning.shared(),
                **{**dict(section), "learning_rates": section.learning_rates or [tuning.lr]},
                budget_flops=found["finetune"]["flops"],
                test_examples=tuning.test_examples,
            ),
            spent_flops={SUPERNET: searching, HYBRID: searching},
            out=own,
            resume=True,
            progress=lambda done, runs, what: self.reporter.progress(what.split(" · ")[0], done, runs, None),
        )
        metric = comparison.primary_metric
        scores = ", ".join(f"{row.model} {row.mean:.3f}" for row in comparison.rows if row.budget == 0)
        table = comparison.to_dict()
        kept = {name: table[name] for name in ("budgets", "rows", "untrained", "notes")}
        return Outcome({"compare": kept}, f"{metric}: {scores}")

    def _found(self, stage: str) -> dict[str, Any]:
        """What a stage that is done has put into the results; nothing if the recipe leaves it out."""
        return results_of(self.path / stage).get(stage, {})

    def _path_text(self, path: list[int]) -> str:
        return " → ".join(self.recipe.components[index].name for index in path)


def _save(model: Any, own: Path) -> None:
    """Write a stage's model, over what an interrupted attempt may have left."""
    shutil.rmtree(own / MODEL, ignore_errors=True)
    with new_folder(own / MODEL) as folder:
        model.save_pretrained(folder)


def _amount(section: Any) -> str:
    if section.budget_flops is not None:
        return f"{section.budget_flops:.3g} FLOPs"
    return f"{section.steps} steps" if section.steps is not None else "the default number of steps"
