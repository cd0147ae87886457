"""The plan of a run: what every stage trains, computes and holds in memory, from configurations alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from manticore.errors import ManticoreError
from manticore.plan.costing import Costing
from manticore.plan.dropping import Dropping, dropping
from manticore.plan.fit import Fit
from manticore.plan.layer_cache import block_caches
from manticore.plan.sources import tokenizer_verdict
from manticore.schema.recipe import Recipe
from manticore.stages import stages_of
from manticore.stages.stage import StagePlan
from manticore.tasks.shape import TaskShape


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
    output: str
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
    dropping: Dropping | None = None
    """Of a hybrid whose components stop reading texts that they are unlikely to have written."""

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
    if accelerator is None:
        accelerator = torch.accelerator.is_available()
    costing = Costing(recipe, devices=devices, memory=device_memory - process_bytes, accelerator=accelerator)
    tokenizers = _check_tokenizers(costing)
    _check_lengths(costing)
    for stage in stages_of(recipe):
        costing.stages.extend(stage.cost(costing))
    caches = block_caches(costing.skeleton, costing.mode)
    hybrid, held = costing.skeleton.hybrid, {name: case.held for name, case in costing.tuned.items()}
    of_output = hybrid.output.state_bytes(len(costing.sources), hybrid.config.vocab_size)
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
                costing.sources, costing.skeleton.own_parameters, hybrid.config.boundaries, caches
            )
        ],
        tokenizers=tokenizers,
        runnable=not costing.problems,
        task=costing.task,
        num_blocks=costing.shape.num_blocks,
        mixing=costing.shape.mixing,
        output=costing.shape.output,
        projectors=[
            (f"{p.d_in} → {p.d_out}", sum(q.numel() for q in p.parameters()))  # type: ignore[union-attr]
            for p in hybrid.mixing.projectors.values()
        ],
        parameters={name: held[name].parameters for name in ("supernet", *costing.paths)},
        paths=costing.paths,
        stages=[replace(s, bytes=None if s.bytes is None else s.bytes + process_bytes) for s in costing.stages],
        fits=costing.fits,
        devices=devices,
        device_memory=device_memory,
        cache={
            "supernet": _sum_cache([block for cache in caches for block in cache] + [(0, of_output)]),
            **{
                f"{name} path": _sum_cache([caches[k][n] for n, k in enumerate(path)])
                for name, path in costing.paths.items()
            },
        },
        disk_bytes=costing.disk_bytes,
        flops_per_second=flops_per_second,
        problems=costing.problems,
        dropping=_dropping(costing, caches),
    )


def _dropping(costing: Costing, caches: list[list[tuple[int, int]]]) -> Dropping | None:
    combine = costing.recipe.combine
    # a path's one component predicts alone
    if combine.drop_below is None or costing.paths:
        return None
    names = [source.name for source in costing.sources]
    how = {"below": combine.drop_below, "after": combine.drop_after, "tokens": costing.task.length}
    return dropping(costing.skeleton, costing.mode, names, caches, **how)  # type: ignore[arg-type]


def _check_tokenizers(costing: Costing) -> str:
    """What becomes of the components' tokenizers, in a phrase."""
    combine = costing.recipe.combine
    shared, tokenizers = tokenizer_verdict(costing.sources, costing.task.vocab_size is not None)
    if not shared and combine.tokenizer is not None:
        others = "all have fresh embeddings" if combine.released else "the others are re-embedded"
        return f"{tokenizers}; {combine.tokenizer}'s is kept, {others}"
    if not shared:
        costing.problems.append(
            f"tokenizers {tokenizers}: set combine.tokenizer to a component, or take a task with its own vocabulary"
        )
    return tokenizers


def _check_lengths(costing: Costing) -> None:
    """Examples longer than the table of a component's positions stop a run."""
    wanted, align = {"task": costing.task.length}, costing.recipe.align
    if align is not None and align.text != "task":
        wanted["align"] = align.length
    for source, runner in zip(costing.sources, costing.skeleton.hybrid.runners):
        limit = None if runner is None else runner.positions
        for section, length in wanted.items():
            if limit is not None and length > limit:
                raise ManticoreError(
                    f"plan: examples of {section} have {length:,} tokens, {source.name} has {limit:,} positions. "
                    f"Fix: {'align.length=' if section == 'align' else 'examples of at most '}{limit}"
                )


def _sum_cache(blocks: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(block[0] for block in blocks), sum(block[1] for block in blocks)
