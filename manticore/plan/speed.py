"""How many FLOPs per second this machine reaches in training: a few real steps of the supernet, with random weights."""

from __future__ import annotations

import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from manticore.errors import ManticoreError
from manticore.kernels.mamba import fast_scan
from manticore.plan.costing import shape_of
from manticore.plan.skeleton import Skeleton
from manticore.plan.sources import find_sources
from manticore.schema.recipe import Recipe
from manticore.tasks.shape import task_shape
from manticore.training.budget import flops_per_step


def measured_flops_per_second(recipe: Recipe, steps: int, memory: float) -> float:
    """Time training steps of a recipe's supernet in which one layer of each kind does the work of all.

    Args:
        recipe: checked.
        steps: how many are timed, after one that is not.
        memory: bytes that this machine has for it.

    Raises:
        ManticoreError: one example's step takes more than that.
    """
    sources, task = find_sources(recipe), task_shape(recipe.task)
    configs, names = [source.config for source in sources], [source.name for source in sources]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = Skeleton(names, configs, shape_of(recipe, sources), task.vocab_size, mode)
    hybrid = skeleton.trained("all", lora_rank=1, mixture=True)
    weights = sum(p.numel() * p.element_size() for p in hybrid.parameters())
    if 3 * weights > memory:
        raise ManticoreError(
            f"--measure: one layer of each kind with its gradients takes {3 * weights / 1e9:.1f} GB here. "
            "Fix: leave it out, and give --flops-per-second"
        )
    # a copy that runs: every layer of it is there, most of them as another name for the same weights
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    hybrid.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*hybrid.parameters(), *hybrid.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(1e-3)
    batch = recipe.finetune.batch_size // recipe.finetune.accumulation
    input_ids = torch.zeros(max(1, batch), task.length, dtype=torch.long, device=device)
    with fast_scan(hybrid):
        flops = flops_per_step(hybrid, len(input_ids), task.length)

        def step() -> None:
            logits = hybrid(input_ids=input_ids, use_cache=False).logits
            functional.cross_entropy(logits.flatten(0, 1).float(), input_ids.flatten()).backward()
            hybrid.zero_grad(set_to_none=True)

        step()
        _wait(device)
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
    return flops * steps / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
