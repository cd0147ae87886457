"""The plan of a run: what every stage trains, computes and holds in memory, from configurations alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.components.masters import is_half
from manticore.errors import ManticoreError
from manticore.plan.cases import Case, Cases, Setting
from manticore.plan.fit import Fit, fit, way_out
from manticore.plan.layer_cache import block_caches
from manticore.plan.memory import ADAMW_TENSORS
from manticore.plan.paths import path_ends
from manticore.plan.skeleton import Shape, Skeleton
from manticore.plan.sources import Source, find_sources, tokenizer_verdict
from manticore.plan.task_shape import TaskShape, task_shape
from manticore.schema.recipe import Recipe
from manticore.settings import Align, Training
from manticore.training.precision import computes_in_bfloat16

DEFAULT_STEPS = {"search": 120, "finetune": 300}
EVALUATION_BATCH = 64
_KEPT_CHECKPOINTS = 2
_ALTERNATIVES = (("all", False), ("all", True), ("lora", False), ("lora", True))


@dataclass(frozen=True)
class ComponentPlan:
    """One component."""

    name: str
    origin: str
    family: str
    parameters: int
    layers: int
    width: int
    vocab_size: int
    segments: list[int]
    """Layers in each block."""
    cache_bytes_per_token: int
    state_bytes: int


@dataclass(frozen=True)
class StagePlan:
    """One stage of the run, with the recipe's settings."""

    name: str
    what: str
    trained: int | None
    """Parameters; the largest, where several models train."""
    step_flops: float | None
    """Per optimizer step, over all devices; the largest, where that depends on the path."""
    steps: float | None
    flops: float
    """In all."""
    bytes: float | None
    """Peak on each device, by the way that fits, else by the smaller one."""
    verdict: str


@dataclass(frozen=True)
class Plan:
    """All that is known before a run."""

    name: str
    components: list[ComponentPlan]
    tokenizers: str
    runnable: bool
    """Whether tokenizers, positions and memory allow the run."""
    task: TaskShape
    num_blocks: int
    mixing: str
    projectors: list[tuple[str, int]]
    """Widths and parameters of each."""
    parameters: dict[str, int]
    """Of the supernet and of the cheapest and costliest path."""
    paths: dict[str, list[int]]
    stages: list[StagePlan]
    fits: dict[str, list[Fit]]
    """Per training stage, what every setting takes."""
    devices: int
    device_memory: float
    cache: dict[str, tuple[int, int]]
    """Bytes per token, and of states, in decoding one sequence."""
    disk_bytes: float
    flops_per_second: float | None
    problems: list[str]

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """What that takes on all devices at the speed given for each."""
        return None if self.flops_per_second is None else self.flops / (self.flops_per_second * self.devices)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "flops": self.flops, "seconds": self.seconds}


def plan(
    recipe: Recipe,
    *,
    devices: int = 1,
    device_memory: float,
    flops_per_second: float | None = None,
    accelerator: bool | None = None,
    process_bytes: float = 0,
) -> Plan:
    """Lay out everything a recipe does on tensors without data, and count.

    Args:
        recipe: checked, as ``manticore.schema.loading.load_recipe`` returns it.
        devices: how many share the work.
        device_memory: bytes of each.
        flops_per_second: what each reaches in training, for the time.
        accelerator: whether the devices are accelerators that compute in bfloat16; None: whether this machine has one.
        process_bytes: what a process holds beside its tensors, where both share the device's memory, as on a CPU: the
            interpreter and the libraries.

    Raises:
        ManticoreError: a configuration that is not here or makes no model, or more blocks than layers.
    """
    if devices < 1:
        raise ManticoreError(f"plan: devices is {devices} (expected 1 or more). Fix: --devices 1")
    sources = find_sources(recipe)
    task = task_shape(recipe.task)
    if accelerator is None:
        accelerator = torch.accelerator.is_available()
    found = _Planner(recipe, sources, task, devices, device_memory - process_bytes, accelerator).plan(flops_per_second)
    resident = [replace(s, bytes=None if s.bytes is None else s.bytes + process_bytes) for s in found.stages]
    return replace(found, stages=resident, device_memory=device_memory)


