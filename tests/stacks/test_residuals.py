"""Where a stack's norms are: before a layer, behind its sum, or on its output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

LAYERS = [["mh-attention", {"num_heads": 2}], "mamba", "swiglu"]


def _stack(residual: str) -> StackForCausalLM:
    torch.manual_seed(0)
    config = StackConfig(layers=LAYERS, hidden_size=16, vocab_size=11, norm="layer", residual=residual)  # type: ignore[arg-type]
    return StackForCausalLM(config).eval()


@pytest.mark.parametrize("residual", ["pre", "post", "output"])
def test_each_place_is_what_it_says_and_decodes_and_saves_alike(residual: str, tmp_path: Path) -> None:
    model = _stack(residual)
    tokens = torch.randint(11, (2, 7))
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda _m, args, output: seen.update(x=args[0], y=output))
    layer.mixer.register_forward_hook(lambda _m, args, output: seen.update(read=args[0], mixed=output))
    logits = model(tokens, use_cache=False).logits
    x, mixed = seen["x"], seen["mixed"]
    expected = {"pre": x + mixed, "post": layer.norm(x + mixed), "output": x + layer.norm(mixed)}
    assert torch.equal(seen["y"], expected[residual])
    assert torch.equal(seen["read"], layer.norm(x) if residual == "pre" else x)

    first = model(tokens[:, :4], use_cache=True)
    rest = model(tokens[:, 4:], use_cache=True, past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), logits, rtol=1e-5, atol=1e-5)

    model.save_pretrained(tmp_path)
    assert torch.equal(StackForCausalLM.from_pretrained(tmp_path).eval()(tokens, use_cache=False).logits, logits)


def test_another_place_is_refused() -> None:
    with pytest.raises(ManticoreError, match=r"stack: residual is 'behind' \(expected one of pre, post, output\)"):
        StackConfig(residual="behind")  # type: ignore[arg-type]
