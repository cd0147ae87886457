"""Fully sharded fine-tuning by two processes: it does what one does, and its files are whole."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from copying_task import VOCABULARY, copying_task
from safetensors.torch import load_file
from test_two_processes import SETTINGS, supernet
from transformers import AutoModelForCausalLM
from two_processes import run_by_two

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.discretize import discretize
from manticore.processes import is_first, wait_for_all
from manticore.search.search import search
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune
from manticore.training.sharding import configure, is_sharded, save_model

WEIGHTS = [[0.25, 0.75], [0.5, 0.5]]
NAMES = ["path", "supernet", "parent", "twin", "twin path"]
"""Models that are trained; the last begins in a parent and ends in its twin."""


def model(name):
    if name.startswith("twin"):
        # the task has no padding, whose row would be zero
        options = {"num_hidden_layers": 2, "tie_word_embeddings": True, "pad_token_id": None}
        parent = tiny_model("llama", vocab_size=VOCABULARY, seed=1, **options)
        if name == "twin":
            return manticore.twin(parent)
        net = manticore.combine([parent, manticore.twin(parent)], num_blocks=2, check=False)
        # embeddings of the one, head of the other
        return discretize(net, path=[0, 1]) if name == "twin path" else net
    net = supernet()
    if name == "parent":
        return net.component(0)
    net.set_mixture_weights(WEIGHTS)
    return discretize(net, path=[0, 1]) if name == "path" else net


def run(net, out, **more):
    result = finetune(net, copying_task(examples=21), out=out, **SETTINGS, **more)
    return {"losses": [row["loss"] for row in result.history], "metrics": result.metrics}


def shard_on_cpu():
    """accelerate shards on accelerators only; the rest of it and torch's FSDP2 work on CPUs too."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    # the run that was refused has joined the processes
    assert torch.distributed.is_initialized()
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def one_table(net):
    """Whether a model predicts with the table of its embeddings."""
    head = net.get_output_embeddings()
    return head is not None and head.weight is net.get_input_embeddings().weight


def refusal(call):
    with pytest.raises(ManticoreError) as error:
        call()
    return str(error.value)


