"""Outputs through the life of a hybrid: combined, saved, discretized, trained, compiled, in half precision; refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hybrids import Build, at_random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.settings import Combine
from manticore.training.tokenizers import train_tokenizer
from manticore.training.trainable import set_trainable

OUTPUTS = ("probabilities", "bayes", "gate")


@pytest.fixture(scope="module")
def pair(parents: list[PreTrainedModel]) -> list[PreTrainedModel]:
    """Of the parents those that are fast."""
    return [parents[0], parents[2]]


def made(build: Build, pair: list, output: str, **given: object) -> ManticoreForCausalLM:
    """At random weights, with a gate that does something."""
    hybrid = at_random_weights(build("routed", output=output, models=pair, **given))
    for seed, parameter in enumerate(hybrid.output.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    return hybrid


def test_bayes_alone_is_the_ensemble_unless_a_mixing_is_given(build: Build, pair: list) -> None:
    assert build(None, output="bayes", models=pair).config.mixing == "routed"
    assert build(None, output="gate", models=pair).config.mixing == "translated"
    assert build("gated", output="bayes", models=pair).config.mixing == "gated"
    # options beside settings: what was left out there is still left out
    assert manticore.combine(pair, Combine(num_blocks=1), output="bayes", check=False).config.mixing == "routed"
    assert Combine().key()["mixing"] == "translated"


@pytest.mark.parametrize("output", OUTPUTS)
@torch.no_grad()
def test_what_is_saved_discretized_or_given_new_rows_keeps_its_output(
    build: Build, pair: list, ids: Tensor, tmp_path: Path, output: str
) -> None:
    hybrid = made(build, pair, output, **({"forgetting": 0.25} if output == "bayes" else {}))
    expected = hybrid(ids).logits
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.output, loaded.config.forgetting) == (output, 0.25 if output == "bayes" else 0)
    assert torch.equal(loaded(ids).logits, expected)
    loaded.mixing.adopt_mixture(build("routed", models=pair).mixing)
    assert not torch.equal(loaded(ids).logits, expected)
    loaded.mixing.adopt_mixture(hybrid.mixing)
    assert torch.equal(loaded(ids).logits, expected)
    loaded.resize_token_embeddings(99)
    assert loaded(ids).logits.shape[-1] == 99
    assert loaded.with_vocabulary(20)(ids % 20).logits.shape[-1] == 20
    # a path has nothing to choose from
    small = manticore.discretize(hybrid, [1] * hybrid.config.num_blocks)
    assert (small.config.output, small.config.forgetting) == ("logits", 0.0)
    assert not list(small.output.parameters())
    hybrid.set_mixture_weights([1] * hybrid.config.num_blocks)
    assert torch.equal(small(ids).logits, hybrid(ids).logits)


def test_a_folder_without_its_gates_is_refused(build: Build, pair: list, tmp_path: Path) -> None:
    made(build, pair, "gate").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name != "output.maps.1.weight"}
    assert len(kept) == len(weights) - 1
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ManticoreError, match=r"its output is 'gate', but the weights hold no output\.maps\.1\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    # a supernet that mixed logits, called a gated one by its configuration
    build("routed", models=pair).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "output": "gate"}))
    with pytest.raises(ManticoreError, match="its output is 'gate'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "baies"}, r"unknown output 'baies'. Did you mean 'bayes'"),
        ({"forgetting": 0.1}, r"forgetting: only with output bayes, got output 'logits'"),
        ({"output": "bayes", "forgetting": 1.0}, r"forgetting is 1.0 \(expected a share\). Fix: give 0"),
        ({"output": "bayes", "forgetting": -0.5}, r"forgetting is -0.5 \(expected a share\)"),
        ({"output": "gate", "mixing": "gated", "released": True}, r"the released function mixes logits, got 'gate'"),
    ],
)
def test_outputs_that_cannot_be_are_refused_in_a_line(pair: list, given: dict, message: str) -> None:
    with pytest.raises(ManticoreError, match=message) as error:
        manticore.combine(pair, num_blocks=1, check=False, **given)
    assert len(error.value.lines) == 1


def test_configurations_with_an_impossible_output_are_refused(build: Build, pair: list) -> None:
    hybrid = made(build, pair, "bayes")
    good = hybrid.config.to_dict()
    for changes, message in (
        ({"output": "baies", "forgetting": 0.0}, "unknown output 'baies'"),
        ({"forgetting": 1.5}, "forgetting is 1.5"),
        ({"output": "gate", "forgetting": 0.5}, "expected with bayes only"),
        ({"path": [0, 0, 0]}, "one component predicts alone"),
        ({"mixing": "gated", "released": True}, "whose function mixes logits"),
        ({"reembedded": [None, {"tokens": 9}]}, "component 1 was re-embedded"),
    ):
        with pytest.raises(ManticoreError, match=message):
            ManticoreForCausalLM(ManticoreConfig(**{**good, **changes}))
    with pytest.raises(ManticoreError, match="this hybrid's output is 'bayes'"):
        manticore.ManticoreForSequenceClassification.from_causal_lm(hybrid, num_labels=2)


@pytest.mark.parametrize("trainable", ["all", "frozen", "projectors", "lora"])
def test_a_gate_trains_whatever_else_does(build: Build, pair: list, ids: Tensor, trainable: str) -> None:
    hybrid = made(build, pair, "gate")
    set_trainable(hybrid, trainable)
    assert all(p.requires_grad for p in hybrid.output.parameters())
    hybrid.train()(ids, labels=ids).loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in hybrid.output.parameters())


@pytest.mark.parametrize("output", OUTPUTS)
def test_recomputed_activations_give_the_same_gradients(build: Build, pair: list, ids: Tensor, output: str) -> None:
    hybrid = made(build, pair, output).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            hybrid.gradient_checkpointing_enable()
        hybrid.zero_grad()
        hybrid(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in hybrid.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_in_half_precision_likelihoods_are_summed_in_float32(
    build: Build, pair: list, ids: Tensor, dtype: torch.dtype
) -> None:
    for output in OUTPUTS:
        hybrid = made(build, pair, output)
        exact = hybrid(ids, output_weights=True)
        half = hybrid.to(dtype)
        found = half(ids, output_weights=True, use_cache=True)
        assert found.logits.dtype == found.output_weights.dtype == torch.float32
        assert (found.output_weights - exact.output_weights).abs().max() < 0.05
        torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(ids.shape), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_compiled_hybrid_predicts_the_same_in_one_graph() -> None:
    parents = [tiny_model("gpt_neox", num_hidden_layers=1), tiny_model("llama", seed=1, num_hidden_layers=1)]
    ids = torch.arange(8).reshape(2, 4)
    torch._dynamo.reset()
    # what these two do is all that probabilities do
    for output in ("bayes", "gate"):
        supernet = at_random_weights(manticore.combine(parents, num_blocks=1, output=output, check=False))
        expected = supernet(ids).logits
        compiled = torch.compile(supernet, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-6, rtol=0)
        supernet.set_mixture_weights([[0.2, 0.8]])
        torch.testing.assert_close(compiled(ids).logits, supernet(ids).logits, atol=1e-6, rtol=0)
    torch._dynamo.reset()


@torch.no_grad()
def test_lm_eval_scores_texts_as_forward_does() -> None:
    models = pytest.importorskip(
        "lm_eval.models.huggingface", reason="lm-eval is not installed: pip install -e '.[eval]'"
    )
    tokenizer = train_tokenizer(["some text, and def some_code(): return"], 300)
    parents = [tiny_model(family, seed=k, vocab_size=300) for k, family in enumerate(("mistral", "llama"))]
    for output in OUTPUTS:
        hybrid = manticore.combine(parents, num_blocks=1, output=output, tokenizer=tokenizer, check=False)
        scorer = models.HFLM(pretrained=hybrid, tokenizer=tokenizer, batch_size=2, device="cpu")
        pairs = [("some text", ", and def"), ("def", " some_code(): return some")]
        requests = [SimpleNamespace(args=pair) for pair in pairs]
        for (context, continuation), (scored, _) in zip(pairs, scorer.loglikelihood(requests, disable_tqdm=True)):
            start = len(tokenizer(context).input_ids)
            ids = torch.tensor([tokenizer(context + continuation).input_ids])
            logits = hybrid(ids).logits[0, start - 1 : -1].log_softmax(-1)
            assert abs(scored - float(logits.gather(-1, ids[0, start:, None]).sum())) < 1e-3
