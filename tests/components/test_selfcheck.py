"""What cannot be taken apart and put together again is refused, whatever its family is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from benchmarks.tiny_families import tiny_config, tiny_model
from manticore.components import selfcheck
from manticore.components.cache_argument import cache_argument, cache_in
from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.errors import ManticoreError


class Shortcut(LlamaModel):
    """The final norm also reads what the first layer returned."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:  # type: ignore[override]
        hidden = self.embed_tokens(input_ids)
        rotary = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        between = []
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary)
            between.append(hidden)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden + between[0]))


class Shuffled(LlamaModel):
    """Layers run in another order than they are listed in."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:  # type: ignore[override]
        hidden = self.embed_tokens(input_ids)
        rotary = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        for layer in reversed(self.layers):
            hidden = layer(hidden, position_embeddings=rotary)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class Whispering(LlamaModel):
    """Every layer leaves a note that the next one reads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        note: list[Tensor] = []

        def read(_layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] + note.pop() if note else args[0], *args[1:])

        def write(_layer: Any, _args: Any, output: Tensor) -> None:
            note[:] = [output.mean(dim=-1, keepdim=True)]

        for lower, upper in zip(self.layers, self.layers[1:]):
            lower.register_forward_hook(write)
            upper.register_forward_pre_hook(read)


def llama_around(body: type[LlamaModel]) -> PreTrainedModel:
    model = tiny_model("llama")
    changed = body(model.config)
    changed.load_state_dict(model.model.state_dict())
    model.model = changed
    return model.eval()


@pytest.mark.parametrize("family", ["gpt_neo", "mamba", "jamba", "deepseek_v3"])
def test_a_component_that_can_be_taken_apart_differs_by_nothing(family: str) -> None:
    model = tiny_model(family)
    assert self_check(model, Runner(model)) == 0.0


def test_half_precision_differs_by_nothing_on_cpu() -> None:
    model = tiny_model("mamba").bfloat16()
    assert self_check(model, Runner(model)) == 0.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (Shortcut, "its logits on plain input differ by"),
        (Shuffled, "its last layer is not called after its first"),
        (Whispering, "its layers hand each other more than the hidden state"),
    ],
)
def test_a_layer_that_depends_on_something_hidden_is_found(body: type[LlamaModel], reason: str) -> None:
    model = llama_around(body)
    with pytest.raises(ManticoreError, match=reason):
        self_check(model, Runner(model))


def test_the_same_model_without_the_secret_passes() -> None:
    model = llama_around(LlamaModel)
    assert self_check(model, Runner(model)) == 0.0


def test_weights_that_give_nan_are_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(ManticoreError, match="LlamaForCausalLM: its logits are NaN or infinite"):
        self_check(model, Runner(model))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert", r"depend on later tokens \(not causal\)"),
        ("gemma4_text", "hand each other more than the hidden state"),
        ("gemma3n_text", r"its layers take \[4, 2, 9, 32\]"),
    ],
)
def test_families_whose_layers_do_not_stand_alone(family: str, reason: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ManticoreError, match=f"family '{family}' cannot be cut into blocks.*{reason}"):
        self_check(model, Runner(model))


def test_a_family_that_cannot_run_in_pieces_ends_in_one_line() -> None:
    model = tiny_model("rwkv")
    with pytest.raises(ManticoreError, match="'rwkv' cannot be cut into blocks: TypeError") as caught:
        continues_by_one_token_only(Runner(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "one_token_only"),
    # jamba's two recurrent layers of four restart softly; that was once below the threshold
    [("llama", False), ("mamba2", False), ("bamba", False), ("mamba", True), ("falcon_mamba", True), ("jamba", True)],
)
def test_states_that_restart_are_noticed(family: str, one_token_only: bool) -> None:
    assert continues_by_one_token_only(Runner(tiny_model(family))) is one_token_only


@pytest.mark.parametrize(("family", "one_token_only"), [("llama", False), ("mamba", True), ("mamba2", True)])
def test_in_half_precision_every_recurrent_family_counts_as_restarting(family: str, one_token_only: bool) -> None:
    assert continues_by_one_token_only(Runner(tiny_model(family).bfloat16())) is one_token_only


def test_the_models_own_tokens_are_not_needed() -> None:
    config = tiny_config("llama", vocab_size=2, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = LlamaForCausalLM(config).eval()
    assert self_check(model, Runner(model)) == 0.0


def test_a_model_may_round_as_much_as_it_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # in deep recurrent models rounding alone exceeds any tolerance that would still tell a lost state
    monkeypatch.setitem(selfcheck._TOLERANCE, torch.float32, 0.0)
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=24, initializer_range=0.5)
    model = MambaForCausalLM(config).eval()
    ids, cache, name = torch.arange(9)[None], DynamicCache(config=config), cache_argument(type(model).forward)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        cached = torch.cat([model(input_ids=ids[:, t : t + 1], **{name: cache}).logits for t in range(9)], 1)
    assert not torch.equal(cached, whole)
    assert continues_by_one_token_only(Runner(model))


class Forgetful(MambaForCausalLM):
    """Decoding with a cache goes wrong by itself, by more than rounding."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(*args, **kwargs)
        if cache_in(kwargs) is not None:
            output.logits = output.logits * 1.1
        return output


def test_decoding_that_is_wrong_in_the_family_itself_is_no_rounding() -> None:
    torch.manual_seed(0)
    model = Forgetful(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2)).eval()
    with pytest.raises(ManticoreError, match="its logits with a cache differ from those without"):
        continues_by_one_token_only(Runner(model))
