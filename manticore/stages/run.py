"""What the stages of one run share: the recipe, the run folder, and models from the folders of earlier stages.

Every stage reads models from there, never from memory, so that a resumed run and an uninterrupted one see the same
bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manticore
from manticore import settings
from manticore.branches import Branch
from manticore.cache import content_key
from manticore.file_names import MODEL
from manticore.runs.ledger import Digests
from manticore.runs.reporter import LogReporter, Reporter
from manticore.runs.stages import DIGESTS, results_of
from manticore.schema.options import trains_candidates
from manticore.writing import new_folder

if TYPE_CHECKING:
    from manticore.hybrid.pretrained import ManticorePreTrainedModel
    from manticore.runs.folder import RunFolder
    from manticore.tasks.task import Task


class Run:
    """One run, as its stages see it.

    Args:
        folder: the run folder, with the recipe.
        reporter: told about every step; None sends that to the log.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter | None = None) -> None:
        self.folder = folder
        self.path = folder.path
        self.recipe = folder.recipe
        self.reporter = reporter or LogReporter()
        self.digests = Digests(self.path / DIGESTS)

    def lineages(self) -> list[dict[str, Any]]:
        """Digests and licence of each component's files, as they are now."""
        from manticore.runs.lineage import model_lineage

        components = self.recipe.components
        return [model_lineage(s, c.revision, self.digests.of) for s, c in zip(self.sources, components)]

    @cached_property
    def data_lineage(self) -> dict[str, str]:
        """Digest of each of the task's splits."""
        from manticore.runs.lineage import data_lineage

        return data_lineage(self.task)

    def read(self) -> dict[str, str | None]:
        """Digests of what stages read from outside: components' files, the task's data, the text to align on."""
        from manticore.components.checkpoint_folder import gguf_file
        from manticore.hybrid.found import found_by
        from manticore.runs.lineage import model_lineage
        from manticore.tasks.text_sources import find_text

        names = [component.name for component in self.recipe.components]
        read = {f"weights of {name}": lineage["sha256"] for name, lineage in zip(names, self.lineages())}
        read |= {f"data, {split}": digest for split, digest in self.data_lineage.items()}
        if self.recipe.align is not None and self.recipe.align.text != "task":
            files = find_text(self.recipe.align.text).files
            read["data, text to align on"] = content_key([self.digests.of(file) for file in files])
        taught = self.recipe.distill
        if taught is not None and (Path(taught.teacher).is_dir() or gguf_file(taught.teacher) is not None):
            read["weights of the teacher"] = model_lineage(taught.teacher, None, self.digests.of)["sha256"]
        for section in (self.recipe.search, self.recipe.discretize):
            if section is not None and section.weights_from is not None:
                found = found_by(section.weights_from, "run")
                read[f"found in {section.weights_from}"] = content_key([found.path, found.weights.tolist()])
        return read

    @cached_property
    def pretrained(self) -> dict[str, str]:
        """Folder of each model that the recipe pretrains."""
        made: dict[str, str] = {}
        for index, entry in enumerate(self.recipe.pretrain):
            # in the cache since the first stage, and made again if it was emptied
            folder = manticore.pretrain(entry.family, entry, index=index, progress=self.progress(entry.name))
            made[entry.name] = str(folder)
        return made

    @cached_property
    def sources(self) -> list[str]:
        """Folder or hub id of each component."""
        made = self.pretrained
        return [made.get(component.source, component.source) for component in self.recipe.components]

    @cached_property
    def task(self) -> Task:
        """The task, read with the tokenizer that the hybrid keeps."""
        return self._task({})

    @property
    def search_task(self) -> Task:
        """What candidates of the search train on: the task, or a cheaper one of its kind."""
        search = self.recipe.search
        return self._task(search.task_options) if search is not None and search.task_options else self.task

    def _task(self, options: Mapping[str, Any]) -> Task:
        from manticore.components.loading import load_tokenizer
        from manticore.tasks.task import load_task

        owner = self.tokenizer_component or 0
        if (branch := Branch.read(self.sources).get(owner)) is not None:
            owner = branch.of
        tokenizer = load_tokenizer(self.sources[owner], revision=self.recipe.components[owner].revision)
        choice = self.recipe.task
        return load_task(choice.name, tokenizer=tokenizer, seed=self.recipe.seed, **{**choice.options, **options})

    @property
    def tokenizer_component(self) -> int | None:
        """The component that the recipe takes the tokenizer from."""
        chosen = self.recipe.combine.tokenizer
        return None if chosen is None else [component.name for component in self.recipe.components].index(chosen)

    def aligned(self, seed: int, task: Task | None = None) -> ManticorePreTrainedModel:
        """The supernet before any training on a task, with the vocabulary and the heads that it needs.

        Args:
            seed: of fresh embeddings and heads.
            task: None for the recipe's.
        """
        from manticore.training.prepare import fit_to_task
        from manticore.training.saved_models import load_hybrid

        stage = "combine" if self.recipe.align is None else "align"
        return fit_to_task(load_hybrid(self.path / stage / MODEL), task or self.task, seed)  # type: ignore[return-value]

    @property
    def by_candidates(self) -> bool:
        """Whether the search trains candidates, so that it leaves a path that is partly trained, and no supernet."""
        return self.recipe.search is not None and trains_candidates(self.recipe.search.method)

    def searched(self) -> ManticorePreTrainedModel:
        """What the search has left: the supernet, or the path that it found; where there was none, the supernet."""
        from manticore.training.saved_models import load_hybrid

        if self.recipe.search is None:
            return self.aligned(self.recipe.seed)
        return load_hybrid(self.path / "search" / MODEL)

    def begun(self, path: list[int]) -> Path | None:
        """The checkpoints of the training of a path that the search has begun and fine-tuning goes on with.

        None where the search has chosen another path, or trains in another way than fine-tuning does, or where the path
        is distilled from its beginning.
        """
        from manticore.search.objective import place

        if (
            self.recipe.distill is not None
            or not self.by_candidates
            or not self.recipe.alike
            or self.results_of("search")["path"] != path
        ):
            return None
        found = place(self.path / "search", path)
        return found if found.is_dir() else None

    def unit_flops(self, task: Task, training: settings.OneTraining) -> int:
        """What the recipe's fine-tuning costs on a task, by the costliest parent where it is given in steps.

        Args:
            task: the recipe's, or a cheaper one.
            training: whose batches are counted: fine-tuning's, or the search's.
        """
        from manticore.search.objective import Objective, tuning

        section = self.recipe.finetune
        if section.budget_flops is not None:
            return int(section.budget_flops)
        steps, supernet = section.steps or section.default_steps, self.aligned(self.recipe.seed, task)
        return steps * Objective(supernet, task, tuning(training), 1, self.path).costliest_step

    def discrete(self, path: list[int], seed: int) -> ManticorePreTrainedModel:
        """The hybrid of a path before its fine-tuning.

        Args:
            path: one component index per block.
            seed: of fresh embeddings and heads, where it starts from aligned weights.
        """
        return manticore.discretize(self.soft(seed), path)

    def student(self, path: list[int], seed: int) -> ManticorePreTrainedModel:
        """The hybrid of a path that fine-tuning begins with: where the recipe distils, the same one for every seed."""
        from manticore.training.saved_models import load_hybrid

        return self.discrete(path, seed) if self.recipe.distill is None else load_hybrid(self.path / "distill" / MODEL)

    def soft(self, seed: int) -> ManticorePreTrainedModel:
        """The supernet before its fine-tuning: the weights that the search found, on what it started from or left.

        Args:
            seed: of fresh embeddings and heads, where it starts from aligned weights.
        """
        if self.by_candidates:
            return self.aligned(seed)
        searched = self.searched()
        if self.recipe.finetune.start == "searched":
            return searched
        hybrid = self.aligned(seed)
        hybrid.mixing.adopt_mixture(searched.mixing)
        return hybrid

    def progress(self, what: str) -> Callable[[int, int, dict[str, Any]], None]:
        """What a training tells about its steps, for the reporter."""
        return lambda step, steps, row: self.reporter.progress(what, step, steps, row.get("loss"))

    def results_of(self, stage: str) -> dict[str, Any]:
        """What a stage that is done has put into the results; empty if the recipe leaves it out."""
        found: dict[str, Any] = results_of(self.path / stage).get(stage, {})
        return found

    @property
    def fresh(self) -> list[int]:
        """Components that are no parents, since they were made beside one."""
        found: list[int] = self.results_of("combine").get("fresh", [])
        return found

    def path_text(self, path: list[int]) -> str:
        """The components that the blocks of a path keep, by name."""
        return " → ".join(self.recipe.components[index].name for index in path)

    @staticmethod
    def save(model: Any, folder: Path) -> None:
        """Write a stage's model, over what an interrupted attempt may have left."""
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        with new_folder(folder / MODEL) as made:
            model.save_pretrained(made)
