"""Hybrids spread over devices and disk by accelerate, and saved in several files: the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hybrids import MIXINGS, Build, at_random_weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from manticore.hybrid.discretize import discretize
from manticore.hybrid.modeling import ManticoreForCausalLM

KINDS = (*MIXINGS, "path", "gate")


@pytest.fixture(scope="module", params=KINDS)
def saved(
    request: pytest.FixtureRequest, build: Build, ids: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ManticoreForCausalLM, Tensor]:
    """A folder of several files, the hybrid in memory, and its logits."""
    if request.param == "path":
        hybrid = discretize(build(components=3), path=[1, 0, 2])
    elif request.param == "gate":
        hybrid = at_random_weights(build("routed", output="gate"))
        for parameter in hybrid.output.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    else:
        hybrid = at_random_weights(build(request.param))
    folder = tmp_path_factory.mktemp(request.param)
    hybrid.eval().save_pretrained(folder, max_shard_size="20KB")
    with torch.no_grad():
        return folder, hybrid, hybrid(ids).logits


def size(hybrid: ManticoreForCausalLM) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in hybrid.parameters())


def load(folder: Path, **settings: object) -> ManticoreForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()


def test_several_files_load_as_one(saved, ids):
    folder, _, logits = saved
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with torch.no_grad():
        assert torch.equal(load(folder)(ids).logits, logits)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
def test_a_device_map_that_fits_changes_nothing(saved, ids, device_map):
    folder, _, logits = saved
    with torch.no_grad():
        assert torch.equal(load(folder, device_map=device_map)(ids).logits, logits)


def test_what_does_not_fit_into_memory_is_read_from_disk(saved, ids, left_padding, tmp_path):
    folder, hybrid, logits = saved
    room = {"cpu": size(hybrid) // 2}
    spread = load(folder, device_map="auto", max_memory=room, offload_folder=tmp_path)
    assert "disk" in spread.hf_device_map.values()
    assert "cpu" in spread.hf_device_map.values()
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mask = left_padding["attention_mask"]
    with torch.no_grad():
        assert torch.equal(spread(ids).logits, logits)
        expected = hybrid.generate(ids, attention_mask=mask, **settings)
        assert torch.equal(spread.generate(ids, attention_mask=mask, **settings), expected)


def test_an_explicit_map_may_put_any_part_on_disk(saved, ids, tmp_path):
    folder, hybrid, logits = saved
    kept = [name for name, child in hybrid.named_children() if child is not None]
    for part in kept:
        if not list(getattr(hybrid, part).parameters()):
            continue
        device_map = {name: "disk" if name == part else "cpu" for name in kept}
        with torch.no_grad():
            assert torch.equal(load(folder, device_map=device_map, offload_folder=tmp_path)(ids).logits, logits)


def test_no_weight_is_known_by_the_address_it_had_while_it_was_placed(saved, tmp_path):
    """Otherwise a part read from disk that lands there is given the tied table in its place, now and then."""
    folder, hybrid, _ = saved
    spread = load(folder, device_map="auto", max_memory={"cpu": size(hybrid) // 2}, offload_folder=tmp_path)
    hooks = [module._hf_hook for module in spread.modules() if hasattr(module, "_hf_hook")]
    hooks += [inner for hook in hooks for inner in getattr(hook, "hooks", ())]
    known = [hook.tied_params_map for hook in hooks if getattr(hook, "tied_params_map", None) is not None]
    assert known, "accelerate keeps them elsewhere now: look there"
    assert all(
        tensor.data_ptr() == address
        for addresses in known
        for address, on in addresses.items()
        for tensor in on.values()
    )
