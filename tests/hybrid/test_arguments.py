"""What a person can hand to a hybrid from Python: mixture weights in every form, and things that are not hybrids."""

import pytest
import torch

import manticore
from manticore.errors import ManticoreError


@pytest.mark.parametrize(
    "weights", ["ab", None, [[0.5, 0.5], [1.0]], ["gpt", "mamba"], [True, False], [[True, False]] * 2]
)
def test_what_is_no_weights_is_refused_and_changes_nothing(weights, tiny_gpt, tiny_mamba):
    hybrid = manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2)
    before = hybrid.mixture_weights
    with pytest.raises(ManticoreError, match=r"expected numbers \[2, 2\], or 2 component indices"):
        hybrid.set_mixture_weights(weights)
    assert torch.equal(hybrid.mixture_weights, before)


def test_truth_values_are_no_path(tiny_gpt, tiny_mamba):
    hybrid = manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2)
    with pytest.raises(ManticoreError, match=r"discretize: path \[True, False\] \(expected 2 indices .* Fix: "):
        manticore.discretize(hybrid, [True, False])


def test_more_blocks_than_layers_is_noticed_before_weights_are_read(tiny_gpt, tiny_mamba, tmp_path):
    # configurations alone: whoever reads weights first finds none
    tiny_gpt.config.save_pretrained(tmp_path / "gpt")
    tiny_mamba.config.save_pretrained(tmp_path / "mamba")
    depth = tiny_mamba.config.num_hidden_layers
    with pytest.raises(ManticoreError, match=f"7 blocks, but .* has {depth} layers. Fix: num_blocks <= {depth}"):
        manticore.combine([tmp_path / "mamba", tmp_path / "gpt"], num_blocks=7)


def test_an_ordinary_model_is_no_hybrid(tiny_gpt):
    for stage, call in (
        ("align", lambda: manticore.align(tiny_gpt, ["text"])),
        ("search", lambda: manticore.search(tiny_gpt, "text")),
        ("discretize", lambda: manticore.discretize(tiny_gpt)),
    ):
        with pytest.raises(ManticoreError, match=f"{stage}: a GPTNeoForCausalLM is not a hybrid"):
            call()
