"""Put the components side by side, block by block, into one hybrid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import manticore
from manticore import settings
from manticore.file_names import LINEAGE
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.commands import FROM_SCRATCH, search_command, words_for
from manticore.stages.records import Record, Weights
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan
from manticore.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.hybrid.pretrained import ManticorePreTrainedModel
    from manticore.plan.costing import Costing
    from manticore.schema.sections import Component
    from manticore.tasks.task import Task


_PIECES, _PIECE_TOKENS = 4, 128
"""What the report shows of weights that follow the text."""
_LINE_ENDS = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class ComponentRecord(Record):
    name: str = ""
    source: str = ""
    revision: str | None = None
    """Commit on the hub, or what was asked for there."""
    family: str = ""
    parameters: int | None = None
    layers: int | None = None
    width: int | None = None
    license: str | None = None
    sha256: str | None = None
    dequantized_from: str | None = None
    """The quantisation that its weights came out of."""

    @classmethod
    def of(cls, component: Component, model: PreTrainedModel, lineage: Mapping[str, Any]) -> dict[str, Any]:
        """What a component of a recipe is."""
        return cls.written(
            name=component.name,
            source=component.source,
            revision=lineage["commit"] or component.revision,
            family=model.config.model_type,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layers=model.config.num_hidden_layers,
            width=model.config.hidden_size,
            license=lineage["license"],
            sha256=lineage["sha256"],
            dequantized_from=getattr(model.config, "dequantized_from", None),
        )


def beginning(bos: str | None) -> str:
    """What a pack of text begins with, in words; empty where nothing is known of it."""
    return "" if bos is None else f"every pack begins with {bos}" if bos else "packs begin without BOS"


@dataclass(frozen=True)
class TaskInfo(Record):
    name: str = ""
    primary_metric: str = "loss"
    higher_is_better: bool = False
    chance: float | None = None
    """What a uniform guess scores on the primary metric."""
    options: dict[str, str] = field(default_factory=dict)
    """What was chosen, as it would stand in a command."""
    examples: dict[str, int | None] = field(default_factory=dict)
    """Split → number of examples."""
    scored: int | None = None
    """Examples of the test split that scores are of; None: the record does not say."""
    length: int | None = None
    """Tokens per example, padding included."""
    bos: str | None = None
    """The token that every example of text begins with, empty for none; None for other tasks and older runs."""

    @property
    def beginning(self) -> str:
        """What an example of text begins with, in words; empty for other tasks and older runs."""
        return beginning(self.bos)

    @classmethod
    def of(cls, task: Task, options: Mapping[str, Any], *, test_examples: int | None = None) -> dict[str, Any]:
        """What a task is, how much data it has and how it is scored.

        Args:
            task: as it was loaded.
            options: those it was loaded with.
            test_examples: as many of the test split are scored; None: all.
        """
        examples = {str(split): len(rows) for split, rows in task.data.items()}
        return cls.written(
            name=task.name,
            options={n: json.dumps(v) if isinstance(v, Mapping) else str(v) for n, v in options.items()},
            examples=examples,
            scored=min(examples["test"], test_examples or examples["test"]),
            length=task.length,
            bos=task.bos,
            primary_metric=task.primary_metric,
            higher_is_better=task.higher_is_better,
            chance=task.chance,
        )


@dataclass(frozen=True)
class Reembedded(Record):
    tokens: int | None = None
    exact: int | None = None
    role: int | None = None
    pieces: int | None = None
    none: int | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class WeighedText(Record):
    """A piece of held-out text, and the weights of the components' predictions along it."""

    tokens: tuple[str, ...] = ()
    """What each stands for."""
    weights: Weights = ()
    """``[T, K]``, after each token."""


@dataclass(frozen=True)
class CombineRecord(Record):
    num_blocks: int | None = None
    mixing: str = ""
    output: str = "logits"
    """How the components' predictions become one."""
    forgetting: float = 0.0
    drop_below: float | None = None
    drop_after: int = 0
    texts: tuple[WeighedText, ...] = ()
    """Where weights follow the text: pieces of the task's validation split."""
    projector: str = ""
    boundaries: tuple[tuple[int, ...], ...] = ()
    """Per component N+1 layer indices: block n holds layers ``boundaries[k][n]`` to ``boundaries[k][n+1] - 1``."""
    fresh: tuple[int, ...] = ()
    """Components that were made beside another one: no parents."""
    feature_spaces: tuple[int, ...] = ()
    """Per component the first one that shares its feature space; empty where all are apart."""
    tokenizer: str = ""
    """The component whose tokenizer was kept, where they differ."""
    reembedded: tuple[Reembedded | None, ...] = ()
    """Per component what the kept tokenizer's rows were made of; None where nothing was to be done."""


def predicts(combine: CombineRecord) -> str:
    """How a soft hybrid's prediction comes about, in a sentence; empty where nobody has said."""
    forgets = f", of which the share {combine.forgetting:g} is forgotten per token" if combine.forgetting else ""
    return {
        "logits": "Its logits are the weighted mean of theirs.",
        "probabilities": "Its prediction is the weighted mean of theirs.",
        "bayes": "Its prediction is the mean of theirs, each weighed by how likely it has found the text so far"
        f"{forgets} (Bayesian interpolation).{_dropping(combine)}",
        "gate": "Its prediction is the mean of theirs, weighed by a linear gate on the features of each token.",
    }.get(combine.output, "")


