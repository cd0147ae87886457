"""Faults that nine tokens of a fresh supernet do not show are found, whatever the family is called; verdicts last."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MambaForCausalLM, MistralForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mamba import modeling_mamba

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.components.stunted import FAR, WINDOW, stunted
from manticore.errors import ManticoreError
from manticore.hybrid import rehearsal
from manticore.hybrid.rehearsal import rehearse


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "components"


def nine_tokens_pass(model: PreTrainedModel) -> None:
    """What was checked before: the fault at hand is beyond it."""
    self_check(model, Runner(model))
    continues_by_one_token_only(Runner(model))


@pytest.mark.parametrize("family", ["gpt_neo", "mistral", "mamba", "jamba", "phi3", "gpt2", "zamba2", "deepseek_v3"])
def test_families_that_keep_their_word_pass(family: str) -> None:
    rehearse(tiny_model(family))


def test_a_window_that_the_cache_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", sliding_window=4096)
    own = MistralForCausalLM.forward

    def forward(self: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        # one token after a long text sees all of it
        cached = kwargs.get("past_key_values") or kwargs.get("cache")
        window, self.model.config.sliding_window = self.model.config.sliding_window, 4096
        try:
            if cached is None or not cached.get_seq_length():
                self.model.config.sliding_window = window
            return own(self, input_ids, **kwargs)
        finally:
            self.model.config.sliding_window = window

    monkeypatch.setattr(DynamicCache, "__init__", _full_layers(DynamicCache.__init__))
    monkeypatch.setattr(MistralForCausalLM, "forward", forward)
    nine_tokens_pass(model)
    with pytest.raises(ManticoreError, match="cannot be cut into blocks: its logits with a cache differ"):
        rehearse(model)


def _full_layers(own: Any) -> Any:
    """A cache that forgets nothing."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        if kwargs.get("config") is not None and self.layers:
            self.layers = [DynamicLayer() for _ in self.layers]

    return init


def test_a_bias_that_leaks_through_padding_is_mended() -> None:
    model = tiny_model("mamba", use_bias=True)
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.in_proj.bias.normal_()
    ids, mask = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.long)
    mask[:, :4] = 0
    with torch.no_grad():
        alone = model(ids[:, 4:]).logits
        assert float((model(ids, attention_mask=mask).logits[:, 4:] - alone).abs().max()) > 1e-2 * float(alone.max())
        hybrid = manticore.combine([model, tiny_model("gpt_neo")], num_blocks=2)
        hybrid.set_mixture_weights([0, 0])
        small = manticore.discretize(hybrid, [0, 0])
        for each in (hybrid, copy.deepcopy(hybrid), small):
            torch.testing.assert_close(each(ids, attention_mask=mask).logits[:, 4:], alone, rtol=0, atol=1e-5)
            assert torch.equal(each(ids[:, 4:]).logits, alone)
            # the state that a padded prompt leaves behind is that of the prompt alone
            begun = each(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
            ended = each(ids[:, 8:9], attention_mask=mask[:, :9], past_key_values=begun.past_key_values)
            torch.testing.assert_close(ended.logits[:, 0], alone[:, 4], rtol=0, atol=1e-5)


def test_padding_stays_out_when_layers_run_again_in_the_backward_pass() -> None:
    model = tiny_model("mamba2", use_bias=True)
    hybrid = manticore.combine([model, tiny_model("mamba")], num_blocks=2, check=False)
    ids, mask = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.long)
    mask[:, :4] = 0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            hybrid.gradient_checkpointing_enable()
        hybrid.train().zero_grad()
        hybrid(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in hybrid.named_parameters() if p.grad is not None and "in_proj" in n})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_mask_that_leaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        modeling_mamba, "apply_mask_to_padding_states", lambda hidden_states, attention_mask: hidden_states
    )
    model = tiny_model("mamba")
    with pytest.raises(ManticoreError, match="its logits with left padding differ from those without"):
        manticore.combine([model, tiny_model("gpt_neo")], num_blocks=2)
    with pytest.raises(ManticoreError, match="its logits with left padding differ from those without"):
        rehearse(model)


class Remembering(LlamaMLP):
    """Adds a little of what it computed when it was last called."""

    last: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        result, self.last = output + self.last, 0.1 * output.detach().mean()
        return result


def test_a_layer_that_keeps_something_between_calls_is_refused() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.__class__ = Remembering
    with pytest.raises(
        ManticoreError, match=r"cannot be cut into blocks: its logits .*(differ|depend on earlier calls)"
    ):
        self_check(model, Runner(model))