def shape_of(recipe: Recipe, sources: Sequence[Source]) -> Shape:
    """How a recipe joins its components, in the type that combining them gives."""
    combine = recipe.combine
    if combine.dtype is not None:
        dtype = getattr(torch, combine.dtype)
    else:
        found = {source.config.dtype or torch.float32 for source in sources}
        dtype = found.pop() if len(found) == 1 else torch.float32
    options = dict(combine.projector_options)
    return Shape(combine.num_blocks, combine.mixing, combine.released, combine.projector, options, dtype)


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        sources: list[Source],
        task: TaskShape,
        devices: int,
        memory: float,
        accelerator: bool,
    ) -> None:
        self.recipe, self.sources, self.task = recipe, sources, task
        self.devices, self.memory, self.accelerator = devices, memory, accelerator
        self.shape = shape_of(recipe, sources)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.names = [source.name for source in sources]
        self.skeleton = Skeleton(
            self.names, [source.config for source in sources], self.shape, task.vocab_size, self.mode
        )
        tuning = recipe.finetune
        self.cases = Cases(self.skeleton, self.mode, lora_rank=tuning.lora_rank)
        self.problems: list[str] = []

    def plan(self, flops_per_second: float | None) -> Plan:
        recipe, blocks = self.recipe, self.shape.num_blocks
        own_vocabulary = self.task.vocab_size is not None
        shared, tokenizers = tokenizer_verdict(self.sources, own_vocabulary)
        if not shared and recipe.combine.tokenizer is not None:
            others = "all have fresh embeddings" if recipe.combine.released else "the others are re-embedded"
            shared, tokenizers = True, f"{tokenizers}; {recipe.combine.tokenizer}'s is kept, {others}"
        if not shared:
            self.problems.append(
                f"tokenizers {tokenizers}: set combine.tokenizer to a component, or take a task with its own vocabulary"
            )
        self._check_lengths()
        own = self._setting(recipe.finetune)
        paths = self._ends(own)
        tuned = [self._measure("finetune", own, path) for path in (None, paths["costliest"], paths["cheapest"])]
        fits: dict[str, list[Fit]] = {}
        stages = [*self._pretraining(), self._combine()]
        if recipe.align is not None:
            stages.append(self._align(recipe.align))
        searched = None
        if recipe.search is not None:
            stage, fits["search"], searched = self._search()
            stages.append(stage)
        stages.append(self._evaluate(tuned[0], tuned[1], paths["costliest"]))
        steps = self._steps("finetune", tuned[1].flops * recipe.finetune.accumulation)
        fits["finetune"] = self._fits("finetune", own, paths["costliest"])
        stages.append(self._stage("finetune", "costliest path", own, tuned[1], steps, fits["finetune"]))
        if recipe.compare is not None:
            stages.append(self._compare(own, tuned, stages, fits))
        caches = block_caches(self.skeleton, self.mode)
        hybrid = self.skeleton.hybrid
        return Plan(
            name=recipe.name,
            components=[
                ComponentPlan(
                    source.name,
                    source.origin,
                    source.config.model_type,
                    parameters,
                    source.config.num_hidden_layers,
                    source.config.hidden_size,
                    source.config.vocab_size,
                    [b - a for a, b in itertools.pairwise(edges)],
                    sum(block[0] for block in cache),
                    sum(block[1] for block in cache),
                )
                for source, parameters, edges, cache in zip(
                    self.sources, self.skeleton.own_parameters, hybrid.config.boundaries, caches
                )
            ],
            tokenizers=tokenizers,
            runnable=not self.problems,
            task=self.task,
            num_blocks=blocks,
            mixing=self.shape.mixing,
            projectors=[
                (f"{p.d_in} → {p.d_out}", sum(q.numel() for q in p.parameters()))  # type: ignore[union-attr]
                for p in hybrid.mixing.projectors.values()
            ],
            parameters={
                "supernet": tuned[0].held.parameters,
                **{name: tuned[index].held.parameters for index, name in ((1, "costliest"), (2, "cheapest"))},
            },
            paths=paths,
            stages=stages,
            fits=fits,
            devices=self.devices,
            device_memory=self.memory,
            cache={
                "supernet": _sum_cache([block for cache in caches for block in cache]),
                **{
                    f"{name} path": _sum_cache([caches[k][n] for n, k in enumerate(path)])
                    for name, path in paths.items()
                },
            },
            disk_bytes=self._disk(tuned, searched),
            flops_per_second=flops_per_second,
            problems=self.problems,
        )

    def _check_lengths(self) -> None:
        """Examples longer than the table of a component's positions stop a run."""
        wanted = {"task": self.task.length}
        if self.recipe.align is not None and self.recipe.align.text != "task":
            wanted["align"] = self.recipe.align.length
        for source, runner in zip(self.sources, self.skeleton.hybrid.runners):
            limit = None if runner is None else runner.positions
            for section, length in wanted.items():
                if limit is not None and length > limit:
                    raise ManticoreError(
                        f"plan: examples of {section} have {length:,} tokens, {source.name} has {limit:,} positions. "
                        f"Fix: {'align.length=' if section == 'align' else 'examples of at most '}{limit}"
                    )

    def _setting(self, section: Training) -> Setting:
        autocast = computes_in_bfloat16(
            section.dtype, bf16=section.bf16, half=is_half(self.shape.dtype), accelerator=self.accelerator
        )
        return Setting(section.trainable, section.gradient_checkpointing, autocast, section.dtype)

    def _ends(self, own: Setting) -> dict[str, list[int]]:
        """The paths with the fewest and the most FLOPs; the recipe's own where it names one."""
        if self.recipe.discretize.path is not None:
            return {name: list(self.recipe.discretize.path) for name in ("cheapest", "costliest")}
        config = self.skeleton.hybrid.config
        widths = [component.hidden_size for component in config.components]
        cheapest, costliest = path_ends(lambda path: self._measure("finetune", own, path), config.boundaries, widths)
        return {"cheapest": cheapest, "costliest": costliest}

    def _measure(self, section: str, setting: Setting, path: Sequence[int] | None) -> Case:
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

    def _steps(self, section: str, step_flops: float) -> int:
        chosen = getattr(self.recipe, section)
        if chosen.budget_flops is not None:
            return int(chosen.budget_flops // step_flops)
        return chosen.steps or DEFAULT_STEPS[section]

    def _fits(self, section: str, own: Setting, path: Sequence[int] | None) -> list[Fit]:
        """Of the recipe's setting first, then of the others."""
        settings = [own, *(Setting(*choice, own.bf16, own.dtype) for choice in _ALTERNATIVES)]
        return [
            fit(
                setting, self._measure(section, setting, path), self.devices, self.memory, shardable=section != "search"
            )
            for setting in dict.fromkeys(settings)
        ]

    def _stage(self, name: str, what: str, own: Setting, case: Case, steps: int, fits: list[Fit]) -> StagePlan:
        asked = next(f for f in fits if f.setting == own)
        smaller = min(f for f in (asked.data_parallel, asked.sharded) if f is not None)
        size = asked.data_parallel if asked.fits == "data parallel" else smaller
        if case.micro_batch % self.devices:
            self.problems.append(
                f"{name}: batches of {case.micro_batch} cannot be cut into {self.devices} equal parts: "
                f"{name}.batch_size={-(-case.micro_batch // self.devices) * self.devices}"
            )
        if asked.fits is not None:
            verdict = "fits" if self.devices == 1 else f"fits, {asked.fits}"
        else:
            verdict = f"does not fit: {way_out(own, fits)}"
            self.problems.append(f"{name} {verdict}")
        step_flops = case.flops * case.accumulation
        return StagePlan(name, what, case.held.trained, step_flops, steps, step_flops * steps, size, verdict)

    def _pretraining(self) -> list[StagePlan]:
        stages = []
        for entry in self.recipe.pretrain:
            k = next((i for i, c in enumerate(self.recipe.components) if c.source == entry.name), None)
            if k is None:
                continue
            config = self.sources[k].config
            shape = Shape(1, "translated", False, "linear", {}, torch.float32)
            own = Skeleton([entry.name, entry.name], [config, config], shape, None, self.mode)
            case = Cases(own, self.mode, lora_rank=8).measure(
                Setting("all", False, False), [0], batch_size=entry.batch_size, length=entry.length, mixture=False
            )
            verdict = "fits" if case.peak() <= self.memory else "does not fit: a smaller batch_size"
            if verdict != "fits":
                self.problems.append(f"pretrain: {entry.name} {verdict}")
            what = f"{entry.name}, unless cached"
            total = case.flops * entry.steps
            stages.append(
                StagePlan("pretrain", what, case.held.trained, case.flops, entry.steps, total, case.peak(), verdict)
            )
        return stages

    def _combine(self) -> StagePlan:
        """All components, and the file of the largest while it is read."""
        size = self.shape.dtype.itemsize
        weights = [count * size for count in self.skeleton.own_parameters]
        peak = float(sum(weights) + max(weights))
        verdict = "fits" if peak <= self.memory else "does not fit: larger devices, or combine.dtype=bfloat16"
        if verdict != "fits":
            self.problems.append(f"combine {verdict}")
        return StagePlan("combine", "loading included", None, None, None, 0, peak, verdict)

    def _align(self, section: Align) -> StagePlan:
        """The components alone up to the last boundary that is read, the sums of the regressions, the steps."""
        length = self.task.length if section.text == "task" else section.length
        packs = max(2, section.tokens // length)
        fitted = packs - min(max(1, round(packs * section.holdout)), packs - 1)
        skeleton = self.skeleton
        if self.task.vocab_size is not None and section.text != "task":
            configs = [source.config for source in self.sources]
            skeleton = Skeleton(self.names, configs, self.shape, None, self.mode)
        cases = Cases(skeleton, self.mode, lora_rank=8)
        batch = min(section.batch_size, fitted)
        case = cases.measure(
            Setting("projectors", False, False, None), None, batch_size=batch, length=length, mixture=False
        )
        config = skeleton.hybrid.config
        translations = skeleton.hybrid.mixing.translations()
        spaces = {space for t in translations if t.source != t.target for space in (t.source, t.target)}
        parts = case.parts
        flops = 0.0
        for k in {k for k, _ in spaces}:
            deepest = config.boundaries[k][max(n for m, n in spaces if m == k)]
            layers = [p.piece.forward_flops for p in parts if p.unit.startswith(f"{k}.")]
            flops += (sum(layers[:deepest]) + parts[k].piece.forward_flops) / case.micro_batch * fitted
        widths = [c.hidden_size for c in config.components]
        pairs = {(t.source, t.target) for t in translations if t.source != t.target}
        products = sum(widths[k] ** 2 for k, _ in {source for source, _ in pairs})
        products += sum(widths[a[0]] * widths[b[0]] for a, b in {tuple(sorted(pair)) for pair in pairs})
        flops += 2 * products * fitted * length + case.flops * section.steps
        sums = 8 * (products + sum(widths[k] for k, _ in spaces))
        peak = max(cases.evaluation(None, batch_size=batch, length=length) + sums, case.peak() if section.steps else 0)
        verdict = "fits" if peak <= self.memory else "does not fit: a smaller align.batch_size"
        if verdict != "fits":
            self.problems.append(f"align {verdict}")
        return StagePlan("align", f"{fitted * length:,} tokens", case.held.trained, None, None, flops, peak, verdict)

    def _search(self) -> tuple[StagePlan, list[Fit], Case]:
        section = self.recipe.search
        assert section is not None
        own = self._setting(section)
        case = self._measure("search", own, None)
        steps = self._steps("search", case.flops * case.accumulation)
        fits = self._fits("search", own, None)
        return self._stage("search", "supernet", own, case, steps, fits), fits, case

    def _evaluate(self, supernet: Case, path: Case, costliest: list[int]) -> StagePlan:
        examples = self.recipe.finetune.test_examples or self.task.test_examples or 0
        batch = min(EVALUATION_BATCH, examples or EVALUATION_BATCH)
        # the supernet and the hybrid before fine-tuning, the hybrid after it
        flops = (
            examples * self.task.sequences * (supernet.forward_flops + 2 * path.forward_flops) / supernet.micro_batch
        )
        peak = self.cases.evaluation(None, batch_size=batch * self.task.sequences, length=self.task.length)
        verdict = "fits" if peak <= self.memory else "does not fit: larger devices"
        if verdict != "fits":
            self.problems.append(f"evaluate {verdict}")
        what = f"3 × {examples:,} examples" if examples else "as long as the text: not counted"
        return StagePlan("evaluate", what, None, None, None, flops, peak, verdict)

    def _compare(
        self, own: Setting, tuned: list[Case], stages: Sequence[StagePlan], fits: dict[str, list[Fit]]
    ) -> StagePlan:
        section, tuning = self.recipe.compare, self.recipe.finetune
        assert section is not None
        budget = next(stage.flops for stage in stages if stage.name == "finetune")
        spent = sum(stage.flops for stage in stages if stage.name in ("align", "search"))
        parents, ensemble = len(self.sources), int(section.ensemble and len(self.sources) > 1)
        rates = len(section.learning_rates or [tuning.lr])
        per_row = len(section.seeds) + rates - 1
        # with fine-tuning's FLOPs each; with all that the hybrid cost, those that had no search train longer
        trainings = (parents + ensemble + 2) * budget + (parents + ensemble) * (budget + spent) * (spent > 0)
        supernet = fit(own, tuned[0], self.devices, self.memory, shardable=True)
        fits["compare"] = [supernet]
        size = min(f for f in (supernet.data_parallel, supernet.sharded) if f is not None)
        verdict = "fits" if supernet.fits is not None else "does not fit (the supernet): finetune's ways out"
        if supernet.fits is None:
            self.problems.append("compare: the soft supernet does not fit: compare=null, or other settings of finetune")
        what = f"{parents + ensemble + 2} models × {per_row}"
        return StagePlan(
            "compare", what, max(case.held.trained for case in tuned), tuned[0].flops * tuned[0].accumulation, None,
            trainings * per_row, size, verdict,
        )  # fmt: skip

    def _disk(self, tuned: list[Case], searched: Case | None) -> float:
        """Saved models (combine, align, search, discretize and the result) and the checkpoints that training keeps."""
        supernet, path = tuned[0].held, tuned[1].held
        # weights are saved in the type that they came in, and checkpoints hold those that train as they train
        size = self.shape.dtype.itemsize
        models = supernet.parameters * size * (1 + (self.recipe.align is not None) + (searched is not None))
        models += path.parameters * size * 2
        checkpoint = _KEPT_CHECKPOINTS * (1 + ADAMW_TENSORS)
        kept = checkpoint * (path.trained_bytes + (searched.held.trained_bytes if searched is not None else 0))
        during = checkpoint * supernet.trained_bytes if self.recipe.compare is not None else 0
        return models + kept + during


def _sum_cache(blocks: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(block[0] for block in blocks), sum(block[1] for block in blocks)
