"""What a plan says of hybrids that drop components, of a larger single model and of kept answers, against real ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

import manticore
from manticore.components.cache_argument import cache_in
from manticore.kernels.mamba import use_selective_scan
from manticore.plan.bytes_alive import tensor_bytes
from manticore.plan.dropping import dropping
from manticore.plan.layer_cache import block_caches
from manticore.plan.planner import Plan, plan
from manticore.plan.skeleton import Shape, Skeleton
from manticore.plan.table import render_plan
from manticore.quantities import memory
from manticore.schema.recipe import Recipe
from manticore.tasks.task import load_task
from manticore.training.budget import cached_tensors, count_parameters, counted_flops, flops_per_step
from manticore.training.shapes import small_config
from manticore.training.trainable import set_trainable

TOKENS, AFTER = 80, 6
NAMES = ["gpt", "mamba"]


def configs() -> list[PreTrainedConfig]:
    found = [
        small_config("gpt_neo", layers=3, width=32, positions=TOKENS + 8),
        small_config("mamba", layers=5, width=24),
    ]
    for config in found:
        config.vocab_size = 48
    return found


def recipe(**changes: Any) -> Recipe:
    entries = [
        {"name": "gpt", "family": "gpt_neo", "layers": 3, "width": 32, "vocab_size": 48, "length": 96},
        {"name": "mamba", "family": "mamba", "layers": 5, "width": 24, "vocab_size": 48},
        {"name": "large", "family": "gpt_neo", "layers": 6, "width": 64, "vocab_size": 48, "length": 96},
    ]
    sections: dict[str, Any] = {
        "name": "small",
        "pretrain": entries,
        "components": [{"name": name, "source": name} for name in NAMES],
        "task": {"name": "text", "options": {"length": TOKENS}},
        "combine": {"num_blocks": 2},
        "align": None,
        "search": None,
        "discretize": None,
        "finetune": {"steps": 2, "batch_size": 4},
        "compare": None,
    }
    return Recipe(**{**sections, **changes})


@pytest.fixture(scope="module")
def hybrid() -> Any:
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(config) for config in configs()]
    made = manticore.combine(models, num_blocks=2, output="bayes").eval()
    use_selective_scan(made)
    return made


@torch.no_grad()
@pytest.mark.parametrize("left", [None, 0, 1], ids=["nothing", "gpt", "mamba"])
def test_bounds_of_dropping_are_what_a_text_costs(hybrid: Any, left: int | None) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = Skeleton(NAMES, configs(), Shape(2, "routed", False, "linear", {}, torch.float32, "bayes"), None, mode)
    how = {"below": 0.01, "after": AFTER, "tokens": TOKENS}
    bounds = dropping(skeleton, mode, NAMES, block_caches(skeleton, mode), **how)  # type: ignore[arg-type]
    found = bounds.nothing if left is None else bounds.alone[NAMES[left]]
    real = copy.deepcopy(hybrid)
    real.config.drop_below, real.config.drop_after = (1e-30 if left is None else 0.01), AFTER
    if left is not None:
        # a text can hardly bring it back above the bound
        real.mixing.weights.copy_(torch.tensor([1e-9, 1e-9]).index_fill(0, torch.tensor(left), 1 - 1e-9))
    ids = torch.randint(0, 48, (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    with counted_flops() as counter:
        read = real(ids[:, :TOKENS]).components_read.sum(1)[0].tolist()
    expected = [TOKENS, TOKENS] if left is None else [TOKENS if k == left else AFTER for k in range(2)]
    assert read == expected
    assert counter.get_total_flops() == found.flops
    cache = cache_in(real(ids[:, :TOKENS], use_cache=True))
    with counted_flops() as counter:
        real(ids[:, TOKENS:], past_key_values=cache, use_cache=True)
    assert counter.get_total_flops() == found.token_flops
    layers = [layer for k in range(2) for layer in cache.views[k].layers]
    held = [t for layer in layers for t in cached_tensors(layer, set()) if t.is_floating_point()]
    held += [cache.posterior.log_weights, *cache.posterior.last.values()]
    assert tensor_bytes(held) == (TOKENS + 1) * found.cache_bytes_per_token + found.state_bytes


def test_a_plan_says_so_where_a_hybrid_drops_and_stays() -> None:
    combine = {"num_blocks": 2, "output": "bayes", "drop_below": 0.01, "drop_after": AFTER}
    found = plan(recipe(combine=combine), device_memory=1e12, flops_per_second=1e9)
    assert found.dropping is not None
    assert found.dropping.nothing.cache_bytes_per_token == found.cache["supernet"][0]
    assert found.dropping.nothing.state_bytes == found.cache["supernet"][1]
    assert found.dropping.alone.keys() == set(NAMES)
    shown = "\n".join(str(part) for part in render_plan(found))
    assert "dropping     below 0.01 after 6 tokens" in shown
    assert "tokens/s), " in shown
    assert "gpt alone left" in shown
    # a path's one component predicts alone
    taught = {"steps": 2, "batch_size": 4, "phases": "logits", "keep_answers": True}
    kept = plan(recipe(combine=combine, discretize={"path": [0, 1]}, distill=taught), device_memory=1e12)
    assert kept.dropping is None
    # how much text there is nobody knows beforehand
    each = f"its answers {memory(TOKENS * 48 * 4)} for each training example: not counted on the disk"
    assert each in stage(kept, "distill").what


def stage(found: Plan, name: str) -> Any:
    return next(stage for stage in found.stages if stage.name == name)


def test_the_memory_of_a_comparison_is_that_of_its_larger_model() -> None:
    alike = {"discretize": {"path": [0, 1]}}
    plain, shown = (
        plan(recipe(compare={"seeds": [0], **more}, **alike), device_memory=1e12) for more in ({}, {"larger": "large"})
    )
    config = small_config("gpt_neo", layers=6, width=64, positions=96)
    config.vocab_size = 48
    real = AutoModelForCausalLM.from_config(config)
    set_trainable(real, "all")
    of_larger = stage(shown, "compare")
    assert of_larger.trained == count_parameters(real).total > stage(plain, "compare").trained
    assert of_larger.step_flops == flops_per_step(real, 4, TOKENS)
    # weights, their gradients and two moments
    assert of_larger.bytes > max(4 * 4 * of_larger.trained, stage(plain, "compare").bytes)
    more = of_larger.trained - stage(plain, "compare").trained
    assert shown.disk_bytes - plain.disk_bytes == 2 * 3 * 4 * more
    tight = plan(recipe(compare={"seeds": [0], "larger": "large"}, **alike), device_memory=of_larger.bytes * 0.9)
    assert not tight.runnable
    assert any("the larger model does not fit: compare.larger=null" in problem for problem in tight.problems)


def test_kept_answers_are_bytes_on_the_disk_and_flops_paid_once(tmp_path: Any, hybrid: Any) -> None:
    options = {"vocab_size": 8, "seq_len": 12, "num_train_examples": 16, "num_validation_examples": 8}
    task = {"name": "mad/in-context-recall", "options": {**options, "num_test_examples": 8}}
    given = {"steps": 6, "batch_size": 4, "phases": "logits"}
    alike = {"task": task, "search": None, "discretize": {"path": [0, 1]}, "finetune": {"steps": 2, "batch_size": 4}}
    computed, kept = (
        plan(recipe(distill={**given, "keep_answers": keep}, **alike), device_memory=1e12) for keep in (False, True)
    )
    models = [AutoModelForCausalLM.from_config(config) for config in configs()]
    teacher = manticore.combine(models, num_blocks=2, vocab_size=8, check=False)
    student = manticore.discretize(teacher, [0, 1])
    done = manticore.distill(
        student, teacher, load_task(task["name"], **task["options"]), keep_answers=True, out=tmp_path, cpu=True, **given
    )
    (file,) = tmp_path.rglob("*.logits")
    assert kept.disk_bytes - computed.disk_bytes == file.stat().st_size
    assert stage(kept, "distill").flops == done.flops
    assert "on the disk" in stage(kept, "distill").what
