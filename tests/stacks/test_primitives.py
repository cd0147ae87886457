"""Every primitive: its definition, gradients, parameters, state, FLOPs, causality, cache and padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_stacks import NAMES, OPTIONS, POSITIONS, tiny_stack, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from twins import TWINS

from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.stacks.catalogue import build_mixer, measured
from manticore.stacks.hyena import MultiHeadHyena
from manticore.stacks.mixer import Mixer, Step
from manticore.stacks.modeling import StackCache

PARAMETERS = {
    "attention": 66048,
    "mh-attention": 66048,
    "sliding-attention": 66048,
    "mh-sliding-attention": 66048,
    "linear-attention": 131584,
    "mh-linear-attention": 65824,
    "gated-linear-attention": 86272,
    "mh-gated-linear-attention": 86160,
    "hyena": 124348,
    "mh-hyena": 30862,
    "hyena-experts": 57464,
    "mamba": 107264,
    "mlp": 131072,
    "swiglu": 135168,
    "moe-mlp": 165000,
    "rwkv5-channel-mixer": 147712,
    "rwkv6-channel-mixer": 147712,
}
"""At width 128 and 128 positions, counted in the models that MAD's published code builds."""

STATES = {
    "attention": 2 * 128 * 64,
    "mh-attention": 2 * 128 * 64,
    "grouped-query-attention": 2 * 4 * 8 * 64,
    "sliding-attention": 2 * 128 * 33,
    "mh-sliding-attention": 2 * 128 * 33,
    "linear-attention": 128 * 128,
    "mh-linear-attention": 16 * 8 * 8,
    "gated-linear-attention": 128 * 128,
    "mh-gated-linear-attention": 8 * 16 * 16,
    "delta-net": 8 * 16 * 16,
    "gated-delta-net": 8 * 16 * 16,
    "kimi-delta-attention": 8 * 16 * 16,
    "hyena": 512 * 4,
    "mh-hyena": 8 * 16 * 16 * 2,
    "hyena-experts": 8 * 16 * 16,
    "short-gated-convolution": 2 * 128,
    "mamba": 256 * 4,
    "mamba-2": 256 * 4,
    "rwkv5-time-mixer": 8 * 16 * 16,
    "rwkv6-time-mixer": 8 * 16 * 16,
    "rwkv7-time-mixer": 8 * 16 * 16,
}
"""At width 128 after 64 tokens; the others have none."""


def tiny_mixer(name: str, **options: Any) -> Mixer:
    """The primitive of a tiny stack, in float64."""
    return tiny_stack(name, layer_options={name: {**OPTIONS.get(name, {}), **options}}).model.layers[0].mixer


def run(mixer: Mixer, x: torch.Tensor) -> torch.Tensor:
    step = Step()
    if mixer.cache_type in ("full_attention", "sliding_attention"):
        places = torch.arange(x.shape[1])
        hidden = places[:, None] < places
        if mixer.window is not None:
            hidden = hidden | (places[:, None] - places > mixer.window)
        step = Step(mask=torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, float("-inf")))
    return mixer(x, step)


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_path_computes_the_definition_and_its_gradients(name: str) -> None:
    mixer = tiny_mixer(name)
    # odd, and longer than two chunks of most recurrences
    x = torch.randn(1, 37, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaves = [parameter for key, parameter in mixer.named_parameters() if key != "gates"]
    results = []
    for compute in (lambda y: run(mixer, y), lambda y: TWINS[name](mixer, y[0])[None]):
        inputs = x.clone().requires_grad_()
        out = compute(inputs)
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), [inputs, *leaves])))
    (fast, fast_gradients), (slow, slow_gradients) = results
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    for got, expected in zip(fast_gradients, slow_gradients):
        scale = float(expected.abs().max()) + 1e-12
        torch.testing.assert_close(got / scale, expected / scale, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_gives_its_layers_what_the_definition_needs(name: str) -> None:
    model, ids = tiny_stack(name), tokens(1, 11)
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids[0])
        hidden = hidden + TWINS[name](layer.mixer, layer.norm(hidden))
        expected = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(model(ids, use_cache=False).logits[0], expected, rtol=1e-9, atol=1e-11)