def work(folder):
    """What each of the two processes does."""
    folder = Path(folder)
    unsharded = refusal(lambda: run(model("path"), None))
    shard_on_cpu()
    outcome = {"unsharded": unsharded, "lora": refusal(lambda: run(model("path"), None, trainable="lora"))}
    outcome["twins"] = refusal(lambda: run(model("twins"), None))
    outcome["search"] = refusal(
        lambda: search(model("supernet"), copying_task(), method="darts", steps=2, batch_size=4, cpu=True)
    )
    for name in NAMES:
        net = model(name)
        outcome[name] = run(net, folder / name)
        assert is_sharded(net)
        if name == "supernet":
            outcome[name]["mixture"] = net.mixture_weights.tolist()
        save_model(net, folder / f"{name}-saved")
    half = model("path").bfloat16()
    result = finetune(half, copying_task(examples=21), **SETTINGS)
    save_model(half, folder / "half-saved", result.dtypes)
    outcome["half"] = {"metrics": result.metrics, "kinds": sorted({str(p.dtype) for p in half.parameters()})}
    if is_first():
        # as if it had been killed after the checkpoint before the last
        shutil.copytree(folder / "path", folder / "stopped")
        shutil.rmtree(folder / "stopped" / "checkpoints" / "checkpoint-6")
    wait_for_all()
    outcome["resumed"] = run(model("path"), folder / "stopped", resume=True)
    return outcome


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return run_by_two(tmp_path_factory, __file__, "fsdp2", ACCELERATE_TORCH_DEVICE="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_sharded_training_equals_one_process_with_twice_the_accumulation(by_two, name, tmp_path):
    folder, (both, other) = by_two
    assert both[name] == other[name]
    net = model(name)
    alone = run(net, tmp_path / "alone", accumulation=2)
    # the same gradients, summed in another order: float32 rounding, which Adam may raise where a gradient is near zero
    torch.testing.assert_close(torch.tensor(both[name]["losses"]), torch.tensor(alone["losses"]), atol=1e-5, rtol=0)
    saved = AutoModelForCausalLM.from_pretrained(folder / f"{name}-saved")
    assert type(saved) is type(net)
    assert one_table(saved) == one_table(net) == (name in ("parent", "twin", "twin path"))
    for (key, own), (_, shared) in zip(net.named_parameters(), saved.named_parameters(), strict=True):
        torch.testing.assert_close(shared, own, atol=1e-4, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    for metric, value in alone["metrics"].items():
        assert both[name]["metrics"][metric] == pytest.approx(value, abs=1e-4)


def test_half_precision_weights_train_sharded_in_float32_and_are_saved_as_they_came(by_two):
    folder, (both, _) = by_two
    assert both["half"]["kinds"] == ["torch.float32"]
    saved = AutoModelForCausalLM.from_pretrained(folder / "half-saved")
    assert {p.dtype for p in saved.parameters()} == {torch.bfloat16}
    alone = model("path").bfloat16()
    finetune(alone, copying_task(examples=21), accumulation=2, **SETTINGS)
    for own, shared in zip(alone.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(shared, own, atol=1e-4, rtol=2**-7)
    # what is scored are float32 numbers that bfloat16 can hold
    for metric, value in evaluate(saved.float(), copying_task(examples=21)).items():
        assert both["half"]["metrics"][metric] == pytest.approx(value, abs=1e-5)


def test_mixture_weights_stay_whole_and_as_they_were(by_two):
    folder, (both, other) = by_two
    assert both["supernet"]["mixture"] == other["supernet"]["mixture"] == WEIGHTS
    assert load_file(folder / "supernet-saved" / "model.safetensors")["mixing.weights"].tolist() == WEIGHTS


def test_a_sharded_checkpoint_holds_a_part_from_each_process_and_resumes(by_two):
    folder, (both, _) = by_two
    parts = folder / "path" / "checkpoints" / "checkpoint-6" / "pytorch_model_fsdp_0"
    assert sorted(entry.name for entry in parts.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]
    assert both["resumed"]["losses"] == both["path"]["losses"]
    assert both["resumed"]["metrics"] == both["path"]["metrics"]


def test_the_parts_of_a_checkpoint_merge_to_the_saved_model(by_two, tmp_path):
    folder, _ = by_two
    merge_fsdp_weights(folder / "path" / "checkpoints" / "checkpoint-6" / "pytorch_model_fsdp_0", tmp_path)
    merged, saved = load_file(tmp_path / "model.safetensors"), load_file(folder / "path-saved" / "model.safetensors")
    assert merged.keys() == saved.keys()
    assert all(torch.equal(merged[key], saved[key]) for key in saved)


def test_what_cannot_be_sharded_is_refused(by_two):
    _, (both, _) = by_two
    assert "FSDP was asked for, but accelerate shards models on accelerators only" in both["unsharded"]
    assert "low-rank updates cannot be merged into sharded weights" in both["lora"]
    assert both["twins"] == (
        "finetune: decoder layers share weights, which cannot be split layer by layer. "
        "Fix: data parallelism (manticore cp ddp-gpu)"
    )
    assert "search: sharded training splits the mixture weights" in both["search"]


@pytest.mark.parametrize(
    ("setting", "text"),
    [({"fsdp_version": 1}, "FSDP version 1"), ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading")],
)
def test_settings_that_would_lose_something_are_refused(setting, text):
    plugin = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **setting})
    assert text in refusal(lambda: configure(plugin, model("path"), "finetune"))


def test_the_saved_configuration_names_the_class_itself(by_two):
    folder, _ = by_two
    assert json.loads((folder / "path-saved" / "config.json").read_text())["architectures"] == ["ManticoreForCausalLM"]
