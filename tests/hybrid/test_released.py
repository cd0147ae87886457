"""Gated mixing with ``released``: the function of the published code, against a twin written from its description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import NO_ENDS, gpt_neo_config, mamba_config, seeded
from torch import Tensor
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

import manticore
from manticore.errors import ManticoreError
from manticore.tasks.mad.tasks import in_context_recall

V, T = 37, 9


def gpt_neo(width: int = 16, layers: int = 2) -> PreTrainedModel:
    sizes = {"num_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32}
    return seeded(gpt_neo_config(V, width, layers, **sizes, **NO_ENDS), 1).eval()


def mamba(width: int = 12, layers: int = 4) -> PreTrainedModel:
    return seeded(mamba_config(V, width, layers, pad_token_id=None, **NO_ENDS), 2).eval()


def pythia(width: int = 16, layers: int = 2) -> GPTNeoXForCausalLM:
    torch.manual_seed(3)
    config = GPTNeoXConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


@torch.no_grad()
def released(*models: Any, blocks: int = 2, **options: Any) -> Any:
    """A hybrid at uneven mixture weights, its norms and projectors away from their starts."""
    hybrid = manticore.combine(list(models), num_blocks=blocks, mixing="gated", released=True, **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in hybrid.named_parameters():
        if "mixing.weights" not in name and "lm_head" not in name:
            # norms and biases start at 1 and 0, where much would not show
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    k = len(models)
    weights = torch.rand(blocks, k, generator=generator) + 0.1
    hybrid.set_mixture_weights(weights / weights.sum(-1, keepdim=True))
    return hybrid


def ids(batch: int = 2, tokens: int = T) -> Tensor:
    return torch.randint(V, (batch, tokens), generator=torch.Generator().manual_seed(5))


def pad(x: Tensor, width: int) -> Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:-1], width - x.shape[-1])], -1)


def layers_of(model: Any, x: Tensor, first: int, last: int, depth: int) -> Tensor:
    """A segment as the released code runs it: positions before layer 0, the family's norm after the last layer."""
    if isinstance(model, GPTNeoForCausalLM):
        body = model.transformer
        if first == 0:
            x = x + body.wpe.weight[: x.shape[1]]
        mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min).triu(1)[None, None]
        for layer in body.h[first:last]:
            out = layer(x, attention_mask=mask)
            x = out[0] if isinstance(out, tuple) else out
        return body.ln_f(x) if last == depth else x
    for layer in model.backbone.layers[first:last]:
        x = layer(x)
    return model.backbone.norm_f(x) if last == depth else x


@torch.no_grad()
def twin(hybrid: Any, tokens: Tensor) -> Tensor:
    """The released function from its description: K tables, pad and cut, gates, tied heads, block 0 at both ends."""
    alpha, blocks = hybrid.mixture_weights, hybrid.config.num_blocks
    parts = [hybrid.component(k) for k in range(hybrid.config.num_components)]
    widths = [part.config.hidden_size for part in parts]
    depths = [part.config.num_hidden_layers for part in parts]
    tables = [part.get_input_embeddings().weight for part in parts]
    wide = max(widths)
    h = sum(alpha[0, k] * pad(tables[k][tokens], wide) for k in range(len(parts)))
    maps = hybrid.mixing.projectors
    for n in range(blocks):
        mixed = torch.zeros_like(h)
        for k, part in enumerate(parts):
            a = alpha[n, k]
            x = ((1 - a) * pad(maps[f"{n}_in_{k}"](h), wide) + a * h)[..., : widths[k]]
            y = layers_of(part, x, depths[k] * n // blocks, depths[k] * (n + 1) // blocks, depths[k])
            mixed = mixed + a * ((1 - a) * pad(maps[f"{n}_out_{k}"](y), wide) + a * pad(y, wide))
        h = mixed
    return sum(alpha[0, k] * h[..., : widths[k]] @ tables[k].T for k in range(len(parts)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("widths", [(16, 16), (16, 12), (12, 16)])
def test_it_is_the_released_function_whole(widths: tuple[int, int], blocks: int) -> None:
    hybrid = released(gpt_neo(widths[0]), mamba(widths[1]), blocks=blocks)
    with torch.no_grad():
        found = hybrid(ids()).logits
    torch.testing.assert_close(found, twin(hybrid, ids()), rtol=0, atol=5e-7)
    assert float(found.std()) > 0.01


def test_each_of_its_marks_changes_the_logits() -> None:
    """Positions, norm, first block's weights, tied tables: none of them is without effect where it is tested."""
    hybrid = released(gpt_neo(), mamba())
    with torch.no_grad():
        before = hybrid(ids()).logits
        for tensor in (
            hybrid.component_0.transformer.wpe.weight,
            hybrid.component_0.transformer.ln_f.weight,
            hybrid.component_1.backbone.norm_f.weight,
            hybrid.component_1.get_output_embeddings().weight,
        ):
            kept = tensor.clone()
            tensor.add_(torch.randn_like(tensor))
            assert float((hybrid(ids()).logits - before).abs().max()) > 1e-3
            torch.testing.assert_close(hybrid(ids()).logits, twin(hybrid, ids()), rtol=0, atol=1e-5)
            tensor.copy_(kept)


def test_tables_are_fresh_and_tied_and_follow_the_seed() -> None:
    parents = gpt_neo(), pythia()
    made = [manticore.combine(list(parents), num_blocks=2, mixing="gated", released=True, seed=s) for s in (0, 0, 1)]
    for k, parent in enumerate(parents):
        tables = [hybrid.component(k).get_input_embeddings().weight for hybrid in made]
        assert torch.equal(tables[0], tables[1])
        assert not torch.equal(tables[0], tables[2])
        assert not torch.equal(tables[0], parent.get_input_embeddings().weight)
        assert float(tables[0].detach().std()) == pytest.approx(0.02, rel=0.15)
        assert made[0].component(k).get_output_embeddings().weight is tables[0]
    # what was given is left as it was
    assert parents[1].get_output_embeddings().weight is not parents[1].get_input_embeddings().weight
    first, second = (made[0].component(k).get_input_embeddings().weight for k in (0, 1))
    assert not torch.equal(first, second)


def test_a_task_with_its_own_vocabulary_gets_tables_of_the_same_kind() -> None:
    hybrid = manticore.combine([gpt_neo(), mamba()], num_blocks=2, mixing="gated", released=True, vocab_size=500)
    for k in (0, 1):
        part = hybrid.component(k)
        assert part.get_input_embeddings().weight.shape[0] == 500
        assert float(part.get_input_embeddings().weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert part.get_output_embeddings().weight is part.get_input_embeddings().weight
    torch.testing.assert_close(hybrid(ids()).logits, twin(hybrid, ids()), rtol=0, atol=5e-7)


@torch.no_grad()
def test_saved_discretized_and_decoded_with_a_cache(tmp_path: Path) -> None:
    hybrid = released(gpt_neo(), mamba())
    soft = hybrid(ids()).logits
    hybrid.save_pretrained(tmp_path / "soft")
    again = manticore.ManticoreForCausalLM.from_pretrained(tmp_path / "soft")
    assert torch.equal(again(ids()).logits, soft)
    assert again.component_0.get_output_embeddings().weight is again.component_0.get_input_embeddings().weight
    for path in ([0, 1], [1, 0], [0, 0], [1, 1]):
        hybrid.set_mixture_weights(path)
        small = manticore.discretize(hybrid, path)
        expected = hybrid(ids()).logits
        torch.testing.assert_close(expected, twin(hybrid, ids()), rtol=0, atol=5e-7)
        assert torch.equal(small(ids()).logits, expected)
        small.save_pretrained(tmp_path / f"{path}")
        loaded = manticore.ManticoreForCausalLM.from_pretrained(tmp_path / f"{path}")
        assert torch.equal(loaded(ids()).logits, expected)
        # the table and the head are the first component's, one tensor
        kept = loaded.component(path[0])
        assert kept.get_output_embeddings().weight is kept.get_input_embeddings().weight
    for model in (again, loaded):
        prompt = ids(2, 4)
        cached = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=True)
        assert torch.equal(cached, model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False))
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[:, :2] = 0
        padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), prompt], 1)
        left = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(left[:, 2:], cached)


