"""Recomputed activations: nothing is computed that plain training would not need, and nothing is left behind."""

import torch
from transformers import AutoModelForCausalLM

from manticore.modes import recomputed_activations
from manticore.training.shapes import small_config


def test_layers_below_the_first_trained_one_get_no_gradient() -> None:
    config = small_config("gpt_neo", layers=2, width=16)
    config.vocab_size = 20
    model = AutoModelForCausalLM.from_config(config).train().requires_grad_(False)
    model.transformer.h[1].requires_grad_(True)
    entered: list[bool] = []
    handle = model.transformer.h[1].register_forward_pre_hook(lambda _, args: entered.append(args[0].requires_grad))
    with recomputed_activations(model):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits.sum().backward()
    handle.remove()
    assert entered[0] is False
    assert all(p.grad is not None for p in model.transformer.h[1].mlp.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_hook_of_the_user_stays() -> None:
    model = AutoModelForCausalLM.from_config(small_config("gpt_neo", layers=2, width=16))
    model.enable_input_require_grads()
    with recomputed_activations(model):
        pass
    assert model.get_input_embeddings()._forward_hooks
