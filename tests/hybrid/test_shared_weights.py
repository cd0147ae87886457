"""A parent and its twins in one hybrid: what they have in common is one tensor, everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import VOCABULARY, tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.training.trainable import add_lora

DEPTH = 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "gpt2": {},
}
"""Tied tables, tables apart, one matrix for all maps of attention."""


@pytest.fixture(scope="module", params=FAMILIES)
def parent(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param, seed=1, **FAMILIES[request.param])


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("llama", seed=1, **FAMILIES["llama"])


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def beside(parent: PreTrainedModel, **options: Any) -> ManticoreForCausalLM:
    """A parent and a twin of it, one block per layer."""
    return manticore.combine([parent, manticore.twin(parent, **options)], num_blocks=DEPTH)


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


def count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def mixers_of(twin: Any) -> int:
    """Parameters that a twin has for itself."""
    return sum(count(mixer) for mixer in twin.mixers.values())


def test_what_they_have_in_common_is_held_once_and_vertices_stay_exact(parent: PreTrainedModel, tokens: Tensor) -> None:
    twin = manticore.twin(parent)
    hybrid = manticore.combine([parent, twin], num_blocks=DEPTH)
    own = sum(parameter.numel() for parameter in hybrid.mixing.parameters())
    assert count(hybrid) - own == count(parent) + mixers_of(twin)
    for k, model in enumerate((parent, twin)):
        hybrid.set_mixture_weights([k] * DEPTH)
        assert torch.equal(logits(hybrid, tokens), logits(model, tokens))
    # the models that were given are copies' originals, and share nothing
    assert not {id(p) for p in parent.parameters()} & {id(p) for p in hybrid.parameters()}


def test_folders_hold_it_once_and_a_new_process_too(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    hybrid = beside(llama, layers=[1])
    hybrid.set_mixture_weights([[0.25, 0.75]] * DEPTH)
    models = {"hybrid": hybrid, "small": manticore.discretize(hybrid, [0, 1])}
    torch.save(tokens, tmp_path / "ids.pt")
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        held = sum(tensor.numel() for tensor in load_file(tmp_path / name / "model.safetensors").values())
        assert held == count(model) == model.num_parameters()
        torch.save(logits(model, tokens), tmp_path / f"{name}.pt")
    told = subprocess.run(
        [
            sys.executable, "-c",
            "import torch, manticore; from transformers import AutoModelForCausalLM as A\n"
            "ids = torch.load('ids.pt')\n"
            "for name in ('hybrid', 'small'):\n"
            "    model = A.from_pretrained(name).eval()\n"
            "    assert torch.equal(model(input_ids=ids, use_cache=False).logits, torch.load(name + '.pt'))\n"
            "    print(sum(p.numel() for p in model.parameters()), model.config.shared_weights)",
        ],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert told.stdout.splitlines() == [f"{count(hybrid)} [0, 0]", f"{count(models['small'])} None"]


def test_a_folder_of_before_holds_both_and_loads(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    hybrid = beside(llama)
    expected = logits(hybrid, tokens)
    hybrid.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    values = json.loads(config.read_text())
    assert values.pop("shared_weights") == [0, 0]
    config.write_text(json.dumps(values))
    # each component's tensors under its own name
    save_file({name: t.clone() for name, t in hybrid.state_dict().items()}, weights, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.shared_weights is None
    assert torch.equal(logits(loaded, tokens), expected)
    name = "model.layers.1.mlp.up_proj.weight"
    ours, theirs = loaded.component(0).get_parameter(name), loaded.component(1).get_parameter(f"parent.{name}")
    assert ours is not theirs
    assert torch.equal(ours, theirs)


def test_a_step_moves_it_once_by_both_gradients(llama: PreTrainedModel, tokens: Tensor) -> None:
    hybrid = beside(llama)
    hybrid.train()
    apart = manticore.combine([llama, manticore.twin(llama)], num_blocks=DEPTH)
    apart.config.shared_weights = None
    # the same hybrid with tensors of their own
    for module in apart.component_1.modules():
        for own, parameter in module.named_parameters(recurse=False):
            setattr(module, own, torch.nn.Parameter(parameter.detach().clone()))
    apart.train()
    for model in (hybrid, apart):
        model.set_mixture_weights([[0.5, 0.5]] * DEPTH)
        model(input_ids=tokens, labels=tokens).loss.backward()
    name = "model.layers.1.mlp.up_proj.weight"
    whole = hybrid.component_0.get_parameter(name)
    assert whole is hybrid.component_1.get_parameter(f"parent.{name}")
    parts = [apart.component_0.get_parameter(name).grad, apart.component_1.get_parameter(f"parent.{name}").grad]
    torch.testing.assert_close(whole.grad, parts[0] + parts[1])
    before = whole.detach().clone()
    torch.optim.SGD(hybrid.parameters(), lr=0.1).step()
    torch.testing.assert_close(whole.detach(), before - 0.1 * whole.grad)


@pytest.mark.parametrize("path", [[0, 1], [1, 0], [0, 0], [1, 1]])
def test_a_path_keeps_each_layer_once_and_one_table(
    parent: PreTrainedModel, tokens: Tensor, path: list[int], tmp_path: Path
) -> None:
    hybrid = beside(parent)
    hybrid.set_mixture_weights(path)
    wanted = logits(hybrid, tokens)
    small = manticore.discretize(hybrid, path)
    assert torch.equal(logits(small, tokens), wanted)
    table, head = small.get_input_embeddings(), small.get_output_embeddings()
    tied = bool(parent.config.tie_word_embeddings)
    assert (table.weight is head.weight) == tied
    small.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(loaded, tokens), wanted)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert count(loaded) == count(small)
    loaded.train()(input_ids=tokens, labels=tokens).loss.backward()


def test_a_parent_that_was_trained_since_shares_nothing(llama: PreTrainedModel) -> None:
    twin = manticore.twin(llama)
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight += 1
    hybrid = manticore.combine([llama, twin], num_blocks=DEPTH)
    assert hybrid.config.shared_weights is None
    assert "shared_weights" not in hybrid.config.to_dict()


def test_two_twins_share_with_each_other_and_not_their_mixers(llama: PreTrainedModel, tokens: Tensor) -> None:
    twins = [manticore.twin(llama, mixer=name, layers=[k]) for k, name in enumerate(("mamba-2", "sliding-attention"))]
    hybrid = manticore.combine([llama, *twins], num_blocks=DEPTH)
    assert hybrid.config.shared_weights == [0, 0, 0]
    mixers = sum(mixers_of(twin) for twin in twins)
    assert count(hybrid) - sum(p.numel() for p in hybrid.mixing.parameters()) == count(llama) + mixers
    without = manticore.combine(twins, num_blocks=DEPTH)
    assert without.config.shared_weights == [0, 0]
    for k, twin in enumerate(twins):
        without.set_mixture_weights([k] * DEPTH)
        assert torch.equal(logits(without, tokens), logits(twin, tokens))


def test_new_rows_stay_one_table(llama: PreTrainedModel) -> None:
    hybrid = beside(llama)
    hybrid.resize_token_embeddings(VOCABULARY + 3)
    tables = [hybrid.component(k).get_input_embeddings().weight for k in range(2)]
    heads = [hybrid.component(k).get_output_embeddings().weight for k in range(2)]
    assert len({id(weight) for weight in (*tables, *heads)}) == 1
    hybrid.with_vocabulary(7)
    tables = [hybrid.component(k).get_input_embeddings().weight for k in range(2)]
    assert tables[0] is tables[1]
    assert tables[0].shape[0] == 7
    assert tables[0].std() > 0


@pytest.mark.parametrize("path", [[0, 1], [1, 0]])
def test_new_rows_of_a_path_stay_one_table(llama: PreTrainedModel, path: list[int], tmp_path: Path) -> None:
    small = manticore.discretize(beside(llama), path)
    for rows in (VOCABULARY + 3, VOCABULARY - 3):
        small.resize_token_embeddings(rows)
        assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
        assert small.get_input_embeddings().weight.shape[0] == rows
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert count(loaded) == count(small)
    small.with_vocabulary(7)
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert small(input_ids=torch.arange(7)[None]).logits.shape == (1, 7, 7)


def test_adapters_go_where_weights_are_not_shared(llama: PreTrainedModel) -> None:
    hybrid = beside(llama, layers=[1])
    targets = manticore.lora_targets(hybrid)
    assert targets
    assert all(".layers.1.self_attn." in name for name in targets)
    add_lora(hybrid, rank=2, seed=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0], r"expected for each of 2 components the first it shares with"),
        ([1, 1], r"expected for each of 2 components the first it shares with"),
        ([0, 5], r"expected for each of 2 components the first it shares with"),
    ],
)
def test_a_wrong_note_of_what_is_shared_is_refused(llama: PreTrainedModel, given: list[int], said: str) -> None:
    values = beside(llama).config.to_dict()
    with pytest.raises(ManticoreError, match=said):
        ManticoreConfig(**{**values, "shared_weights": given})


def test_sharing_without_one_feature_space_is_refused(llama: PreTrainedModel) -> None:
    values = beside(llama).config.to_dict()
    with pytest.raises(ManticoreError, match="components 0 and 1 share weights, and no feature space"):
        ManticoreConfig(**{**values, "feature_spaces": None})