class Tabled(LlamaRMSNorm):
    """A table filled where the module is built, and by no initialiser: loading leaves it as memory happens to be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("table", torch.full((1,), 1.5), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * self.table


def test_a_table_that_loading_loses_is_found_before_anything_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm", Tabled)
    model = tiny_model("llama")
    nine_tokens_pass(model)
    with pytest.raises(ManticoreError, match="after saving and loading are not those before"):
        rehearse(model)


def test_layers_that_read_what_is_not_theirs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = LlamaAttention.forward

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # reads a weight of its own model's first layer, which a discretized hybrid may have dropped
        return own(self, hidden_states * self.first.weight.mean(), *args, **kwargs)

    def remember(model: PreTrainedModel) -> None:
        first = model.model.layers[0].input_layernorm
        for layer in model.model.layers:
            layer.self_attn.__dict__["first"] = first

    init = LlamaForCausalLM.__init__

    def building(self: Any, config: Any) -> None:
        init(self, config)
        remember(self)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", building)
    monkeypatch.setattr(LlamaAttention, "forward", forward)
    model = tiny_model("llama")
    nine_tokens_pass(model)
    with pytest.raises(ManticoreError, match=r"'llama' cannot be cut into blocks"):
        rehearse(model)


def test_the_twin_is_small_and_ends_its_windows_early() -> None:
    wide = tiny_model("mistral", sliding_window=4096, num_hidden_layers=8, vocab_size=5000, intermediate_size=900)
    twin = stunted(wide, switch=FAR, seed=0)
    assert twin.config.sliding_window == WINDOW
    assert (twin.config.num_hidden_layers, twin.config.vocab_size, twin.config.intermediate_size) == (2, 64, 64)
    assert (wide.config.sliding_window, wide.config.num_hidden_layers, wide.config.vocab_size) == (4096, 8, 5000)
    assert all(bool(parameter.any()) for parameter in twin.parameters())
    # every kind of layer is kept
    assert stunted(tiny_model("jamba"), switch=FAR, seed=0).config.num_hidden_layers == 2
    neo = tiny_model("gpt_neo", num_layers=6, attention_types=[[["global"], 4], [["local"], 2]], window_size=256)
    twin = stunted(neo, switch=FAR, seed=0)
    assert (twin.config.num_hidden_layers, twin.config.window_size) == (5, WINDOW)


def test_a_verdict_is_remembered_and_checked_before_it_is_believed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    inner = rehearsal._rehearse
    monkeypatch.setattr(rehearsal, "_rehearse", lambda model: (runs.append(model.config.model_type), inner(model)))
    model = tiny_model("llama")
    rehearse(model)
    rehearse(tiny_model("llama", seed=1).bfloat16())
    assert runs == ["llama"]
    [kept] = own_cache.iterdir()
    kept.write_bytes(kept.read_bytes() + b" ")
    rehearse(model)
    assert runs == ["llama"] * 2
    rehearse(tiny_model("llama", rms_norm_eps=1e-3))
    assert runs == ["llama"] * 3
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    rehearse(model)
    assert runs == ["llama"] * 4


def test_a_refusal_is_not_remembered_as_a_pass(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: PreTrainedModel) -> None:
        raise ManticoreError("no")

    monkeypatch.setattr(rehearsal, "_rehearse", refuse)
    for _ in range(2):
        with pytest.raises(ManticoreError, match="no"):
            rehearse(tiny_model("llama"))
    assert not own_cache.exists()


def test_a_place_that_cannot_be_written_costs_time_only(own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("in the way")
    rehearse(tiny_model("llama"))


def test_changed_code_of_a_family_is_rehearsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse(tiny_model("mamba"))
    own = MambaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        if kwargs.get("attention_mask") is not None:
            output.logits = output.logits + 1.0
        return output

    monkeypatch.setattr(MambaForCausalLM, "forward", forward)
    with pytest.raises(ManticoreError, match="its logits with left padding differ"):
        rehearse(tiny_model("mamba"))


def test_a_dynamic_rotary_embedding_ends_where_its_state_begins() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    hybrid = manticore.combine(
        [tiny_model("llama", max_position_embeddings=12, rope_parameters=rope), tiny_model("mamba")], num_blocks=2
    )
    hybrid(torch.arange(3, 15)[None])
    with pytest.raises(ManticoreError, match=r"13 tokens, but component 0 \(llama\) has positions for 12"):
        hybrid(torch.arange(3, 16)[None])


def test_modules_without_a_bias_are_not_watched() -> None:
    model = tiny_model("mamba")
    Runner(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    biased = tiny_model("mamba", use_bias=True)
    for _ in range(2):
        Runner(biased)
    hooks = sum(len(module._forward_hooks) for module in biased.modules() if isinstance(module, nn.Linear))
    assert hooks == biased.config.num_hidden_layers


def test_rows_on_both_sides_of_a_rotary_switch_are_refused() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    phi = tiny_model("phi3", original_max_position_embeddings=8, rope_parameters=rope)
    hybrid = manticore.combine([phi, tiny_model("mamba")], num_blocks=2)
    ids, mask = torch.arange(3, 27).view(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :6] = 0
    with torch.no_grad():
        with pytest.raises(ManticoreError, match=r"changes after 8 tokens for all rows.*shorter and longer rows"):
            hybrid(ids, attention_mask=mask)
        hybrid(ids[:, :8], attention_mask=mask[:, 4:])
        mask[0, 2:] = 1
        hybrid(ids, attention_mask=mask)


@pytest.mark.parametrize("chosen", [{"attn_implementation": "eager"}, {"experts_implementation": "eager"}])
def test_implementations_that_a_parent_was_loaded_with_are_those_rehearsed(
    chosen: dict[str, str], tmp_path: Path, own_cache: Path
) -> None:
    tiny_model("mixtral", use_cache=False).save_pretrained(tmp_path)
    rehearse(AutoModelForCausalLM.from_pretrained(tmp_path, **chosen))
    # another implementation is another verdict
    rehearse(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert len(list(own_cache.iterdir())) == 2
