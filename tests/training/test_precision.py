"""Half-precision checkpoints: trained in float32, saved as they came, scored as they are saved."""

import copy
import logging

import numpy as np
import pytest
import torch
from copying_task import VOCABULARY, copying_task
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import manticore
from manticore.components.masters import floating, is_half
from manticore.errors import ManticoreError
from manticore.experiments.compare import compare
from manticore.experiments.mad.training import train_runs
from manticore.hybrid.discretize import discretize
from manticore.tasks.mad.protocol import Hyper, Protocol
from manticore.training.checkpoints import checkpoints
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune
from manticore.training.precision import Precision

QUICK = {"steps": 6, "batch_size": 8, "lr": 1e-3, "warmup_steps": 0, "cpu": True}


def rounded(model, dtype=torch.bfloat16):
    """The model in half precision, and one in float32 with the same numbers."""
    half = copy.deepcopy(model)
    for name, tensor in floating(half):
        if not name.startswith(("mixing.weights", "mixing.routing")):
            tensor.data = tensor.data.to(dtype)
    for part in half.modules():
        if hasattr(part, "config"):
            part.config.dtype = dtype
    single = copy.deepcopy(half)
    for _, tensor in floating(single):
        tensor.data = tensor.data.float()
    return half, single


@pytest.fixture
def path(hybrid):
    return discretize(hybrid, [1, 0])


def kinds(model):
    mixture = {id(p) for p in model.mixing.mixture_parameters()} if hasattr(model, "mixing") else set()
    return {tensor.dtype for _, tensor in floating(model) if id(tensor) not in mixture}


def same(one, other, dtype=torch.bfloat16):
    """Whether `one` holds the numbers of `other`, rounded once."""
    theirs = dict(floating(other))
    return all(torch.equal(tensor, theirs[name].to(tensor.dtype)) for name, tensor in floating(one))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("gpt", torch.float16), ("mamba", torch.bfloat16), ("hybrid", torch.bfloat16)]
)
def test_a_half_precision_checkpoint_trains_as_the_float32_one_does_and_stays_what_it_is(kind, dtype, request, task):
    half, single = rounded(request.getfixturevalue(kind), dtype)
    before = copy.deepcopy(half)
    one, other = (finetune(each, task, **QUICK) for each in (half, single))
    assert one.history == other.history
    assert kinds(half) == {dtype}
    assert same(half, single, dtype)
    moved = [torch.ne(a, b).float().mean() for (_, a), (_, b) in zip(floating(before), floating(half))]
    assert max(moved) > 0.5
    assert all(parameter.grad is None for parameter in half.parameters())


@pytest.mark.parametrize("trainable", ["frozen", "lora"])
def test_so_it_does_where_only_a_part_trains(hybrid, task, trainable):
    half, single = rounded(discretize(hybrid, [0, 1]))
    one, other = (finetune(each, task, trainable=trainable, lora_rank=2, **QUICK) for each in (half, single))
    # updates are drawn in the type of the maps beside them
    losses = [[row["loss"] for row in result.history] for result in (one, other)]
    assert losses[0] == (pytest.approx(losses[1], abs=1e-4) if trainable == "lora" else losses[1])
    assert kinds(half) == {torch.bfloat16}
    if trainable == "lora":
        # the update is added to the rounded map, and the sum rounded once
        for (name, a), (_, b) in zip(floating(half), floating(single)):
            torch.testing.assert_close(a.float(), b, rtol=2**-8, atol=1e-4, msg=name)
    else:
        assert same(half, single)


def test_scores_are_those_of_the_weights_as_saved_and_float32_stands_beside_where_it_differs(path, task, tmp_path):
    half, single = rounded(path)
    one = finetune(half, task, **QUICK | {"lr": 3e-2})
    other = finetune(single, task, **QUICK | {"lr": 3e-2})
    half.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert kinds(loaded) == {torch.bfloat16}
    assert one.metrics == evaluate(loaded, task, batch_size=8)
    differs = any(abs(one.metrics[name] - other.metrics[name]) > 1e-3 for name in one.metrics)
    assert one.metrics_float32 == (other.metrics if differs else None)
    assert one.to_dict()["metrics_float32"] == one.metrics_float32
    assert other.metrics_float32 is None


