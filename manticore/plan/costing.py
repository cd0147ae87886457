"""What the stages of a recipe cost: the supernet and its paths measured on tensors without data.

Each stage says by itself what it computes (its ``cost``); here is what they ask for, and what they add up to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.components.masters import is_half
from manticore.hybrid.found import chosen_elsewhere
from manticore.plan.cases import Case, Cases, Setting
from manticore.plan.fit import Fit, fit, way_out
from manticore.plan.memory import ADAMW_TENSORS, Inventory
from manticore.plan.paths import path_ends
from manticore.plan.skeleton import Shape, Skeleton
from manticore.plan.sources import Source, find_larger, find_sources
from manticore.schema.recipe import SHARED, Recipe
from manticore.settings import OneTraining
from manticore.stages.stage import StagePlan
from manticore.tasks.shape import task_shape
from manticore.training.precision import computes_in_bfloat16

_KEPT_CHECKPOINTS = 2
_ALTERNATIVES = (("all", False), ("all", True), ("lora", False), ("lora", True))


def shape_of(recipe: Recipe, sources: Sequence[Source]) -> Shape:
    """How a recipe joins its components, in the type that combining them gives."""
    combine = recipe.combine
    if combine.dtype is not None:
        dtype = getattr(torch, combine.dtype)
    else:
        found = {source.config.dtype or torch.float32 for source in sources}
        dtype = found.pop() if len(found) == 1 else torch.float32
    options = dict(combine.projector_options)
    assert combine.mixing is not None
    assert combine.forgetting is not None
    how = combine.mixing, combine.released, combine.projector, options, dtype, combine.output, combine.forgetting
    return Shape(combine.num_blocks, *how, boundaries=combine.boundaries)


class Costing:
    """A recipe laid out without data.

    Args:
        recipe: checked.
        devices: how many share the work.
        memory: bytes of each that tensors may have.
        accelerator: whether the devices are accelerators that compute in bfloat16.
        beside: another recipe of the same components, joined in the same way, laid out before.
    """

    def __init__(
        self, recipe: Recipe, *, devices: int, memory: float, accelerator: bool, beside: Costing | None = None
    ) -> None:
        self.recipe, self.devices, self.memory, self.accelerator = recipe, devices, memory, accelerator
        self.sources: list[Source] = find_sources(recipe) if beside is None else beside.sources
        self.task = task_shape(recipe.task)
        self.shape = shape_of(recipe, self.sources)
        self.mode: FakeTensorMode = FakeTensorMode(allow_non_fake_inputs=True) if beside is None else beside.mode
        self._tuple_sizes: dict[str, list[int]] = {} if beside is None else beside._tuple_sizes
        self.skeleton: Skeleton
        if beside is not None and beside.task.vocab_size == self.task.vocab_size:
            self.skeleton = beside.skeleton
        else:
            self.skeleton = self.lay_out(self.sources, self.shape, self.task.vocab_size)
        self.cases = Cases(self.skeleton, self.mode, lora_rank=recipe.finetune.lora_rank)
        self.problems: list[str] = []
        self.stages: list[StagePlan] = []
        """Those before the one that is asked."""
        self.fits: dict[str, list[Fit]] = {}
        """Per training stage, what every setting takes."""
        self.disk_bytes = 0.0

    def of_candidates(self) -> Costing:
        """The same recipe with fine-tuning as candidates of its search train, on what they train on."""
        search, recipe = self.recipe.search, self.recipe
        if search is None or recipe.alike:
            return self
        tuning = recipe.finetune.model_copy(update={name: getattr(search, name) for name in SHARED})
        task = recipe.task.model_copy(update={"options": {**recipe.task.options, **search.task_options}})
        recipe = recipe.model_copy(update={"finetune": tuning, "task": task})
        return Costing(recipe, devices=self.devices, memory=self.memory, accelerator=self.accelerator, beside=self)

    @cached_property
    def larger(self) -> Case | None:
        """Fine-tuning the larger single model that a comparison shows, if there is one."""
        source = find_larger(self.recipe)
        if source is None:
            return None
        dtype: Any = source.config.dtype or torch.float32
        shape = Shape(1, "translated", False, "linear", {}, dtype)
        skeleton = self.lay_out([source, source], shape, self.task.vocab_size)
        tuning = self.recipe.finetune
        return Cases(skeleton, self.mode, lora_rank=tuning.lora_rank).measure(
            self.tuning, [0],
            batch_size=tuning.batch_size * self.task.sequences, accumulation=tuning.accumulation,
            length=self.task.length, mixture=False,
        )  # fmt: skip

    def lay_out(self, sources: Sequence[Source], shape: Shape, vocab_size: int | None) -> Skeleton:
        """Components side by side, without data."""
        names, configs = [source.name for source in sources], [source.config for source in sources]
        return Skeleton(names, configs, shape, vocab_size, self.mode, self._tuple_sizes)

    def setting(self, section: OneTraining) -> Setting:
        """How a section trains."""
        autocast = computes_in_bfloat16(
            section.dtype, bf16=section.bf16, half=is_half(self.shape.dtype), accelerator=self.accelerator
        )
        return Setting(section.trainable, section.gradient_checkpointing, autocast, section.dtype)

    def alone(self, source: Source) -> Skeleton:
        """A component by itself: the only one on the path of a hybrid of one block."""
        return self.lay_out([source, source], Shape(1, "translated", False, "linear", {}, torch.float32), None)

    def without_mixture(
        self,
        skeleton: Skeleton,
        trainable: str,
        path: list[int] | None,
        *,
        batch_size: int,
        length: int,
        dtype: str | None = "auto",
    ) -> tuple[Cases, Case]:
        """A training of any skeleton that leaves mixture weights as they are."""
        cases = Cases(skeleton, self.mode, lora_rank=8)
        setting = Setting(trainable, False, False, dtype)
        return cases, cases.measure(setting, path, batch_size=batch_size, length=length, mixture=False)

    def alone_flops(self, supernet: Case, spaces: Iterable[tuple[int, int]]) -> float:
        """Of one example: components that run alone up to the last boundary at which they are read, without heads.

        Args:
            supernet: measured in any setting.
            spaces: (component, boundary) pairs.
        """
        spaces, boundaries = list(spaces), self.skeleton.hybrid.config.boundaries
        flops = 0.0
        for k in {k for k, _ in spaces}:
            deepest = boundaries[k][max(n for m, n in spaces if m == k)]
            layers = [part.piece.forward_flops for part in supernet.parts if part.unit.startswith(f"{k}.")]
            flops += sum(layers[:deepest]) + supernet.parts[k].piece.forward_flops
        return flops / supernet.micro_batch

    @cached_property
    def tuning(self) -> Setting:
        """How fine-tuning trains."""
        return self.setting(self.recipe.finetune)

    @cached_property
    def paths(self) -> dict[str, list[int]]:
        """The paths with the fewest and the most FLOPs; the recipe's own where it names one; none if it stays soft."""
        if self.recipe.discretize is None:
            return {}
        config = self.skeleton.hybrid.config
        given = chosen_elsewhere(self.recipe.discretize, config)
        if given is not None:
            return dict.fromkeys(("cheapest", "costliest"), given)
        widths = [component.hidden_size for component in config.components]
        cheapest, costliest = path_ends(self.tuned_path, config.boundaries, widths, config.spaces)
        return {"cheapest": cheapest, "costliest": costliest}

    def tuned_path(self, path: Sequence[int]) -> Case:
        """Fine-tuning one path."""
        return self.measure("finetune", self.tuning, path)

    @cached_property
    def tuned(self) -> dict[str, Case]:
        """Fine-tuning the supernet, and the paths; where it stays soft, that is all there is."""
        supernet = self.measure("finetune", self.tuning, None)
        paths = {name: self.measure("finetune", self.tuning, path) for name, path in self.paths.items()}
        return {"supernet": supernet, "costliest": supernet, **paths}

    def measure(self, section: str, setting: Setting, path: Sequence[int] | None) -> Case:
        """With a section's batches."""
        chosen = getattr(self.recipe, section)
        return self.cases.measure(
            setting, path,
            batch_size=chosen.batch_size * self.task.sequences, accumulation=chosen.accumulation,
            length=self.task.length,
            mixture=section == "search" or self._alike(),
        )  # fmt: skip

    def _alike(self) -> bool:
        """Whether search and finetune have the same batches, so that one measurement serves both."""
        search, tuning = self.recipe.search, self.recipe.finetune
        return search is not None and (search.batch_size, search.accumulation) == (
            tuning.batch_size,
            tuning.accumulation,
        )

    def fit(self, setting: Setting, case: Case, *, shardable: bool = True) -> Fit:
        """Whether a training step fits the devices."""
        return fit(setting, case, self.devices, self.memory, shardable=shardable)

    def training(self, section: str, what: str, case: Case, path: Sequence[int] | None) -> StagePlan:
        """A stage that trains as its section says; what other settings take is kept in ``fits``.

        Args:
            section: name of the stage.
            what: what it trains, in a few words.
            case: its training step.
            path: what that is of; None: the supernet.
        """
        chosen: OneTraining = getattr(self.recipe, section)
        own = self.setting(chosen)
        settings = [own, *(Setting(*choice, own.bf16, own.dtype) for choice in _ALTERNATIVES)]
        # a search cannot split weights over devices
        fits = self.fits[section] = [
            self.fit(setting, self.measure(section, setting, path), shardable=section != "search")
            for setting in dict.fromkeys(settings)
        ]
        asked = fits[0]
        if case.micro_batch % self.devices:
            self.problems.append(
                f"{section}: batches of {case.micro_batch} cannot be cut into {self.devices} equal parts: "
                f"{section}.batch_size={-(-case.micro_batch // self.devices) * self.devices}"
            )
        if asked.fits is not None:
            verdict = "fits" if self.devices == 1 else f"fits, {asked.fits}"
        else:
            verdict = f"does not fit: {way_out(own, fits)}"
            self.problems.append(f"{section} {verdict}")
        step_flops = case.flops * case.accumulation
        if chosen.budget_flops is not None:
            steps = int(chosen.budget_flops // step_flops)
        else:
            steps = chosen.steps or chosen.default_steps
        size = asked.data_parallel if asked.fits == "data parallel" else asked.smaller
        return StagePlan(section, what, case.held.trained, step_flops, steps, step_flops * steps, size, verdict)

    def judged(self, name: str, what: str, peak: float, fix: str, *, flops: float = 0, **more: Any) -> StagePlan:
        """A stage of which no part can be split over devices: it fits, or the plan says what to do.

        Args:
            name: of the stage.
            what: what it works on, in a few words.
            peak: bytes.
            fix: what would make it fit.
            flops: in all.
            more: ``trained``, ``step_flops``, ``steps``, and ``subject``: what the problem is called, if not the stage.
        """
        fits = peak <= self.memory
        verdict = "fits" if fits else f"does not fit: {fix}"
        subject = more.pop("subject", name)
        if not fits:
            self.problems.append(f"{subject} {verdict}")
        unknown = {"trained": None, "step_flops": None, "steps": None}
        return StagePlan(name=name, what=what, flops=flops, bytes=peak, verdict=verdict, **{**unknown, **more})

    def save_model(self, held: Inventory) -> None:
        """A model in the run folder: weights are saved in the type that they came in."""
        self.disk_bytes += held.parameters * self.shape.dtype.itemsize

    def save_checkpoints(self, held: Inventory) -> None:
        """Checkpoints of a training, whose weights are kept in the type that they train in."""
        self.disk_bytes += _KEPT_CHECKPOINTS * (1 + ADAMW_TENSORS) * held.trained_bytes
