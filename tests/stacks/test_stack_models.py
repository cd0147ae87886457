"""Stacks as models of transformers: generation, saving, training, hybrids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_stacks import NAMES, POSITIONS, VOCABULARY, assert_older_start, tiny_config, tiny_stack, tokens
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import manticore
from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.errors import ManticoreError
from manticore.registry import entries
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackCache, StackForCausalLM, StackModel
from manticore.stacks.normalise import iso_state
from manticore.stacks.presets import preset_config
from manticore.stacks.sizes import layer_sizes

WINDOW = {"window": 8}
MIXED = ("mamba", "mh-attention", "hyena", "swiglu", "sliding-attention", "gated-delta-net")


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_is_the_same_with_and_without_a_cache(options: dict[str, Any]) -> None:
    model, ids = tiny_stack(*MIXED), tokens(2, 9)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    cached = model.generate(ids, **settings)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))
    assert cached.shape[1] == 21


@pytest.mark.parametrize("layers", [("mamba", "rwkv5-channel-mixer"), MIXED])
def test_generation_from_a_padded_prompt(layers: tuple[str, ...]) -> None:
    model, ids = tiny_stack(*layers), tokens(2, 9)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    from_padded = model.generate(padded, attention_mask=(padded > 0).long(), **settings)
    assert torch.equal(from_padded[:, 13:], model.generate(ids, **settings)[:, 9:])


def test_a_cache_can_be_repeated_selected_and_reset() -> None:
    model, ids = tiny_stack(*MIXED), tokens(2, 12)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = StackCache(model.config)
        model(ids[:, :7], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        turned = model(ids[[1, 0], 7:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(turned, whole[[1, 0], 7:], rtol=1e-9, atol=1e-11)
        cache = StackCache(model.config)
        model(ids, past_key_values=cache, use_cache=True)
        cache.reset()
        assert cache.get_seq_length() == 0
    with pytest.raises(ManticoreError, match="a recurrent layer's state cannot be taken back"):
        cache.crop(-1)


def test_logits_to_keep_hidden_states_and_tuples() -> None:
    model, ids = tiny_stack("mamba", "swiglu"), tokens(2, 6)
    with torch.no_grad():
        output = model(ids, use_cache=False, output_hidden_states=True)
        last = model(ids, use_cache=False, logits_to_keep=1).logits
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits
        first = model(ids, use_cache=False, return_dict=False)[0]
    torch.testing.assert_close(last, output.logits[:, -1:])
    assert torch.equal(embedded, output.logits)
    assert torch.equal(first, output.logits)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(model.lm_head(model.model.norm(output.hidden_states[-1])), output.logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation: str) -> None:
    model, ids = tiny_stack("grouped-query-attention", "sliding-attention"), tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        default = model(ids, attention_mask=mask, use_cache=False).logits
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(ids, attention_mask=mask, use_cache=False).logits[1], default[1])


def test_saving_and_loading_through_the_auto_classes(tmp_path: Path) -> None:
    model, ids = tiny_stack(*NAMES, layer_options={"mh-sliding-attention": {"num_heads": 4, "window": 5}}), tokens()
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, StackForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.layer_names == model.config.layer_names
    assert again.config.layers == model.config.layers
    assert again.config.layer_list[NAMES.index("mh-sliding-attention")][1] == {"num_heads": 4, "window": 5}
    with torch.no_grad():
        assert torch.equal(again(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, StackModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), StackConfig)


def test_a_pipeline_of_a_saved_stack(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = StackForCausalLM(
        StackConfig(layers=["mamba", "attention", "swiglu"], vocab_size=len(tokenizer), hidden_size=16)
    ).eval()
    for part in (made, tokenizer):
        part.save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path))
    prompt = tokenizer("return x", return_tensors="pt")
    expected = made.generate(**prompt, max_new_tokens=5, do_sample=False)
    (answer,) = write("return x", max_new_tokens=5, do_sample=False)
    assert answer["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_missing_layer_is_initialised_as_when_built(tmp_path: Path) -> None:
    StackModel(tiny_config("mamba")).save_pretrained(tmp_path)
    loaded = StackModel.from_pretrained(tmp_path, config=tiny_config("mamba", "mamba"))
    fresh = loaded.layers[1].mixer
    assert torch.equal(fresh.A_log, torch.arange(1.0, 5.0).log().expand(32, 4))
    assert bool((fresh.D == 1).all())
    steps = torch.nn.functional.softplus(fresh.dt_proj.bias)
    assert float(steps.min()) > 9e-4
    assert float(steps.max()) < 0.11


def test_weights_start_as_the_configuration_says() -> None:
    torch.manual_seed(0)
    config = StackConfig(layers=["swiglu", "mamba"], vocab_size=400, linear_init="normal")
    model = StackForCausalLM(config)
    assert float(model.model.embed_tokens.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.lm_head.weight.std()) == pytest.approx(0.02, rel=0.05)
    uniform = StackForCausalLM(StackConfig(layers=["swiglu"], vocab_size=400))
    assert float(uniform.lm_head.weight.abs().max()) == pytest.approx(128**-0.5, rel=0.01)
    assert not bool(uniform.lm_head.bias.any())


def test_the_older_start_of_mad_reaches_every_linear_map() -> None:
    """Also those to which a layer gives a start of its own; what is not a linear map keeps its own."""
    torch.manual_seed(0)
    layers = ["mamba", "mh-gated-linear-attention", "hyena", "rwkv6-time-mixer"]
    model = StackForCausalLM(StackConfig(layers=layers, linear_init="normal", vocab_size=400))
    assert_older_start(model)
    assert torch.equal(model.model.layers[0].mixer.A_log, torch.arange(1.0, 5.0).log().expand(256, 4))


@pytest.mark.parametrize("name", ["rwkv5-time-mixer", "rwkv6-time-mixer"])
def test_rwkv_starts_as_the_lowest_layer_of_its_authors(name: str) -> None:
    """Height 0 of their formulas, for any place in the stack: the bonus is the zigzag alone, maps of low rank ±1e-4."""
    torch.manual_seed(0)
    width = 128
    model = StackForCausalLM(StackConfig(layers=["swiglu", name], hidden_size=width))
    mixer: Any = model.model.layers[1].mixer
    zigzag = [0.1 * ((n + 1) % 3 - 1) for n in range(width)]
    decay = [-6 + 5 * (n / (width - 1)) ** 0.7 for n in range(width)]
    torch.testing.assert_close(mixer.bonus.flatten(), torch.tensor(zigzag))
    torch.testing.assert_close(mixer.decay, torch.tensor(decay))
    ramp = torch.arange(width) / width
    if name == "rwkv5-time-mixer":
        for letter, power in {"k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}.items():
            torch.testing.assert_close(mixer.mixes[letter], ramp**power)
        return
    torch.testing.assert_close(mixer.base_mix, 1 - ramp)
    torch.testing.assert_close(mixer.mixes, torch.stack([1 - ramp**power for power in (1.0, 1.0, 1.0, 0.5, 0.5)]))
    for weight in (mixer.mix_down, mixer.mix_up, mixer.decay_down, mixer.decay_up):
        assert float(weight.abs().max()) == pytest.approx(1e-4, rel=0.01)
        assert float(weight.std()) == pytest.approx(1e-4 / 3**0.5, rel=0.1)


def test_rwkv7_starts_as_the_lowest_layer_of_its_authors() -> None:
    torch.manual_seed(0)
    width, heads = 128, 8
    upper = ["rwkv7-time-mixer", {}, {"features_of": 0, "features": ["values"]}]
    model = StackForCausalLM(StackConfig(layers=["rwkv7-time-mixer", upper], hidden_size=width))
    mixer: Any = model.model.layers[1].mixer
    head = width // heads
    slope = torch.arange(width) / (width - 1)
    inside = torch.arange(width) % head * 2 / (head - 1) - 1
    zigzag = inside.sign() * inside**2
    torch.testing.assert_close(mixer.decay.bias, -6 + 6 * slope + 0.5 + 2.5 * zigzag)
    torch.testing.assert_close(mixer.rate.bias, -0.19 + 0.3 * zigzag + 0.4 * (slope - 0.5))
    torch.testing.assert_close(mixer.value_share.bias, 0.73 - 0.4 * (slope - 0.5))
    torch.testing.assert_close(mixer.removal_scale, 0.71 - 0.1 * (slope - 0.5))
    powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])
    torch.testing.assert_close(mixer.mixes, 1 - (torch.arange(width) / width) ** powers[:, None])
    for low_rank in (mixer.decay, mixer.rate, mixer.gate, mixer.value_share):
        assert not bool(low_rank.down.any())
        torch.testing.assert_close(low_rank.up @ low_rank.up.T, 0.01 * torch.eye(len(low_rank.up)))


def test_kimi_delta_attention_starts_with_rates_and_time_steps_of_its_range() -> None:
    torch.manual_seed(0)
    mixer: Any = StackForCausalLM(StackConfig(layers=["kimi-delta-attention"])).model.layers[0].mixer
    rates, steps = mixer.log_rate.detach().exp(), torch.nn.functional.softplus(mixer.decay_bias.detach())
    assert 1 <= float(rates.min()) <= float(rates.max()) <= 16
    assert 0.000999 <= float(steps.min()) <= float(steps.max()) <= 0.1001
    # spread over the whole range, evenly on a logarithmic scale
    assert float(steps.log10().mean()) == pytest.approx(-2, abs=0.2)


def test_a_trainer_step_reaches_every_weight(tmp_path: Path) -> None:
    model = tiny_stack(*MIXED).float().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = tokens(8, 12).tolist()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True,
        report_to=[], save_strategy="no", learning_rate=1e-2, gradient_checkpointing=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}))
    trainer.train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpoint in (False, True):
        model = tiny_stack(*MIXED).train()
        if checkpoint:
            model.gradient_checkpointing_enable()
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("name", entries("stack"))
def test_every_preset_builds_and_runs(name: str) -> None:
    model = StackForCausalLM(preset_config(name, vocab_size=7, max_position_embeddings=16)).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 16, dtype=torch.long), use_cache=False).logits.shape == (1, 16, 7)


def test_options_of_a_preset_can_be_added_to() -> None:
    config = preset_config("mambaformer", layer_options={"mh-attention": {"num_heads": 8}, "mamba": {"state_size": 2}})
    attention, mamba = ("mh-attention", {"rotary": False, "num_heads": 8}), ("mamba", {"state_size": 2})
    assert config.layer_list == [mamba, attention, mamba, attention, mamba]
    turned = preset_config("mambaformer", layer_options={"mh-attention": {"rotary": True}})
    assert [options for name, options in turned.layer_list if name == "mh-attention"] == [{"rotary": True}] * 2
    with pytest.raises(ManticoreError, match=r"options for 'mambo', which is not a layer of it. Did you mean 'mamba'"):
        preset_config("mambaformer", layer_options={"mambo": {}})


def test_layers_of_one_name_can_differ(tmp_path: Path) -> None:
    layers = [
        "mamba",
        ("mamba", {"state_size": 7}),
        "swiglu",
        ("mamba", {"expand": 1}),
        ("mh-attention", {"num_heads": 4}),
    ]
    torch.manual_seed(0)
    config = StackConfig(
        layers=layers, layer_options={"mamba": {"state_size": 3}}, hidden_size=16, vocab_size=VOCABULARY
    )
    model = StackForCausalLM(config).eval()
    mixers = [layer.mixer for layer in model.model.layers]
    assert [mixers[i].state_width for i in (0, 1, 3)] == [3, 7, 3]
    assert [mixers[i].inner for i in (0, 1, 3)] == [32, 32, 16]
    assert [size.state for size in layer_sizes(config, 4)] == [3 * 32, 7 * 32, 0, 3 * 16, 4 * 2 * 16]
    assert sum(size.parameters for size in layer_sizes(config, 4)) == sum(
        parameter.numel() for parameter in model.model.layers.parameters()
    )
    model.save_pretrained(tmp_path)
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), tokens(2, 12)
    assert again.config.layers == config.layers
    assert StackConfig(**json.loads(config.to_json_string())).to_json_string() == config.to_json_string()
    with torch.no_grad():
        assert torch.equal(again(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))
    # equal states come out of unequal options, layer by layer
    states = [size.state for size in layer_sizes(iso_state(config, 3 * 320), 4) if size.fixed_state]
    assert states == [320] * 3


def test_a_configuration_with_options_by_name_alone_still_loads(tmp_path: Path) -> None:
    # written by the version that had no options of single layers
    older = {
        "architectures": ["StackForCausalLM"],
        "layer_options": {"mamba": {"state_size": 3}, "mh-attention": {"num_heads": 4}},
        "layers": ["mamba", "mh-attention", "mamba", "swiglu"],
        **{"hidden_size": 16, "vocab_size": 11, "max_position_embeddings": 32, "model_type": "manticore_stack"},
        **{"norm": "rms", "norm_eps": 1e-05, "pooling": "last", "linear_init": "uniform", "head_bias": True},
    }
    config = StackConfig.from_dict(older)
    mamba = ["mamba", {"state_size": 3}]
    assert config.layers == [mamba, ["mh-attention", {"num_heads": 4}], mamba, "swiglu"]
    torch.manual_seed(0)
    model = StackForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(11)[None]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
        # the sum that the older version's model of this seed has
        assert float(logits.double().sum()) == pytest.approx(4.594844438135624, rel=1e-4)
        (tmp_path / "config.json").write_text(json.dumps(older))
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(ids, use_cache=False).logits, logits)
    assert again.config.layers == config.layers


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_can_be_a_component(name: str) -> None:
    model = tiny_stack(name, "swiglu", "mamba").float()
    runner = Runner(model)
    assert self_check(model, runner) == 0.0
    assert continues_by_one_token_only(runner) is False


def test_a_hybrid_of_stacks_decodes_discretizes_and_reloads(tmp_path: Path) -> None:
    parents = [tiny_stack("mh-attention", "swiglu", "hyena", "mlp").float(), tiny_stack("mamba", "mamba-2").float()]
    hybrid = manticore.combine(parents, num_blocks=2)
    ids = tokens(2, 10)
    with torch.no_grad():
        for m, parent in enumerate(parents):
            hybrid.set_mixture_weights([m, m])
            assert torch.equal(hybrid(ids).logits, parent(ids, use_cache=False).logits)
    hybrid.set_mixture_weights([1, 0])
    small = manticore.discretize(hybrid)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **settings), small.generate(ids, use_cache=False, **settings))
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, small(ids).logits)


def test_a_supernet_of_a_transformer_and_a_stack_trains_from_scratch(tiny_gpt: Any) -> None:
    torch.manual_seed(0)
    stack = StackForCausalLM(StackConfig(layers=["mamba"] * 4, hidden_size=16, vocab_size=97))
    hybrid = manticore.combine([tiny_gpt, stack], num_blocks=2, vocab_size=12).train()
    ids = torch.arange(8).repeat(4, 3)
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = hybrid(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["hyena", "mh-hyena", "hyena-experts"])
def test_sequences_longer_than_the_positions_are_refused(name: str) -> None:
    model = tiny_stack(name)
    message = f"a sequence of {POSITIONS + 1} tokens, but the filters reach over {POSITIONS}"
    with pytest.raises(ManticoreError, match=message):
        model(tokens(1, POSITIONS + 1), use_cache=False)
    cache = StackCache(model.config)
    model(tokens(1, POSITIONS), past_key_values=cache, use_cache=True)
    with pytest.raises(ManticoreError, match=message) as caught:
        model(tokens(1, 1), past_key_values=cache, use_cache=True)
    assert "\n" not in str(caught.value)


def test_layers_without_a_table_take_any_length() -> None:
    model = tiny_stack("mh-attention", "mamba")
    assert model(tokens(1, POSITIONS + 5), use_cache=False).logits.shape[1] == POSITIONS + 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": ["mamba", "swiglo"]}, "unknown layer 'swiglo'. Did you mean 'swiglu'"),
        ({"layers": []}, "layers is .. .expected a list of names"),
        ({"layers": "mamba"}, "layers is 'mamba' .expected a list of names"),
        ({"layers": ["mh-attention"], "hidden_size": 100}, "16 heads do not divide width 100"),
        ({"layers": ["mamba"], "layer_options": {"mambo": {}}}, "options for 'mambo', which is not a layer of it. Did"),
        ({"layers": ["mamba", 3]}, "layers is .*expected a list of names"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_sise": 20}, "unknown setting 'vocab_sise'. Did you mean 'vocab_size'"),
        ({"hiden_size": 20}, "unknown setting 'hiden_size'. Did you mean 'hidden_size'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"norm": "rsm"}, "norm is 'rsm' .expected one of rms, layer.. Did you mean 'rms'"),
        ({"layers": ["mamba", ("mamba", {"state_sise": 3})]}, r"layers\[1\]: layer 'mamba': unknown option 'state_s"),
        ({"layers": ["mamba", ("mamba", {"state_size": 0})]}, r"layers\[1\]: layer 'mamba': state_size is 0 .expected"),
        ({"layers": ["mamba", ["mamba", {}, 1]]}, "layers is .*expected a list of names, of names with their opt"),
        ({"layers": ["mamba"], "layer_options": {"mamba": 3}}, "layer_options is .*expected options by layer names"),
        (
            {"layers": ["sliding-attention", "mh-sliding-attention"], "layer_options": {"sliding-attention": WINDOW}},
            "windows of 8 and 32 tokens in one stack",
        ),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_end_in_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ManticoreError, match=words) as caught:
        StackConfig(**settings)
    assert "\n" not in str(caught.value)


def test_inputs_that_cannot_be_used_end_in_one_line() -> None:
    model, ids = tiny_stack("mamba"), tokens(2, 5)
    with pytest.raises(ManticoreError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ManticoreError, match=r"attention_mask has shape \[2, 1, 5, 5\], which recurrent layers cannot"):
        model(ids, attention_mask=torch.ones(2, 1, 5, 5))
    with pytest.raises(ManticoreError, match=r"attention_mask has shape \[2, 3\]"):
        model(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(
        ManticoreError, match="cache_implementation 'static' cannot hold the states of recurrent layers"
    ):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    assert model.config.vocab_size == VOCABULARY
