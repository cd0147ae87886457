"""Scores of a model that cannot have any are refused, not reported."""

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.hybrid.combine import combine
from manticore.training.evaluate import evaluate


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_tensor_that_is_not_finite_is_named(gpt, task, value):
    with torch.no_grad():
        gpt.transformer.wpe.weight[-1, 0] = value
        gpt.transformer.ln_f.weight[0] = value
    with pytest.raises(ManticoreError, match=r"^evaluate: transformer.wpe.weight holds NaN or infinity. Fix: "):
        evaluate(gpt, task)


def test_logits_that_overflow_are_refused_though_all_weights_are_finite(gpt, task):
    with torch.no_grad():
        gpt.transformer.ln_f.weight.fill_(3e38)
    with pytest.raises(ManticoreError, match=r"^evaluate: loss on copying, test, is NaN, though .* Fix: "):
        evaluate(gpt, task)


def test_a_model_in_memory_that_is_not_finite_is_no_component(gpt, mamba):
    with torch.no_grad():
        mamba.backbone.norm_f.weight[0] = float("inf")
    with pytest.raises(ManticoreError, match=r"^MambaForCausalLM: backbone.norm_f.weight holds NaN or infinity"):
        combine([gpt, mamba], num_blocks=2)