def test_sequences_of_several_chunks_compute_the_definition() -> None:
    x = torch.randn(1, 90, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    recurrences = ("mh-linear-attention", "mh-gated-linear-attention", "gated-delta-net", "mamba-2", "rwkv6-time-mixer")
    for name in (*recurrences, "kimi-delta-attention", "rwkv7-time-mixer"):
        mixer = tiny_mixer(name)
        with torch.no_grad():
            torch.testing.assert_close(run(mixer, x)[0], TWINS[name](mixer, x[0]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "name",
    ["mh-gated-linear-attention", "rwkv6-time-mixer", "gated-delta-net", "kimi-delta-attention", "mamba-2"],
)
def test_states_that_forget_at_once_stay_finite_in_single_precision(name: str) -> None:
    mixer = tiny_mixer(name).float()
    with torch.no_grad():
        for key, parameter in mixer.named_parameters():
            if key in ("decay", "log_rate", "A_log"):
                parameter.fill_(5.0)
            if key == "decay_up.bias":
                parameter.fill_(-1e4)
    x = torch.randn(1, 64, 16, requires_grad=True)
    out = run(mixer, x)
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(x.grad).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["moe-mlp", "hyena-experts"])
def test_the_sparse_router_leaves_the_other_experts_out(name: str) -> None:
    mixer = tiny_mixer(name, router="sparse")
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(run(mixer, x)[0], TWINS[name](mixer, x[0]), rtol=1e-9, atol=1e-11)
        assert not torch.allclose(run(mixer, x), run(_with_router(mixer, "mad_code"), x))


def _with_router(mixer: Any, kind: str) -> Mixer:
    mixer.router_kind = kind
    return mixer


def test_both_ways_to_multiply_groups_give_the_same() -> None:
    x1, v, x2 = (torch.randn(2, 3, 20, 4, dtype=torch.float64) for _ in range(3))
    filters = torch.randn(3, 20, dtype=torch.float64)
    for seen in (20, 6):
        matrix = MultiHeadHyena._by_matrix(x1[:, :, -seen:], v, x2, filters)
        transform = MultiHeadHyena._by_transform(x1[:, :, -seen:], v, x2, filters)
        torch.testing.assert_close(matrix, transform, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_layers(name: str) -> None:
    assert sum(p.numel() for p in measured(name, 128, 128).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_state_sizes(name: str) -> None:
    mixer = measured(name, 128, 128)
    assert mixer.state_size(64) == STATES.get(name, 0)
    if mixer.fixed_state:
        assert mixer.state_size(64) == mixer.state_size(1000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 50, 96])
def test_the_formula_gives_the_flops_that_are_counted(name: str, length: int) -> None:
    mixer = measured(name, 16, POSITIONS, OPTIONS.get(name))
    with counted_flops() as counter:
        mixer(torch.empty(1, length, 16, device="meta"), Step(attention="sdpa"))
    assert mixer.flops(length) == counter.get_total_flops()


def test_formulas_against_those_of_the_paper() -> None:
    tokens, width = 512, 128
    attention = 6 * tokens * width**2 + 4 * tokens**2 * width + 2 * tokens * width**2
    assert measured("mh-attention", width, tokens).flops(tokens) == attention
    assert measured("swiglu", width, tokens).flops(tokens) == 6 * tokens * width * 352
    expand, states, rank = 2, 4, 8
    mamba = (
        6 * tokens * width**2 * expand
        + 8 * tokens * width * expand
        + 2 * tokens * width * expand * (2 * rank + 2 * states)
    )
    scan = measured("mamba", width, tokens).flops(tokens) - mamba
    # the paper counts 2 per channel, step and state, ours every operation of the scan
    assert 2 * tokens * width * expand * states < scan < 12 * tokens * width * expand * states


class _Operations(TorchDispatchMode):
    """Counts what is called."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_no_primitive_loops_over_the_tokens(name: str) -> None:
    counts = []
    for length in (256, 512):
        mixer = measured(name, 16, 512, OPTIONS.get(name))
        with torch.no_grad(), _Operations() as operations:
            mixer(torch.empty(1, length, 16, device="meta"), Step(attention="sdpa"))
        counts.append(operations.count)
    # a loop would call several operations for each of the 256 tokens more
    assert counts[1] - counts[0] < 256


@pytest.mark.parametrize("name", NAMES)
def test_earlier_logits_do_not_depend_on_later_tokens(name: str) -> None:
    model, ids = tiny_stack(name, "swiglu"), tokens()
    later = ids.clone()
    later[:, 23:] = ids[:, 23:] % 30 + 1
    with torch.no_grad():
        before, after = model(ids, use_cache=False).logits, model(later, use_cache=False).logits
    torch.testing.assert_close(after[:, :23], before[:, :23], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(after[:, 23:], before[:, 23:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3, 40], [0, 17, 18, 30, 40], [0, 30, *range(31, 41)]])
def test_a_cached_prompt_continues_by_any_number_of_tokens(name: str, cuts: list[int]) -> None:
    model, ids = tiny_stack(name, "swiglu"), tokens()
    cache = StackCache(model.config)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        parts = [
            model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits for start, stop in pairwise(cuts)
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-11)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize("name", NAMES)
def test_left_padding_changes_nothing_with_and_without_a_cache(name: str) -> None:
    model, ids = tiny_stack(name, "swiglu"), tokens()
    padded = torch.cat([tokens(2, 7, seed=9), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :7] = 0
    cache = StackCache(model.config)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        plain = model(padded, attention_mask=mask, use_cache=False).logits[:, 7:]
        parts = [
            model(padded[:, a:b], attention_mask=mask[:, :b], past_key_values=cache, use_cache=True).logits
            for a, b in ((0, 20), (20, 21), (21, 40), (40, 47))
        ]
    torch.testing.assert_close(plain, whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.cat(parts, 1)[:, 7:], whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_runs_and_stays_near(name: str) -> None:
    model, ids = tiny_stack(name), tokens(1, 20)
    with torch.no_grad():
        exact = model(ids, use_cache=False).logits
        half = model.bfloat16()(ids, use_cache=False).logits
    assert half.dtype == torch.bfloat16
    # a normaliser near zero can magnify rounding in linear attention
    limit = 0.6 if "linear-attention" in name else 0.15
    assert float((half.double() - exact).norm() / exact.norm()) < limit


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mh-atention", {}, "Did you mean 'mh-attention'"),
        ("mamba", {"state_sise": 4}, "layer 'mamba': unknown option 'state_sise'. Did you mean 'state_size'"),
        ("mamba", {"state_size": 0}, "state_size is 0 .expected a whole number.. Fix: give 1 or more"),
        ("mamba", {"state_size": 4.5}, "state_size is 4.5"),
        ("mh-attention", {"num_heads": 3}, "layer 'mh-attention': 3 heads do not divide width 16"),
        ("mh-attention", {"num_heads": 16}, "heads of odd width 1 cannot be rotated"),
        ("grouped-query-attention", {"num_heads": 4, "num_kv_heads": 3}, "3 key heads do not divide 4 heads"),
        ("mh-hyena", {"num_groups": 5}, "5 groups do not divide width 16"),
        ("hyena", {"proj_groups": 7}, "7 groups do not divide 192 projected channels"),
        ("moe-mlp", {"router": "spare"}, "router is 'spare' .expected one of mad_code, sparse.. Did you mean 'sparse'"),
        ("moe-mlp", {"top_k": 9}, "top_k is 9 .expected at most num_experts, 8"),
        ("rwkv5-time-mixer", {"divisor": -1}, "divisor is -1"),
        ("attention", {"bias": 1}, "bias is 1 .expected true or false"),
        ("moe-mlp", {"router": 3}, "router is 3 .expected one of mad_code, sparse"),
    ],
)
def test_what_cannot_be_built_ends_in_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ManticoreError, match=words) as caught:
        build_mixer(name, 16, 32, options)
    assert "\n" not in str(caught.value)
