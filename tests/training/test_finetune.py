"""Fine-tuning and scoring, on parents and hybrids alike."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from copying_task import LENGTH, VOCABULARY, copying_task
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from manticore.errors import ManticoreError
from manticore.experiments.compare import compare
from manticore.hybrid.discretize import discretize
from manticore.kernels.mamba import use_selective_scan
from manticore.training.batches import Collator
from manticore.training.budget import flops_per_step
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune
from manticore.training.prepare import positions
from manticore.training.trainer import default_warmup


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt", "mamba", "hybrid", "discretized"])
def test_training_lowers_the_loss_of_parents_and_hybrids(kind, request, task):
    model = discretize(request.getfixturevalue("hybrid"), [1, 0]) if kind == "discretized" else None
    model = model or request.getfixturevalue(kind)
    before = evaluate(model, task)["loss"]
    result = finetune(model, task, steps=30, batch_size=8, lr=1e-2)
    assert result.model is model
    assert result.metrics["loss"] < before - 0.2
    assert result.metrics == evaluate(model, task)
    assert result.steps == 30
    assert result.tokens == 30 * 8 * LENGTH
    assert result.flops == 30 * flops_per_step(model, 8, LENGTH)
    assert [row["step"] for row in result.history] == list(range(1, 31))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    json.dumps(result.to_dict())


@pytest.mark.parametrize("switched", [False, True])
def test_a_users_choice_of_scan_outlives_the_job(mamba, task, switched):
    if switched:
        use_selective_scan(mamba)
    before = [type(module) for module in mamba.modules()]
    evaluate(mamba, task, max_examples=2)
    assert [type(module) for module in mamba.modules()] == before
    for trainable in ("all", "lora"):
        finetune(mamba, task, steps=1, batch_size=2, trainable=trainable, test_examples=2)
        assert [type(module) for module in mamba.modules()] == before
    with pytest.raises(ManticoreError, match="loss is nan"):
        finetune(mamba, task, steps=3, batch_size=2, lr=1e30)
    assert [type(module) for module in mamba.modules()] == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order(gpt, task):
    runs = [finetune(copy.deepcopy(gpt), task, steps=4, batch_size=8, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (weights(run.model) for run in runs)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert runs[0].history == runs[1].history
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_the_loss_is_that_of_aligned_targets(gpt, task):
    rows = task.data["train"].with_format("torch")[:]
    with torch.no_grad():
        logits = gpt.eval()(input_ids=rows["input_ids"]).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), rows["targets"].flatten(), ignore_index=-100)
    history = finetune(gpt, task, steps=1, batch_size=24).history
    assert history[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_fine_tuning_warms_up_by_default(gpt, task):
    rates = [row["learning_rate"] for row in finetune(gpt, task, steps=12, batch_size=8, lr=1e-3).history]
    # logged after the step that was made with it
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(10)])
    assert rates[10:] == pytest.approx([1e-3] * 2)
    at_once = finetune(gpt, task, steps=2, batch_size=8, lr=1e-3, warmup_steps=0).history
    assert [row["learning_rate"] for row in at_once] == pytest.approx([1e-3] * 2)
    assert [default_warmup(steps) for steps in (1, 100, 101, 5000)] == [10, 10, 11, 500]


def test_micro_batches_change_nothing_but_rounding(gpt):
    # the number of targets differs between the micro-batches
    task = copying_task()
    ragged = task.data["train"].map(
        lambda row, i: {"targets": [-100] * (i % LENGTH) + row["targets"][i % LENGTH :]}, with_indices=True
    )
    task.data["train"] = ragged
    whole = finetune(copy.deepcopy(gpt), task, steps=3, batch_size=8, accumulation=1)
    parts = finetune(copy.deepcopy(gpt), task, steps=3, batch_size=8, accumulation=4)
    for (name, one), other in zip(weights(whole.model).items(), weights(parts.model).values()):
        assert torch.allclose(one, other, atol=2e-5), name
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], abs=1e-5)


def test_a_budget_becomes_steps(gpt, task):
    step = flops_per_step(gpt, 8, LENGTH)
    result = finetune(gpt, task, budget_flops=int(3.9 * step), batch_size=8)
    assert (result.steps, result.flops) == (3, 3 * step)


def test_mixture_weights_stay_as_they_are(hybrid, task):
    hybrid.set_mixture_weights(torch.tensor([[0.3, 0.7], [0.9, 0.1]]))
    finetune(hybrid, task, steps=2, batch_size=8)
    assert torch.equal(hybrid.mixture_weights, torch.tensor([[0.3, 0.7], [0.9, 0.1]]))


def test_frozen_components_stay_as_they_are(hybrid, task):
    before = weights(hybrid)
    finetune(hybrid, task, steps=2, batch_size=8, trainable="projectors")
    changed = {n for n, p in hybrid.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("mixing.projectors.") for n in changed)
    assert not any(".layers." in n or ".h." in n for n in changed)


def test_lora_leaves_an_ordinary_model_with_changed_layers(hybrid, task):
    before = weights(hybrid)
    result = finetune(hybrid, task, steps=2, batch_size=8, trainable="lora", lora_rank=2)
    after = weights(hybrid)
    assert set(after) == set(before)
    assert not torch.equal(
        after["component_1.backbone.layers.0.mixer.in_proj.weight"],
        before["component_1.backbone.layers.0.mixer.in_proj.weight"],
    )
    assert torch.equal(
        after["component_1.backbone.layers.0.mixer.out_proj.weight"],
        before["component_1.backbone.layers.0.mixer.out_proj.weight"],
    )
    assert result.metrics == evaluate(hybrid, task)


def test_the_configuration_is_not_changed_by_training(gpt, task):
    before = gpt.config.to_dict()
    finetune(gpt, task, steps=1, batch_size=8)
    assert gpt.config.to_dict() == before
    assert gpt.config.use_cache


def test_activations_recomputed_give_the_same_training(gpt, task):
    plain = finetune(copy.deepcopy(gpt), task, steps=3, batch_size=8)
    saving = finetune(gpt, task, steps=3, batch_size=8, gradient_checkpointing=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(plain.model).values(), weights(gpt).values()))
    assert saving.flops > plain.flops
    assert not gpt.is_activation_checkpointing


def test_a_task_with_its_own_vocabulary_gives_fresh_embeddings(hybrid, gpt):
    own = copying_task(vocab_size=20)
    for model in (hybrid, gpt):
        finetune(model, own, steps=1, batch_size=8, trainable="frozen")
        assert model.config.vocab_size == 20
        assert model.get_input_embeddings().weight.shape[0] == 20


def test_scoring_refuses_a_model_of_another_vocabulary(gpt):
    with pytest.raises(ManticoreError, match=r"vocabulary of 20 tokens, the model one of 13\. Fix: fine-tune"):
        evaluate(gpt, copying_task(vocab_size=20))


def test_scoring_keeps_every_modules_mode(hybrid, task):
    hybrid.train()
    hybrid.component(0).eval()
    before = [module.training for module in hybrid.modules()]
    evaluate(hybrid, task, split="validation", max_examples=5)
    assert [module.training for module in hybrid.modules()] == before
    assert all(p.grad is None for p in hybrid.parameters())


def test_scoring_does_not_depend_on_the_batch_size(hybrid, task):
    one, three = (evaluate(hybrid, task, batch_size=n) for n in (1, 3))
    assert one["accuracy"] == three["accuracy"]
    assert one["loss"] == pytest.approx(three["loss"], abs=1e-6)


def test_training_in_bfloat16(hybrid, task):
    before = evaluate(hybrid, task)["loss"]
    result = finetune(hybrid, task, steps=20, batch_size=8, lr=1e-2, bf16=True)
    assert result.metrics["loss"] < before - 0.1
    assert {p.dtype for p in hybrid.parameters()} == {torch.float32}


def test_a_hybrid_whose_search_left_the_mixture_trainable_is_fine_tuned_at_its_weights(hybrid, task):
    for parameter in hybrid.mixing.mixture_parameters():
        parameter.requires_grad_(True)
    before = hybrid.mixture_weights
    finetune(hybrid, task, steps=2, batch_size=8, test_examples=1)
    assert torch.equal(hybrid.mixture_weights, before)


def test_scoring_some_examples(gpt, task):
    # the test split is the first seven rows of the training split
    assert evaluate(gpt, task, split="train", max_examples=7)["loss"] == pytest.approx(evaluate(gpt, task)["loss"])
    with pytest.raises(ManticoreError, match="has no split 'dev' \\(it has train, validation, test\\)"):
        evaluate(gpt, task, split="dev")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2, "budget_flops": 10**9}, "steps and budget_flops are both given"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 2, "lr": -1.0}, r"lr is -1.0 \(expected a positive number\)"),
        ({"steps": 2, "lr": float("nan")}, "lr is nan"),
        ({"budget_flops": 10}, "one step costs"),
        ({"steps": 2, "batch_size": 25}, "24 training examples, fewer than one batch"),
        ({"steps": 2, "batch_size": 8, "accumulation": 3}, "cannot be cut into 3 equal parts"),
        ({"steps": 2, "schedule": "step"}, "schedule is 'step' .expected 'constant', 'linear' or 'cosine'"),
        ({"steps": 2, "batch_size": 8, "trainable": "heads"}, "trainable is 'heads' .expected 'all', 'frozen'"),
    ],
)
def test_impossible_arguments_are_refused(gpt, task, options, message):
    with pytest.raises(ManticoreError, match=message):
        finetune(gpt, task, **options)


def test_what_is_no_model_or_no_task_is_refused(gpt, task, monkeypatch):
    # nobody waits for a hub that is not there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ManticoreError, match=r"finetune: 3 is not a model\. Fix: load it first"):
        finetune(3, task, steps=1)
    with pytest.raises(ManticoreError, match=r"folder: no such folder here"):
        finetune("folder", task, steps=1)
    with pytest.raises(ManticoreError, match="evaluate: None is not a task"):
        evaluate(gpt, None)
    with pytest.raises(ManticoreError, match="max_examples is 0"):
        evaluate(gpt, task, max_examples=0)


def test_examples_longer_than_the_positions_of_a_model_are_refused(gpt, hybrid, task):
    for model in (gpt, hybrid, discretize(hybrid)):
        long = replace(task, length=positions(model) + 1)
        for call in (finetune, evaluate):
            with pytest.raises(ManticoreError, match=f"{call.__name__}: examples of .* but the model has"):
                call(model, long)
    with pytest.raises(ManticoreError, match="compare: examples of copying have 33 tokens"):
        compare([gpt], long, seeds=(0,))


def test_rotary_positions_go_on_beyond_the_length_that_the_configuration_names(task, caplog):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=task.length - 1,
    )
    assert evaluate(LlamaForCausalLM(config), task)["loss"] > 0
    warned = [record.getMessage() for record in caplog.records if record.name == "manticore.training.prepare"]
    assert warned == [
        f"evaluate: examples of copying have {task.length} tokens, the configuration of llama names {task.length - 1}: "
        "positions beyond are new to it"
    ]


def test_a_loss_that_is_not_finite_stops_the_run(gpt, task, tmp_path):
    with pytest.raises(ManticoreError, match=r"finetune: (loss|gradient norm) is (nan|inf) at step \d+ of 40"):
        finetune(gpt, task, steps=40, batch_size=8, lr=1e18, max_grad_norm=1e18, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_a_full_disk_ends_with_one_line_and_keeps_what_was_saved(gpt, task, tmp_path):
    import resource

    finetune(gpt, task, steps=2, batch_size=8, out=tmp_path, save_steps=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ManticoreError, match=r"cannot write the checkpoint of step 1 .*Fix: free disk space"):
            finetune(gpt, task, steps=2, batch_size=8, out=tmp_path / "full", save_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = {p.name for p in (tmp_path / "full" / "checkpoints").iterdir()}
    assert not any(name.startswith("checkpoint-") for name in names)
    finetune(gpt, task, steps=2, batch_size=8, out=tmp_path / "full", save_steps=1, resume=True)


def test_without_a_folder_nothing_is_written(gpt, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune(gpt, task, steps=1, batch_size=8)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed_unless_asked(gpt, task, capfd):
    finetune(gpt, task, steps=2, batch_size=8)
    assert capfd.readouterr() == ("", "")
    finetune(gpt, task, steps=2, batch_size=8, progress=True)
    out, error = capfd.readouterr()
    assert out == ""
    assert "finetune" in error
    assert "2/2" in error


def test_shorter_examples_are_filled_up_on_the_right_with_positions_that_do_not_count():
    batch = Collator(5)([{"input_ids": [1, 2], "targets": [2, 3]}, {"input_ids": [4] * 5, "targets": [5] * 5}])
    assert batch["input_ids"].tolist() == [[1, 2, 0, 0, 0], [4] * 5]
    assert batch["targets"].tolist() == [[2, 3, -100, -100, -100], [5] * 5]
    assert "attention_mask" not in batch
    with pytest.raises(ManticoreError, match="has 6 tokens"):
        Collator(5)([{"input_ids": [1] * 6, "targets": [1] * 6}])
