"""A component with a fresh vocabulary is the same model, but for its embeddings and head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.tiny_families import tiny_model
from manticore.components.vocabulary import with_vocabulary
from manticore.errors import ManticoreError

# tied; untied; embeddings narrower than the layers; a bias in the head; positions that know the padding token;
# embeddings that scale; state-space
FAMILIES = ("gpt2", "gpt_neox", "opt", "gptj", "xglm", "gemma2", "mamba", "mamba2")


def fresh_names(model: PreTrainedModel) -> set[str]:
    fresh = {id(model.get_input_embeddings().weight)}
    fresh |= {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in fresh}


@pytest.mark.parametrize("rows", [13, 200])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_embeddings_and_head_change(family: str, rows: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    width = model.get_input_embeddings().weight.shape[1]
    assert with_vocabulary(model, rows, seed=3) is model

    assert model.get_input_embeddings().weight.shape == (rows, width)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    fresh = fresh_names(model)
    for name, value in model.state_dict().items():
        if name in fresh:
            assert value.shape[0] == rows, name
        else:
            assert torch.equal(value, before[name]), name

    with torch.no_grad():
        input_ids = torch.arange(rows)[None, :12]
        logits = model(input_ids=input_ids, use_cache=False).logits
        assert logits.shape == (1, 12, rows)
        model.save_pretrained(tmp_path / "model")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert torch.equal(loaded(input_ids=input_ids, use_cache=False).logits, logits)


@pytest.mark.parametrize("family", ["gpt2", "mamba2"])
def test_the_seed_decides_the_rows(family: str) -> None:
    def rows(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        model = with_vocabulary(tiny_model(family), 20, seed=seed)
        return torch.cat([model.get_input_embeddings().weight, model.get_output_embeddings().weight]).detach()

    assert torch.equal(rows(0, noise=1), rows(0, noise=2))
    assert not torch.equal(rows(0, noise=1), rows(1, noise=1))


def test_the_callers_randomness_is_left_alone() -> None:
    model = tiny_model("gpt2")
    state = torch.get_rng_state()
    with_vocabulary(model, 20)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba", "nemotron"])
def test_rows_are_drawn_as_the_family_draws_them(family: str) -> None:
    model = tiny_model(family)
    own = float(model.get_input_embeddings().weight.detach().std())
    fresh = float(with_vocabulary(model, 97).get_input_embeddings().weight.detach().std())
    assert fresh == pytest.approx(own, rel=0.1)


@pytest.mark.parametrize("family", ["llama", "opt", "xglm", "mamba"])
def test_every_row_trains_also_after_a_reload(family: str, tmp_path: Path) -> None:
    # a padding id that survived would keep its row from ever receiving a gradient
    model = with_vocabulary(tiny_model(family), 8)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) is None
        assert getattr(model.generation_config, name) is None
    model.save_pretrained(tmp_path / "model")
    for trained in (model, AutoModelForCausalLM.from_pretrained(tmp_path / "model")):
        trained(input_ids=torch.arange(8)[None], use_cache=False).logits.log_softmax(-1)[..., 0].sum().backward()
        assert bool((trained.get_input_embeddings().weight.grad.abs().sum(-1) > 0).all())


def test_no_rows_are_refused() -> None:
    with pytest.raises(ManticoreError, match="with_vocabulary: vocab_size is 0"):
        with_vocabulary(tiny_model("gpt2"), 0)
