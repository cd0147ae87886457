"""The auto-encoder: one vector per sequence, positions, losses, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_stacks import POSITIONS, VOCABULARY, tiny_config, tokens

from manticore.errors import ManticoreError
from manticore.stacks.autoencoder import StackForAutoEncoding, positions
from manticore.stacks.configuration import StackConfig


def autoencoder(pooling: str = "last", *layers: str) -> StackForAutoEncoding:
    torch.manual_seed(0)
    return StackForAutoEncoding(tiny_config(*(layers or ("mh-attention", "swiglu")), pooling=pooling)).eval()


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
