"""Counted costs: right for every kind of layer, and never zero for an operator that nobody knows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, JambaConfig, LlamaConfig, Mamba2Config

from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.hybrid.discretize import discretize
from manticore.kernels.mamba import use_selective_scan
from manticore.training.budget import (
    cache_cost,
    count_parameters,
    flops_per_step,
    flops_per_token_forward,
    steps_within,
)
from manticore.training.trainable import set_trainable

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2),
    "llama": LlamaConfig(**SIZES, **HEADS),
    "mamba2": Mamba2Config(**SIZES, num_heads=4, head_dim=16, n_groups=1, state_size=8),
    "experts": JambaConfig(**SIZES, **HEADS, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4),
}


@pytest.fixture(params=CONFIGS)
def family(request):
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    use_selective_scan(model)
    return model


def run_for_real(model, batch_size: int, length: int) -> int:
    with counted_flops() as counter:
        logits = model(input_ids=torch.zeros(batch_size, length, dtype=torch.long), use_cache=False).logits
        logits.sum().backward()
    return counter.get_total_flops()


def test_counting_without_data_equals_counting_a_real_step(family):
    assert flops_per_step(family, 2, 9) == run_for_real(family, 2, 9)


def test_counting_without_data_equals_counting_a_real_step_of_hybrids(hybrid, mamba):
    for model in (mamba, hybrid, discretize(hybrid, [1, 0])):
        use_selective_scan(model)
        assert flops_per_step(model, 2, 9) == run_for_real(model, 2, 9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_forward_pass_costs_two_flops_per_weight_and_token_and_attention(attention):
    config = LlamaConfig(**SIZES, **HEADS, attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    tokens = 9
    scores = 2 * 2 * tokens * tokens * 32 * config.num_hidden_layers
    assert flops_per_step(model, 1, tokens, backward=False) == 2 * weights * tokens + scores


def test_the_gradient_of_a_depthwise_convolution_costs_as_much_as_the_convolution():
    x = torch.randn(2, 6, 20, requires_grad=True)
    convolution = torch.nn.Conv1d(6, 6, kernel_size=4, groups=6)
    with counted_flops() as counter:
        out = convolution(x)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * 6 * 17 * 4
    assert counter.get_total_flops() == 3 * forward


def test_grouped_products_of_experts_count():
    rows = torch.randn(8, 16, dtype=torch.bfloat16)
    experts = torch.randn(2, 16, 24, dtype=torch.bfloat16)
    with counted_flops() as counter:
        torch._grouped_mm(rows, experts, offs=torch.tensor([3, 8], dtype=torch.int32))
    assert counter.get_total_flops() == 2 * 8 * 16 * 24


def test_an_operator_without_a_formula_stops_the_count():
    library = torch.library.Library("manticore_test", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x @ x.T, "CompositeExplicitAutograd")
    with pytest.raises(ManticoreError, match=r"operator manticore_test.mystery.default are unknown"), counted_flops():
        torch.ops.manticore_test.mystery(torch.ones(2, 2))


def test_a_product_of_torch_without_a_formula_stops_the_count():
    with pytest.raises(ManticoreError, match=r"aten\.addmv"), counted_flops():
        torch.addmv(torch.ones(2), torch.ones(2, 3), torch.ones(3))


def test_a_model_whose_forward_reads_values_is_counted_with_data(gpt, caplog):
    class Nosy(torch.nn.Module):
        def forward(self, hidden):
            return hidden if hidden.sum().item() < 1e9 else -hidden

    plain = flops_per_step(gpt, 2, 9)
    gpt.transformer.drop = Nosy()
    gpt.eval()
    gradients = [p.grad for p in gpt.parameters()]
    state = torch.get_rng_state()
    assert flops_per_step(gpt, 2, 9) == plain
    assert "is measured with data" in caplog.text
    assert [p.grad for p in gpt.parameters()] == gradients
    assert torch.equal(torch.get_rng_state(), state)
    assert not gpt.training


def test_counting_leaves_the_model_alone(hybrid):
    before = {n: p.clone() for n, p in hybrid.named_parameters()}
    hybrid.eval()
    flops_per_step(hybrid, 2, 9)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in hybrid.named_parameters())
    assert not hybrid.training


def test_mamba_is_counted_with_the_scan_that_training_uses(mamba):
    counted = flops_per_step(mamba, 2, 9)
    assert use_selective_scan(mamba) == 3
    assert flops_per_step(mamba, 2, 9) == counted


def test_frozen_components_cost_less_and_lora_lies_between(hybrid):
    everything = flops_per_step(hybrid, 2, 9)
    set_trainable(hybrid, "projectors")
    projectors = flops_per_step(hybrid, 2, 9)
    set_trainable(hybrid, "lora", lora_rank=1)
    adapted = flops_per_step(hybrid, 2, 9)
    assert flops_per_step(hybrid, 2, 9, backward=False) < projectors < adapted < everything


def test_branches_of_zero_weight_cost_nothing(gpt, hybrid):
    soft = flops_per_step(hybrid, 2, 9, backward=False)
    hybrid.set_mixture_weights([0, 0])
    assert flops_per_step(hybrid, 2, 9, backward=False) == flops_per_step(gpt, 2, 9, backward=False) < soft


def test_recomputing_activations_costs_the_layers_once_more(gpt):
    plain = flops_per_step(gpt, 2, 9)
    gpt.activation_checkpointing_enable({"use_reentrant": False})
    forward = flops_per_step(gpt, 2, 9, backward=False)
    head = 2 * 2 * 9 * 16 * 13
    # the recomputation of a layer stops at what its last map (24 to 16) reads
    last_maps = 2 * (2 * 2 * 9 * 24 * 16)
    assert flops_per_step(gpt, 2, 9) - plain == forward - head - last_maps


def test_forward_flops_per_token(gpt):
    assert flops_per_token_forward(gpt, 9) * 9 == flops_per_step(gpt, 1, 9, backward=False)


def test_a_budget_pays_for_whole_steps():
    assert steps_within(100, 30, stage="finetune") == 3
    assert steps_within(30, 30, stage="finetune") == 1
    with pytest.raises(ManticoreError, match=r"finetune: budget_flops is 29, one step costs 30"):
        steps_within(29, 30, stage="finetune")


def test_parameters_shared_by_embeddings_and_head_count_once(gpt):
    tied = gpt.get_input_embeddings().weight
    count = count_parameters(gpt)
    assert count.total == count.trainable == sum(p.numel() for p in gpt.parameters())
    tied.requires_grad_(False)
    assert count_parameters(gpt).trainable == count.total - tied.numel()


def test_cache_of_attention_grows_and_states_stay(gpt, mamba):
    # keys and values, 2 layers, width 16, float32
    assert cache_cost(gpt).bytes_per_token == 2 * 2 * 16 * 4
    assert cache_cost(gpt).state_bytes == 0
    # per layer: convolution state 24 x 4 and scan state 24 x 4, float32
    assert cache_cost(mamba).bytes_per_token == 0
    assert cache_cost(mamba).state_bytes == 3 * (24 * 4 + 24 * 4) * 4


def test_cache_of_a_hybrid_is_that_of_the_layers_it_keeps(gpt, mamba, hybrid):
    assert cache_cost(hybrid).bytes_per_token == cache_cost(gpt).bytes_per_token
    assert cache_cost(hybrid).state_bytes == cache_cost(mamba).state_bytes
    # block 0: Mamba's layer 0; block 1: GPT's layer 1
    small = cache_cost(discretize(hybrid, [1, 0]))
    layers = hybrid.config.boundaries[1][1]
    assert small.bytes_per_token == cache_cost(gpt).bytes_per_token // 2
    assert small.state_bytes == cache_cost(mamba).state_bytes // 3 * layers


def test_cache_follows_the_precision(gpt, family):
    for model in (gpt, family):
        whole = cache_cost(model)
        half = cache_cost(model.to(torch.bfloat16))
        assert half.bytes_per_token == whole.bytes_per_token // 2


def test_a_sliding_window_longer_than_the_prefill_grows_a_shorter_one_stays():
    from transformers import MistralConfig

    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, **HEADS, sliding_window=8))
    per_token = 2 * 2 * 16 * 4
    assert cache_cost(model).bytes_per_token == 0
    assert cache_cost(model).state_bytes == 7 * per_token
    assert cache_cost(model, length=6).bytes_per_token == per_token


@pytest.mark.parametrize("path", [[0, 1], [1, 0], [1, 1]])
def test_discretized_hybrids_are_counted_without_data(hybrid, path, caplog):
    small = discretize(hybrid, path)
    use_selective_scan(small)
    assert flops_per_step(small, 2, 9) == run_for_real(small, 2, 9)
    assert "is measured with data" not in caplog.text