def _dropping(combine: CombineRecord) -> str:
    if combine.drop_below is None:
        return ""
    return (
        f" One whose weight is below {combine.drop_below:g} after {combine.drop_after} tokens or more reads no further."
    )


def weighed_texts(hybrid: Any, task: Task) -> list[dict[str, Any]]:
    """The first pieces of the validation split, with the weights along them; none where the weights are constant."""
    import torch

    tokenizer = hybrid.tokenizer
    if tokenizer is None or task.vocab_size is not None or not hybrid.output.varies:
        return []
    hybrid.eval()
    rows, texts = task.data["validation"][:_PIECES]["input_ids"], []
    for row in rows:
        ids = torch.as_tensor(row)[None, :_PIECE_TOKENS]
        with torch.no_grad():
            weights = hybrid(ids.to(hybrid.device), output_weights=True).output_weights[0]
        shown = [str(tokenizer.decode([token])).translate(_LINE_ENDS) for token in ids[0].tolist()]
        texts.append(WeighedText.written(tokens=shown, weights=[[round(w, 4) for w in at] for at in weights.tolist()]))
    return texts


class Combine(Stage):
    name = "combine"

    def plan_line(self, recipe: Recipe) -> str:
        names = " + ".join(component.name for component in recipe.components)
        output = "" if recipe.combine.output == "logits" else f", output {recipe.combine.output}"
        cuts = "" if recipe.combine.boundaries is None else " with given boundaries"
        return f"{names}, {recipe.combine.num_blocks} blocks{cuts}, {recipe.combine.mixing}{output}"

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        absent = {"boundaries"} if recipe.combine.boundaries is None else set()
        return {
            "components": [component.model_dump(mode="json") for component in recipe.components],
            "task": recipe.task.model_dump(mode="json"),
            # runs from before boundaries could be given go on
            "combine": recipe.combine.model_dump(mode="json", exclude=absent),
        }

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        # all components, and the file of the largest while it is read
        weights = [count * costing.shape.dtype.itemsize for count in costing.skeleton.own_parameters]
        costing.save_model(costing.tuned["supernet"].held)
        fix = "larger devices, or combine.dtype=bfloat16"
        yield costing.judged(self.name, "loading included", float(sum(weights) + max(weights)), fix)

    def work(self, run: Run, folder: Path) -> Outcome:
        recipe, align = run.recipe, run.recipe.align
        # the task's own vocabulary is there at once, unless text is to be read before
        fresh = align is None or align.text == "task"
        hybrid = manticore.combine(
            run.sources,
            recipe.combine,
            tokenizer=run.tokenizer_component,
            revisions=[component.revision for component in recipe.components],
            vocab_size=run.task.vocab_size if fresh else None,
            seed=recipe.seed,
        )
        lineages = run.lineages()
        write_json(run.path / LINEAGE, {"models": lineages, "data": run.data_lineage})
        run.save(hybrid, folder)
        components = [
            ComponentRecord.of(component, hybrid.component(k), lineages[k])
            for k, component in enumerate(recipe.components)
        ]
        section, config = recipe.combine, hybrid.config
        same = ("num_blocks", "mixing", "output", "forgetting", "drop_below", "drop_after", "projector")
        combined = {name: getattr(section, name) for name in same}
        if hybrid.output.follows_text:
            combined["texts"] = weighed_texts(hybrid, run.task)
        if config.reembedded is not None:
            combined |= {"tokenizer": section.tokenizer, "reembedded": config.reembedded}
        if config.feature_spaces is not None:
            combined |= {"feature_spaces": config.feature_spaces, "fresh": sorted(config.fresh)}
        combined = CombineRecord.written(boundaries=config.boundaries, **combined)
        sizes = " + ".join(f"{record['parameters']:,}" for record in components)
        task = TaskInfo.of(run.task, recipe.task.options, test_examples=recipe.finetune.test_examples)
        results = {"components": components, "task": task, "combine": combined}
        return Outcome(results, f"{sizes} parameters")

    def next_command(self, out: str, hybrid: ManticorePreTrainedModel, task: str | None) -> str:
        """Search where it reads no text to be aligned on or nothing translates, else align.

        Args:
            out: folder of the hybrid.
            hybrid: what was combined.
            task: words of the task that it was combined for, if for one.
        """
        from manticore.training.prepare import positions

        if hybrid.tokenizer is None:
            return search_command(out, task or FROM_SCRATCH)
        if hybrid.config.released or not hybrid.mixing.translations():
            return search_command(out, words_for(hybrid))
        limit, default = positions(hybrid), settings.Align().length
        shorter = f" --length {limit}" if limit is not None and limit < default else ""
        return f"manticore align {quote(out)}{shorter} -o {quote(out + '-aligned')}"
