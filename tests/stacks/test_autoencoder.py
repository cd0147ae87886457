"""The auto-encoder: one vector per sequence, positions, losses, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_stacks import POSITIONS, VOCABULARY, assert_older_start, tiny_config, tokens
from twins import TWINS

from manticore.errors import ManticoreError
from manticore.experiments.mad.models import Candidate
from manticore.stacks.autoencoder import StackForAutoEncoding, positions
from manticore.stacks.configuration import StackConfig


def autoencoder(pooling: str = "last", *layers: str) -> StackForAutoEncoding:
    torch.manual_seed(0)
    return StackForAutoEncoding(tiny_config(*(layers or ("mh-attention", "swiglu")), pooling=pooling)).eval()


def published(model: StackForAutoEncoding, ids: torch.Tensor) -> torch.Tensor:
    """The benchmark's auto-encoder from its description: pooled from the raw stream, no norm of the stack's end."""

    def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
        return norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()

    streams = []
    for row in ids:
        x = torch.stack([model.model.embed_tokens.weight[i] for i in row.tolist()])
        if model.cls is not None:
            x = torch.cat([x, model.cls[None]])
        for layer in model.model.layers:
            x = x + TWINS[model.config.layer_names[layer.layer_idx]](layer.mixer, normed(x, layer.norm))
        streams.append(x.mean(0) if model.config.pooling == "mean" else x[-1])
    half = model.config.hidden_size // 2
    written = []
    for i in range(ids.shape[1]):
        angles = torch.tensor([i * 10000 ** (-j / (half - 1)) for j in range(half)], dtype=streams[0].dtype)
        h = torch.stack(streams) + torch.cat([angles.sin(), angles.cos()])
        for norm, layer in zip(model.decoder_norms, model.decoder_layers):
            u = normed(h, norm) @ layer.weight.T + layer.bias
            h = 0.5 * u * (1 + torch.erf(u / math.sqrt(2)))
        written.append(normed(h, model.head_norm) @ model.lm_head.weight.T + model.lm_head.bias)
    return torch.stack(written, 1)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_it_computes_what_the_benchmark_describes(pooling: str) -> None:
    model, ids = autoencoder(pooling, "mh-attention", "moe-mlp").double(), tokens(2, 9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # positions of the module are worked out in float32
        torch.testing.assert_close(model(ids).logits, published(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "cls"])
def test_as_long_as_its_positions_say(pooling: str) -> None:
    """The learned token at the end has a position beyond those of the sequence."""
    model = autoencoder(pooling, "hyena", "swiglu")
    assert model(tokens(1, POSITIONS)).logits.shape == (1, POSITIONS, VOCABULARY)
    assert model.positions == POSITIONS


def test_mad_builds_it_with_the_published_size_and_start() -> None:
    model = Candidate("transformer").build(vocab_size=16, positions=32, seed=0, backbone="autoencoder")
    assert sum(parameter.numel() for parameter in model.parameters()) == 440_464
    mixed = Candidate("stack:mamba,mh-gated-linear-attention,mh-hyena,moe-mlp").build(
        vocab_size=16, positions=32, seed=0, backbone="autoencoder"
    )
    assert_older_start(model)
    assert_older_start(mixed)
    # the other tasks' models start as torch and their layers do
    causal = Candidate("transformer").build(vocab_size=16, positions=32, seed=0)
    assert float(causal.model.layers[0].mixer.q_proj.weight.detach().std()) == pytest.approx(0.051, rel=0.05)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_the_decoder_sees_one_vector_only(pooling: str) -> None:
    model, ids = autoencoder(pooling), tokens(2, 12)
    with torch.no_grad():
        logits = model(ids).logits
        hidden = model.model(ids, use_cache=False).last_hidden_state
        pooled = model._encode(ids)
    assert logits.shape == (2, 12, VOCABULARY)
    if pooling != "cls":
        assert torch.equal(pooled, hidden[:, -1] if pooling == "last" else hidden.mean(1))
    changed = ids.clone()
    changed[:, 0] = ids[:, 0] % 30 + 1
    with torch.no_grad():
        moved = (model(changed).logits - logits).abs().amax(-1)
    # the first token is written through the vector, so it reaches every position
    assert bool((moved > 0).all())


def test_positions_are_sines_then_cosines() -> None:
    table = positions(5, 8, torch.zeros(1, dtype=torch.float64))
    waves = [10000 ** (-j / 3) for j in range(4)]
    expected = [[math.sin(3 * w) for w in waves] + [math.cos(3 * w) for w in waves]]
    torch.testing.assert_close(table[3:4], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_decoder_has_no_residual() -> None:
    model, ids = autoencoder(), tokens(1, 4)
    with torch.no_grad():
        for layer in model.decoder_layers:
            layer.weight.zero_()
        assert torch.equal(model(ids).logits, model.lm_head.bias.expand(1, 4, -1))


def test_labels_are_not_shifted_and_may_be_left_out() -> None:
    model, ids = autoencoder(), tokens(2, 6)
    labels = ids.clone()
    labels[0, :3] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=18).loss, expected / 2)


def test_it_learns_and_reloads(tmp_path: Path) -> None:
    model, ids = autoencoder("cls", "mamba", "swiglu").train(), tokens(4, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(ids, labels=ids).loss.item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5 * first
    model.eval().save_pretrained(tmp_path)
    again = StackForAutoEncoding.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_what_it_refuses() -> None:
    model = autoencoder()
    with pytest.raises(ManticoreError, match=f"a sequence of {POSITIONS + 1} tokens .expected at most {POSITIONS}"):
        model(tokens(1, POSITIONS + 1))
    mask = torch.ones(2, 5, dtype=torch.long)
    assert model(tokens(2, 5), attention_mask=mask).logits.shape == (2, 5, VOCABULARY)
    mask[0, 0] = 0
    with pytest.raises(ManticoreError, match="padded sequences cannot be read"):
        model(tokens(2, 5), attention_mask=mask)
    with pytest.raises(ManticoreError, match="hidden_size is 7"):
        StackForAutoEncoding(StackConfig(layers=["mlp"], hidden_size=7))


def test_one_saved_with_a_last_norm_is_refused(tmp_path: Path) -> None:
    """As they were before: without it the same weights give other logits."""
    model = autoencoder()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(16)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ManticoreError, match=r"saved with a norm after the stack's last layer.*Fix: train it again"):
        StackForAutoEncoding.from_pretrained(tmp_path)
