"""What weight decay falls on: maps, embeddings and convolutions, in every way of training."""

import pytest
import torch
from copying_task import copying_task
from torch import nn
from transformers import AutoModelForCausalLM, Trainer

import manticore
from benchmarks.tiny_families import tiny_config
from manticore.components.rebuilding import copied
from manticore.experiments.compare import compare
from manticore.hybrid.discretize import discretize
from manticore.registry import entries
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.training.decay import decayed
from manticore.training.finetune import finetune
from manticore.training.pretrain import pretrain

FAMILIES = (
    "mamba", "falcon_mamba", "mamba2", "jamba", "bamba", "zamba2", "falcon_h1", "nemotron_h", "granitemoehybrid",
    "qwen3_next", "olmo_hybrid", "lfm2", "gpt_oss", "gpt2", "gpt_neo", "llama", "gemma2",
    "cohere",
)  # fmt: skip


def names(model):
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_family_the_maps_decay_and_nothing_that_sets_a_recurrence_or_a_scale(family):
    with torch.device("meta"):
        # which has two dimensions
        norm_per_head = {"use_qk_norm": True} if family == "cohere" else {}
        model = AutoModelForCausalLM.from_config(tiny_config(family, **norm_per_head))
    found = set(decayed(model, names(model)))
    maps = (nn.Linear, nn.Embedding, nn.Conv1d)
    expected = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, maps)} & {
        *names(model)
    }
    assert expected <= found
    assert all(model.get_parameter(name).dim() > 1 for name in found)
    rest = {name.rpartition(".")[2] for name in found - expected}
    # the maps of experts, and GPT-2's, are modules of their own
    assert rest <= {"weight", "gate_up_proj", "down_proj", "up_proj"}
    assert not any("norm" in name.split(".")[-2] for name in found)


@pytest.mark.parametrize("layer", entries("layer"))
def test_of_a_stack_the_maps_decay_and_nothing_that_sets_a_recurrence_or_a_scale(layer):
    config = StackConfig(layers=[layer], vocab_size=16, hidden_size=64, max_position_embeddings=16)
    with torch.device("meta"):
        model = StackForCausalLM(config)
    spared = set(names(model)) - set(decayed(model, names(model)))
    tables = {name.rpartition(".")[2] for name in spared if model.get_parameter(name).dim() > 1}
    allowed = {
        "mamba": {"A_log"},
        "rwkv5-time-mixer": {"bonus"},
        "rwkv6-time-mixer": {"bonus", "mixes", "mix_down", "mix_up", "decay_down", "decay_up"},
        "rwkv7-time-mixer": {"bonus", "mixes", "down", "up"},
    }
    hyena = {"table", "weight"} if "hyena" in layer or "gconv-2" in layer else set()
    assert tables == ({"A_log"} if "rec-" in layer else allowed.get(layer, hyena)), layer


def test_marks_of_a_family_count_and_outlive_a_copy(gpt):
    block = gpt.transformer.h[0]
    block.mlp.c_fc.weight._no_weight_decay = True
    block.attn._no_weight_decay = True
    gpt.transformer.h[1].mlp.c_proj._no_weight_decay = ["weight"]
    for model in (gpt, copied(gpt)):
        if model is not gpt:
            model.transformer.h[0].attn._no_weight_decay = True
        kept = set(decayed(model, names(model)))
        assert "transformer.h.0.mlp.c_fc.weight" not in kept
        assert not any(name.startswith("transformer.h.0.attn.") for name in kept)
        assert "transformer.h.1.mlp.c_proj.weight" not in kept
        assert "transformer.h.1.mlp.c_fc.weight" in kept


def test_no_way_of_training_decays_more(gpt, mamba, hybrid, task, monkeypatch, tmp_path):
    seen = []
    create = Trainer.create_optimizer

    def watch(self, *args, **kwargs):
        optimizer = create(self, *args, **kwargs)
        known = {id(p): name for name, p in self.model.named_parameters()}
        groups = getattr(optimizer, "network", optimizer).param_groups
        seen.append({known[id(p)]: group["weight_decay"] for group in groups for p in group["params"]})
        return optimizer

    monkeypatch.setattr(Trainer, "create_optimizer", watch)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path))
    quick = {"steps": 1, "batch_size": 8, "cpu": True, "weight_decay": 0.5}
    finetune(discretize(hybrid, [1, 0]), task, **quick)
    manticore.search(hybrid, task, method="darts", **quick)
    pretrain("mamba", layers=1, width=8, length=16, max_bytes=40_000, **quick)
    step = {"budget_flops": 4_000_000, "seeds": [0], "batch_size": 8, "cpu": True, "weight_decay": 0.5}
    compare([mamba], copying_task(), learning_rates=[1e-3], **step)
    assert len(seen) == 4
    for groups in seen:
        spared = {name for name in groups if name.endswith(("A_log", ".D", "bias", "norm.weight", "norm_f.weight"))}
        assert any(name.endswith("A_log") for name in spared)
        assert not any(groups[name] for name in spared)
        assert not any("mixing.weights" in name for name in groups)
        assert all(groups[name] == 0.5 for name in groups if name.endswith(("in_proj.weight", "embeddings.weight")))
