"""What a checkpoint's files hold is what runs, whatever a family's initialisers do; precisions as from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaPreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.loaded_weights import keeping_loaded_weights
from manticore.components.loading import load_component
from manticore.components.rebuilding import named_tensors
from manticore.errors import ManticoreError

RESCALING = ("mamba", "falcon_mamba", "mamba2", "nemotron_h")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_as_stored(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    files, tensors = stored(folder), named_tensors(model)
    assert files
    for name in files:
        expected = files[name] if dtype is None else files[name].to(dtype)
        assert torch.equal(tensors[name], expected), name


@pytest.mark.parametrize("family", RESCALING)
def test_an_initialiser_that_rescales_leaves_a_checkpoint_alone(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, rescale_prenorm_residual=True)
    model.save_pretrained(tmp_path)
    loaded = named_tensors(load_component(tmp_path))
    for name, tensor in named_tensors(model).items():
        assert torch.equal(loaded[name], tensor), name


def test_hybrids_come_back_as_they_were_saved(tmp_path: Path) -> None:
    parents = [tiny_model("mamba", rescale_prenorm_residual=True), tiny_model("mamba2", rescale_prenorm_residual=True)]
    for k, parent in enumerate(parents):
        parent.save_pretrained(tmp_path / str(k))
    hybrid = manticore.combine([tmp_path / "0", tmp_path / "1"], num_blocks=2)
    hybrids = {"soft": hybrid, "hard": manticore.discretize(hybrid, [0, 1])}
    hows: list[dict[str, Any]] = [{}, {"device_map": {"": "cpu"}}, {"dtype": torch.bfloat16}]
    for name, each in hybrids.items():
        each.save_pretrained(tmp_path / name, max_shard_size="20KB")
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        for how in hows if name == "soft" else hows[:1]:
            again = AutoModelForCausalLM.from_pretrained(tmp_path / name, **how)
            assert_as_stored(again, tmp_path / name, how.get("dtype"))
    for k, parent in enumerate(parents):
        out = [name for name, _ in parent.named_parameters() if name.endswith("out_proj.weight")]
        assert out
        for name in out:
            assert torch.equal(hybrid.component(k).get_parameter(name), parent.get_parameter(name))


def test_an_initialiser_that_writes_past_every_guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = LlamaPreTrainedModel._init_weights

    def careless(self: LlamaPreTrainedModel, module: nn.Module) -> None:
        own(self, module)
        if isinstance(module, LlamaMLP):
            module.up_proj.weight.data.mul_(0.5)
            module.down_proj.weight = nn.Parameter(torch.zeros_like(module.down_proj.weight))

    tiny_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", careless)
    with pytest.raises(AssertionError, match=r"mlp\.(up|down)_proj"):
        assert_as_stored(LlamaForCausalLM.from_pretrained(tmp_path), tmp_path)
    assert_as_stored(load_component(tmp_path), tmp_path)


def test_what_no_file_held_is_still_initialised(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=tensors)
    with keeping_loaded_weights():
        again = LlamaForCausalLM.from_pretrained(tmp_path)
    fresh = again.model.layers[1].mlp.up_proj.weight
    assert fresh.device.type == "cpu"
    assert 0.01 < float(fresh.detach().std()) < 0.04


def test_a_version_that_initialises_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PreTrainedModel, "_initialize_missing_keys")
    with pytest.raises(ManticoreError, match="initialises missing weights in an unknown way"), keeping_loaded_weights():
        pass


# scales and biases that stay in float32, tables filled in the model's precision, experts that are joined on loading
@pytest.mark.parametrize("family", ["deepseek_v3", "gemma2", "qwen3_next", "nemotron_h", "mamba", "gpt_neo"])
def test_a_model_in_memory_is_cast_as_its_folder_would_be(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    for _, buffer in model.named_buffers():
        if buffer.is_floating_point() and not buffer.any():
            buffer.normal_()
    model.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    for dtype in (torch.bfloat16, torch.float16):
        expected, found = named_tensors(load_component(tmp_path, dtype=dtype)), load_component(model, dtype=dtype)
        assert named_tensors(found).keys() == expected.keys()
        for name, tensor in named_tensors(found).items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected[name]), name
            assert torch.equal(before[name], named_tensors(model)[name]), name
        assert found.dtype == found.config.dtype == dtype
        assert not found.training


def test_float32_for_all_is_float32_from_the_folder(tmp_path: Path) -> None:
    tiny_model("gemma2").bfloat16().save_pretrained(tmp_path)
    hybrid = manticore.combine([load_component(tmp_path), tiny_model("mamba")], num_blocks=2)
    expected = named_tensors(load_component(tmp_path, dtype=torch.float32))
    for name, tensor in named_tensors(hybrid.component(0)).items():
        assert torch.equal(tensor, expected[name]), name


def test_settings_of_a_model_in_memory_survive_a_cast() -> None:
    model = tiny_model("llama")
    model.generation_config.temperature, model.generation_config.eos_token_id = 0.3, [2, 7]
    model.config.name_or_path = "somewhere"
    model.config._attn_implementation = "eager"
    cast = load_component(model, dtype="bfloat16")
    assert cast.generation_config.to_dict() == model.generation_config.to_dict()
    assert cast.config.name_or_path == "somewhere"
    assert cast.config._attn_implementation == "eager"


def test_a_head_that_is_apart_stays_apart(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "parent")
    settings = json.loads((tmp_path / "parent" / "config.json").read_text())
    (tmp_path / "parent" / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    hybrid = manticore.combine([tmp_path / "parent", tiny_model("mamba")], num_blocks=2)
    small = manticore.discretize(hybrid, [0, 0])
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    ids = torch.arange(3, 14)[None]
    with torch.no_grad():
        for each in (small, again):
            assert torch.equal(each(ids).logits, model(ids).logits)
