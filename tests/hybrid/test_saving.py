"""Hybrids come back from disk as they were, in this process and in a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hybrids import BLOCKS, MIXINGS, Build, at_random_weights, random_weights
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.training.tokenizers import train_tokenizer

LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, logging
import manticore

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
found = {}
for folder in json.loads(sys.argv[1]):
    expected = torch.load(folder + "/expected.pt", weights_only=True)
    hybrid, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        logits = hybrid(expected["ids"], attention_mask=expected["mask"]).logits
    found[folder] = {
        "difference": float((logits - expected["logits"]).abs().max()),
        "weights": torch.equal(hybrid.mixture_weights, expected["weights"]),
        "made up": [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]],
    }
print(json.dumps(found))
"""


@torch.no_grad()
def test_a_new_process_computes_the_same_logits(
    build: Build, ids: Tensor, left_padding: dict[str, Tensor], tmp_path: Path
) -> None:
    hybrids: dict[str, ManticoreForCausalLM] = {}
    for mixing in MIXINGS:
        hybrids[mixing] = at_random_weights(build(mixing, 3))
        hybrids[f"{mixing} discretized"] = manticore.discretize(hybrids[mixing], [1, 2, 0])
    # tied tables, a family that fills derived tables from its body, experts in one tensor
    families = [tiny_model(name) for name in ("gpt2", "falcon_h1", "granitemoe")]
    hybrids["families"] = at_random_weights(build(models=families))
    for path in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        hybrids[f"families discretized {path}"] = manticore.discretize(hybrids["families"], path)
    hybrids["own vocabulary"] = build("routed", 3, projector="low-rank", projector_options={"rank": 3}, vocab_size=97)
    for output in ("bayes", "gate"):
        hybrids[output] = at_random_weights(build("routed", output=output))
        for parameter in hybrids[output].output.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    folders = []
    for number, hybrid in enumerate(hybrids.values()):
        folder = tmp_path / str(number)
        hybrid.save_pretrained(folder)
        mask = left_padding["attention_mask"]
        expected = {
            "ids": ids,
            "mask": mask,
            "weights": hybrid.mixture_weights,
            "logits": hybrid(ids, attention_mask=mask).logits,
        }
        torch.save(expected, folder / "expected.pt")
        folders.append(str(folder))
    output = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(folders)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = dict(zip(hybrids, json.loads(output.splitlines()[-1]).values()))
    same = {"difference": 0.0, "weights": True, "made up": []}
    assert found == dict.fromkeys(hybrids, same)


@pytest.mark.parametrize("mixing", MIXINGS)
@torch.no_grad()
def test_mixture_weights_survive_every_step(mixing: str, build: Build, tmp_path: Path) -> None:
    hybrid = build(mixing, 3)
    hybrid.set_mixture_weights(random_weights(BLOCKS, 3))
    before = hybrid.mixture_weights
    torch.testing.assert_close(before.sum(-1), torch.ones(BLOCKS), atol=1e-6, rtol=0)
    hybrid.save_pretrained(tmp_path / "supernet")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "supernet")
    assert torch.equal(loaded.mixture_weights, before)
    small = manticore.discretize(loaded)
    assert torch.equal(torch.tensor(small.config.searched_weights), before)
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(torch.tensor(again.config.searched_weights), before)
    assert again.mixture_weights.argmax(-1).tolist() == again.config.path == loaded.mixing.best_path()


@torch.no_grad()
def test_probabilities_stay_in_full_precision(build: Build, tmp_path: Path) -> None:
    hybrid = build("translated", 3)
    hybrid.set_mixture_weights(random_weights(BLOCKS, 3))
    hybrid.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.component(0).dtype == torch.bfloat16
    assert torch.equal(half.mixture_weights, hybrid.mixture_weights)


def test_loaded_weights_lie_as_fresh_ones_do(build: Build, tmp_path: Path) -> None:
    # at other addresses some kernels add in another order, and the last bits change
    build("translated", 3).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in loaded.parameters())


@torch.no_grad()
def test_shards(build: Build, ids: Tensor, tmp_path: Path) -> None:
    hybrid = at_random_weights(build("routed", 3))
    hybrid.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, hybrid(ids).logits)


def test_components_keep_their_families_names_and_ties(build: Build, tmp_path: Path) -> None:
    build(models=[tiny_model("gpt2"), tiny_model("gpt_neox")]).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "component_0.transformer.h.3.attn.c_attn.weight" in names
    assert "component_1.gpt_neox.layers.0.attention.dense.weight" in names
    # tied to the embeddings, so stored once
    assert "component_0.lm_head.weight" not in names
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).component(0)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_the_tokenizer_lies_beside_the_weights(checkpoints: list[Path], tmp_path: Path) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    hybrid.save_pretrained(tmp_path / "with")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    text = "return x + 1\n"
    for tokenizer in (loaded.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "with")):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    loaded.with_vocabulary(9).save_pretrained(tmp_path / "without")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "without")
    assert again.tokenizer is None
    assert again.config.vocab_size == 9


def test_the_tokenizer_is_looked_for_where_the_weights_are(checkpoints: list[Path], tmp_path: Path) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    hybrid.save_pretrained(tmp_path / "inner")
    train_tokenizer(["another text"], 259).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="inner")
    assert loaded.tokenizer.get_vocab() == hybrid.tokenizer.get_vocab()
    (tmp_path / "inner" / "tokenizer.json").unlink()
    (tmp_path / "inner" / "tokenizer_config.json").unlink()
    assert AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="inner").tokenizer is None


def test_the_tokenizer_of_a_hybrid_that_was_saved_there_before_is_left_out(
    checkpoints: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    hybrid.save_pretrained(tmp_path)
    hybrid.with_vocabulary(9).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).tokenizer is None
    assert "has 260 tokens, the hybrid 9: left out" in caplog.text