def test_float32_scores_stand_in_a_comparison_too(gpt, task):
    half, _ = rounded(gpt)
    options = {"batch_size": 8, "cpu": True, "seeds": [0], "learning_rates": [3e-2], "budget_flops": 4_000_000}
    (seed,) = compare({"gpt": half}, task, **options).rows[0].seeds
    found = finetune(half, task, lr=3e-2, budget_flops=4_000_000, batch_size=8, cpu=True)
    assert (seed["metrics"], seed["metrics_float32"]) == (found.metrics, found.metrics_float32)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_another_type_trains_and_is_saved_in_that_type(hybrid, task, wanted, tmp_path, caplog):
    half, _ = rounded(hybrid)
    start = half if wanted == "float32" else hybrid
    with caplog.at_level(logging.WARNING, "manticore.training.precision"):
        result = finetune(start, task, dtype=wanted, **QUICK)
    assert kinds(start) == {getattr(torch, wanted)}
    assert ("changes below 1/512 of a weight are lost" in caplog.text) == (wanted == "bfloat16")
    start.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert kinds(loaded) == {getattr(torch, wanted)}
    assert result.metrics == evaluate(loaded, task, batch_size=8)
    if hasattr(loaded, "mixing"):
        assert {p.dtype for p in loaded.mixing.mixture_parameters()} <= {torch.float32}


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(path, task, tmp_path):
    half, _ = rounded(path)
    options = QUICK | {"save_steps": 2, "log_steps": 1}
    whole = finetune(copy.deepcopy(half), task, out=tmp_path / "whole", **options)

    def stop(step, steps, row):
        if step == 5:
            raise KeyboardInterrupt

    stopped = copy.deepcopy(half)
    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, task, out=tmp_path / "out", progress=stop, **options)
    assert kinds(stopped) == {torch.bfloat16}
    checkpoint = checkpoints(tmp_path / "out" / "checkpoints")[-1]
    assert checkpoint.name == "checkpoint-4"
    assert {t.dtype for t in load_file(checkpoint / "trained.safetensors").values()} == {torch.float32}
    resumed = finetune(copy.deepcopy(half), task, out=tmp_path / "out", resume=True, **options)
    assert resumed.history == whole.history
    assert resumed.metrics == whole.metrics
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(floating(resumed.model), floating(whole.model)))
    with pytest.raises(ManticoreError, match=r"started with dtype='auto' \(got 'float32'\)"):
        finetune(half, task, out=tmp_path / "out", resume=True, dtype="float32", **options)


def test_a_search_holds_what_trains_in_float32(hybrid, task):
    half, single = rounded(hybrid)
    options = {"steps": 4, "batch_size": 8, "cpu": True}
    one, other = (manticore.search(each, task, method="darts", **options) for each in (half, single))
    assert one.history == other.history
    assert torch.equal(one.weights, other.weights)
    assert kinds(half) == {torch.bfloat16}
    assert same(half, single)


def test_gradient_steps_of_an_alignment_hold_the_projectors_in_float32(hybrid):
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (24, 10)).tolist()
    from datasets import Dataset

    text = Dataset.from_dict({"input_ids": rows}).with_format("torch")
    half, _ = rounded(hybrid)
    coarse = copy.deepcopy(half)
    settings = {"tokens": 240, "holdout": 0.2, "batch_size": 4, "ridge": 1.0}
    manticore.align(coarse, text, **settings)
    manticore.align(half, text, steps=8, lr=1e-5, **settings)
    # none of these steps alone is as long as half of a bfloat16's distance to the next
    moved = [
        (a.detach().float() - b.detach().float()).abs().max().item()
        for a, b in zip(coarse.mixing.projectors.parameters(), half.mixing.projectors.parameters())
    ]
    assert kinds(half) == {torch.bfloat16}
    assert max(moved) > 0


def test_mad_holds_a_saved_model_in_float32(gpt):
    half, single = rounded(gpt)
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (32, 10))
    data = {split: (rows, np.roll(rows, 1, 1)) for split in ("train", "test")}
    protocol = Protocol("short", "constant", (0.9, 0.98), epochs=2, batch_size=8)
    before = copy.deepcopy(half)
    one, other = (train_runs(each, data, [Hyper(1e-3, 0.1)], protocol)[0] for each in (half, single))
    assert one.history == other.history
    assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(floating(half), floating(before)))


def test_what_a_family_never_holds_in_half_precision_stays_in_float32(gpt, task):
    gpt._keep_in_fp32_modules_strict = {"ln_f"}
    finetune(gpt, task, dtype="bfloat16", **QUICK)
    assert {n for n, p in gpt.named_parameters() if p.dtype == torch.float32} == {
        "transformer.ln_f.weight", "transformer.ln_f.bias",
    }  # fmt: skip


def test_under_autocast_what_does_not_train_keeps_its_type(hybrid, task):
    half, _ = rounded(discretize(hybrid, [0, 1]))
    before = copy.deepcopy(half)
    held = Precision(half, bf16=True, cpu=True, stage="finetune")
    half.requires_grad_(False)
    half.mixing.projectors.requires_grad_(True)
    held.hold()
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad and p.dim() > 1} == {torch.bfloat16}
    held.settle()
    assert same(half, before)
    result = finetune(half, task, bf16=True, trainable="frozen", **QUICK)
    assert kinds(half) == {torch.bfloat16}
    assert np.isfinite(result.metrics["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16'. Did you mean 'bfloat16'?"),
        ({"dtype": "bfloat16", "bf16": True}, "bf16: dtype=bfloat16 has no float32 weights"),
    ],
)
def test_impossible_types_are_refused(gpt, task, options, message):
    with pytest.raises(ManticoreError, match=f"finetune: {message}"):
        finetune(gpt, task, steps=1, batch_size=8, **options)


def test_a_weight_that_float16_cannot_hold_is_named(gpt, task):
    half, _ = rounded(gpt, torch.float16)
    held = Precision(half, bf16=False, cpu=True, stage="finetune")
    held.hold()
    with torch.no_grad():
        next(half.parameters()).view(-1)[0] = 1e5
    with pytest.raises(ManticoreError, match=r"a weight has grown to 1e\+05, which float16 cannot hold"):
        held.settle()


def test_fresh_embeddings_take_the_type_of_the_model(gpt):
    # a task with fresh rows: they are made in the model's type, trained in float32
    half, _ = rounded(gpt)
    own = copying_task(vocab_size=20)
    finetune(half, own, **QUICK)
    assert kinds(half) == {torch.bfloat16}
    assert not any(is_half(p.dtype) and not torch.isfinite(p).all() for p in half.parameters())