def test_gradients_reach_everything_and_logits_can_be_cut() -> None:
    hybrid = released(gpt_neo(), mamba()).train()
    hybrid(ids(), labels=ids()).loss.backward()
    assert [n for n, p in hybrid.named_parameters() if p.requires_grad and p.grad is None] == []
    hybrid.eval()
    with torch.no_grad():
        torch.testing.assert_close(hybrid(ids(), logits_to_keep=2).logits, hybrid(ids()).logits[:, -2:])


def test_searched_as_released(tmp_path: Path) -> None:
    hybrid = manticore.combine([gpt_neo(), mamba()], num_blocks=2, mixing="gated", released=True)
    task = in_context_recall(seq_len=12, num_train_examples=32, num_test_examples=8)
    result = manticore.search(
        hybrid, task, method="dash", steps=3, batch_size=4, mixture_weight_decay=0.01,
        mixture_schedule="linear", temperature=1.0, final_temperature=1.0, cpu=True,
    )  # fmt: skip
    assert result.model.config.released
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(2))


def test_what_is_refused() -> None:
    classifier = manticore.ManticoreForSequenceClassification
    for call, message in (
        (
            lambda: manticore.combine([gpt_neo(), mamba()], released=True),
            "released: only with gated mixing, got mixing 'translated'. Fix: ",
        ),
        (lambda: manticore.align(released(gpt_neo(), mamba()), ["a b c"] * 50), "align: this hybrid computes"),
        (
            lambda: classifier.from_causal_lm(released(gpt_neo(), mamba()), num_labels=2),
            "classifier: this hybrid computes the released",
        ),
    ):
        with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
            call()
        assert message in str(caught.value)
    config = released(gpt_neo(), mamba()).config.to_dict() | {"mixing": "routed"}
    with pytest.raises(ManticoreError, match=r"released is True with mixing 'routed'"):
        manticore.ManticoreConfig(**config)


def test_a_head_of_another_kind_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    biased = gpt_neo()
    biased.lm_head = torch.nn.Linear(16, V, bias=True)
    with pytest.raises(ManticoreError, match=r"its head has a bias\. Fix: "):
        manticore.combine([biased, mamba()], num_blocks=2, mixing="gated", released=True, check=False)
    own = GPTNeoForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        if not isinstance(output, tuple):
            output.logits = 3 * output.logits
        return output

    monkeypatch.setattr(GPTNeoForCausalLM, "forward", scaled)
    with pytest.raises(ManticoreError, match=r"changes embeddings or logits in ways of its own\. Fix: "):
        manticore.combine([gpt_neo(), mamba()], num_blocks=2, mixing="gated", released=True)
