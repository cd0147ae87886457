"""What trains, and that low-rank updates mean the same merged as unmerged."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import manticore
from manticore.errors import ManticoreError
from manticore.hybrid.combine import combine
from manticore.hybrid.discretize import discretize
from manticore.kernels.mamba import use_selective_scan
from manticore.training.trainable import add_lora, merge_lora, set_trainable

SIZES = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
TOKENS = torch.arange(24).reshape(2, 12) % 13


@pytest.fixture
def gpt2():
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=2))


def trained_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturb(model) -> None:
    """Give the updates, which start at zero, values as after training."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


def test_all_trains_everything_but_the_mixture_weights(hybrid):
    set_trainable(hybrid, "projectors")
    set_trainable(hybrid, "all")
    mixture = {id(p) for p in hybrid.mixing.mixture_parameters()}
    assert all(p.requires_grad != (id(p) in mixture) for p in hybrid.parameters())


def test_the_searchs_choice_for_the_mixture_weights_is_kept(hybrid):
    for parameter in hybrid.mixing.mixture_parameters():
        parameter.requires_grad_(True)
    set_trainable(hybrid, "projectors")
    assert all(p.requires_grad for p in hybrid.mixing.mixture_parameters())


def test_projectors_only(hybrid):
    set_trainable(hybrid, "projectors")
    assert trained_names(hybrid) == {n for n, _ in hybrid.named_parameters() if n.startswith("mixing.projectors.")}


def test_a_fresh_vocabulary_always_trains(hybrid):
    set_trainable(hybrid, "projectors", fresh_vocabulary=True)
    rest = {n for n in trained_names(hybrid) if not n.startswith("mixing.")}
    assert rest == {"component_0.transformer.wte.weight", "component_1.backbone.embeddings.weight"}


def test_frozen_components_keep_their_heads_trainable():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=False))
    set_trainable(model, "frozen")
    assert trained_names(model) == {"lm_head.weight"}


def test_a_discretized_hybrid_trains_what_it_kept(hybrid):
    small = discretize(hybrid, [1, 0])
    set_trainable(small, "frozen", fresh_vocabulary=True)
    names = trained_names(small)
    assert any(n.startswith("mixing.projectors.") for n in names)
    assert "component_1.backbone.embeddings.weight" in names
    assert not any(".layers." in n or ".h." in n for n in names)


def test_mixers_are_what_a_twin_has_in_place_of_attention():
    parent = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **HEADS))
    twin = manticore.twin(parent, layers=[1])
    path = discretize(combine([parent, twin], num_blocks=2), [0, 1])
    for model, layer in ((twin, "model.layers.1.self_attn."), (path, ".layers.1.self_attn.")):
        set_trainable(model, "mixers")
        fresh = {name for name, _ in model.named_parameters() if layer in name}
        assert trained_names(model) == fresh
        assert any("beta_proj" in name for name in fresh)


def test_nothing_to_train_is_refused(gpt):
    with pytest.raises(ManticoreError, match=r"'projectors' leaves nothing to train.*Fix: trainable='all'"):
        set_trainable(gpt, "projectors")
    with pytest.raises(ManticoreError, match=r"no projectors, no mixers of a twin and keeps its vocabulary"):
        set_trainable(gpt, "mixers")


def test_an_unknown_choice_is_refused_with_a_suggestion(gpt):
    with pytest.raises(ManticoreError, match=r"unknown choice 'projector'\. Did you mean 'projectors'\?"):
        set_trainable(gpt, "projector")


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(gpt, rank):
    with pytest.raises(ManticoreError, match="lora_rank: got"):
        set_trainable(gpt, "lora", lora_rank=rank)


def test_updates_start_at_zero_and_merge_to_the_same_logits(hybrid, gpt2):
    for model in (hybrid, discretize(hybrid, [1, 0]), gpt2):
        use_selective_scan(model)
        names = {n for n, _ in model.named_parameters()}
        before = logits(model)
        assert add_lora(model, rank=2, seed=0)
        assert torch.equal(logits(model), before)
        disturb(model)
        unmerged = logits(model)
        assert (unmerged - before).abs().max() > 1e-3
        merge_lora(model)
        assert torch.allclose(logits(model), unmerged, atol=1e-5)
        assert {n for n, _ in model.named_parameters()} == names
        assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_every_update_gets_a_gradient(hybrid):
    use_selective_scan(hybrid)
    set_trainable(hybrid, "lora", lora_rank=2)
    disturb(hybrid)
    hybrid.train()(input_ids=TOKENS, use_cache=False).logits.logsumexp(-1).sum().backward()
    updates = {n: p for n, p in hybrid.named_parameters() if "lora_" in n}
    assert updates
    assert [n for n, p in updates.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_lora_is_drawn_from_the_seed_and_not_from_the_global_stream(gpt):
    import copy

    draws = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(gpt)
        state = torch.get_rng_state()
        add_lora(model, rank=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        draws.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_merged_model_can_be_adapted_again(gpt, mamba):
    model = combine([gpt, mamba], num_blocks=2)
    for seed in (0, 1):
        add_lora(model, rank=2, seed=seed)
        disturb(model)
        expected = logits(model)
        merge_lora(model)
        assert torch.allclose(logits(model), expected, atol=1e-5)


def test_a_model_with_adapters_of_its_own_is_refused(gpt, mamba):
    model = combine([gpt, mamba], num_blocks=2)
    add_lora(model, rank=2, seed=0)
    with pytest.raises(ManticoreError, match=r"has adapters, which 'all' would thaw.*Fix: peft_model.merge"):
        set_trainable(model, "all")
