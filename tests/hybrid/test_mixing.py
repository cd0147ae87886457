"""The three mixings: invariants at the vertices and between copies, gradients, shares and paths.

Shapes: K components, N blocks.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hybrids import BLOCKS, MIXINGS, Build, at_random_weights, random_weights
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.routed import RoutedMixing
from manticore.projectors.projector import resize

mixings = pytest.mark.parametrize("mixing", MIXINGS)
counts = pytest.mark.parametrize("components", [2, 3])


@mixings
@counts
@torch.no_grad()
def test_at_a_vertex_the_hybrid_is_the_component(
    mixing: str,
    components: int,
    build: Build,
    parents: list[PreTrainedModel],
    ids: Tensor,
    left_padding: dict[str, Tensor],
) -> None:
    hybrid = build(mixing, components)
    for k in range(components):
        hybrid.set_mixture_weights([k] * BLOCKS)
        takes_positions = hybrid.runners[k].accepts_positions
        for given in ({}, {"attention_mask": left_padding["attention_mask"]}, left_padding):
            own = {name: value for name, value in given.items() if name != "position_ids" or takes_positions}
            expected = parents[k](input_ids=ids, use_cache=False, **own).logits
            assert torch.equal(hybrid(ids, **given).logits, expected)


@mixings
@counts
@pytest.mark.parametrize("family", ["gpt_neo", "mamba"])
@torch.no_grad()
def test_copies_of_a_component_are_the_component_at_any_weights(
    mixing: str, components: int, family: str, build: Build, ids: Tensor, left_padding: dict[str, Tensor]
) -> None:
    model = tiny_model(family)
    hybrid = build(mixing, models=[model] * components)
    for projector in hybrid.mixing.projectors.values():
        projector.reset_identity()
    expected = model(input_ids=ids, attention_mask=left_padding["attention_mask"], use_cache=False).logits
    for seed in range(3):
        at_random_weights(hybrid, seed)
        logits = hybrid(ids, attention_mask=left_padding["attention_mask"]).logits
        # weights and products are rounded, so the sums are 1 to the last bits only
        assert float((logits - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@mixings
@torch.no_grad()
def test_nan_in_a_branch_of_weight_zero_stays_there(
    mixing: str, build: Build, parents: list[PreTrainedModel], ids: Tensor
) -> None:
    hybrid = build(mixing, 3)
    clean = copy.deepcopy(hybrid)
    for path in ([0, 0, 0], [0, 2, 0], [2, 0, 0]):
        # all of component 1, and every projector to or from it
        for name, parameter in hybrid.named_parameters():
            ends = name.removeprefix("mixing.projectors.").partition(".")[0].split("_")[1:]
            if name.startswith("component_1.") or (name.startswith("mixing.projectors.") and "1" in ends):
                parameter.fill_(float("nan"))
        for each in (hybrid, clean):
            each.set_mixture_weights(path)
        assert torch.equal(hybrid(ids).logits, clean(ids).logits)
    hybrid.set_mixture_weights([0, 1, 0])
    assert hybrid(ids).logits.isnan().any()


@mixings
@torch.no_grad()
def test_components_of_weight_zero_do_not_run(mixing: str, build: Build, ids: Tensor) -> None:
    hybrid = build(mixing, 3)
    calls: list[tuple[int, int]] = []
    for k, runner in enumerate(hybrid.runners):
        assert runner is not None
        for index, layer in enumerate(runner.layers):
            layer.register_forward_hook(lambda *_, where=(k, index): calls.append(where))
    hybrid.set_mixture_weights([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]])
    hybrid(ids)
    expected = {(0, i) for i in range(*hybrid.config.boundaries[0][0:2])}
    expected |= {(k, i) for k in (0, 2) for i in range(*hybrid.config.boundaries[k][1:3])}
    expected |= {(2, i) for i in range(*hybrid.config.boundaries[2][2:4])}
    assert sorted(calls) == sorted(expected)
    # weights that train are all needed, zero or not
    for parameter in hybrid.mixing.mixture_parameters():
        parameter.requires_grad_(True)
    calls.clear()
    hybrid(ids)
    assert len(calls) == hybrid.config.num_hidden_layers


@mixings
@torch.no_grad()
def test_new_weights_are_used_however_they_are_set(mixing: str, build: Build, ids: Tensor) -> None:
    hybrid = at_random_weights(build(mixing), seed=1)
    other = copy.deepcopy(hybrid)
    first = hybrid(ids).logits
    at_random_weights(other, seed=7)
    expected = other(ids).logits
    assert not torch.equal(first, expected)
    assert torch.equal(hybrid(ids).logits, first)
    hybrid.load_state_dict(other.state_dict())
    assert torch.equal(hybrid(ids).logits, expected)
    for parameter, theirs in zip(hybrid.mixing.mixture_parameters(), other.mixing.mixture_parameters()):
        parameter.zero_()[..., 0] = 1
        parameter.lerp_(theirs, 1.0)
    assert torch.equal(hybrid(ids).logits, expected)


@mixings
def test_gradients_of_probabilities_equal_finite_differences(mixing: str, build: Build, ids: Tensor) -> None:
    # families that compute in float64 all the way
    models = [
        tiny_model("gpt2", seed=1),
        tiny_model("gpt_neox", seed=2, hidden_size=24),
        tiny_model("opt", seed=3, hidden_size=16),
    ]
    hybrid = at_random_weights(build(mixing, models=models).double())

    def loss() -> Tensor:
        # transformers' own loss goes through float32
        return torch.nn.functional.cross_entropy(hybrid(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    parameters = hybrid.mixing.mixture_parameters()
    for parameter in parameters:
        assert parameter.dtype == torch.float64
        parameter.requires_grad_(True)
    loss().backward()
    step = 1e-5
    for parameter in parameters:
        assert parameter.grad is not None
        flat, gradient = parameter.detach().view(-1), parameter.grad.view(-1)
        # translated rows feed several readers, routed rows one: every entry counts
        for i in range(flat.numel()):
            with torch.no_grad():
                flat[i] += step
                above = loss()
                flat[i] -= 2 * step
                below = loss()
                flat[i] += step
            assert float(gradient[i]) == pytest.approx(float((above - below) / (2 * step)), rel=1e-5, abs=1e-8)


@torch.no_grad()
def test_routed_reads_what_its_formula_says(build: Build) -> None:
    hybrid = at_random_weights(build("routed", 3))
    mixing = hybrid.mixing
    assert isinstance(mixing, RoutedMixing)
    features = {k: torch.randn(2, 5, width) for k, width in enumerate((32, 24, 48))}
    for boundary in range(BLOCKS):
        entered = mixing.enter(boundary, features, [0, 1, 2])
        for m, value in entered.items():
            expected = torch.zeros_like(features[m])
            for k, y in features.items():
                translated = y if k == m else mixing.projectors[f"{boundary}_{k}_{m}"](y)
                expected += mixing.routing[boundary, m, k] * translated
            torch.testing.assert_close(value, expected)


@torch.no_grad()
def test_gated_reads_what_its_formula_says(build: Build) -> None:
    hybrid = at_random_weights(build("gated", 3))
    widths, widest = (32, 24, 48), 48
    features = {k: torch.randn(2, 5, width) for k, width in enumerate(widths)}

    def gate(block: int, k: int, direction: str, x: Tensor, width: int) -> Tensor:
        weight = hybrid.mixture_weights[block, k]
        return (1 - weight) * hybrid.mixing.projectors[f"{block}_{direction}_{k}"](x) + weight * resize(x, width)

    def stream(boundary: int) -> Tensor:
        total = torch.zeros(2, 5, widest)
        for k, y in features.items():
            block = max(boundary - 1, 0)
            out = gate(block, k, "out", y, widest) if boundary else resize(y, widest)
            total += hybrid.mixture_weights[block, k] * out
        return total

    for boundary in range(BLOCKS):
        for k, value in hybrid.mixing.enter(boundary, features, [0, 1, 2]).items():
            torch.testing.assert_close(value, gate(boundary, k, "in", stream(boundary), widths[k]))
    read = hybrid.mixing.head_inputs(features)
    heads = hybrid.mixing.mixed({k: hidden.sum(-1, keepdim=True) for k, hidden in read.items()})
    expected = sum(
        hybrid.mixture_weights[-1, k] * resize(stream(BLOCKS), widths[k]).sum(-1, keepdim=True) for k in features
    )
    torch.testing.assert_close(heads, expected)


@torch.no_grad()
def test_translated_is_routed_with_equal_rows(build: Build, ids: Tensor) -> None:
    translated, routed = build("translated", 3), build("routed", 3)
    routed.mixing.projectors.load_state_dict(translated.mixing.projectors.state_dict())
    weights = random_weights(BLOCKS, 3)
    for hybrid in (translated, routed):
        hybrid.set_mixture_weights(weights)
    assert torch.equal(routed(ids).logits, translated(ids).logits)


@torch.no_grad()
def test_routed_starts_as_the_ensemble(build: Build, parents: list[PreTrainedModel], ids: Tensor) -> None:
    hybrid = build("routed", 3)
    mean = sum(parent(input_ids=ids, use_cache=False).logits for parent in parents) / 3
    torch.testing.assert_close(hybrid(ids).logits, mean)
    torch.testing.assert_close(hybrid.mixture_weights, torch.full((BLOCKS, 3), 1 / 3))


@pytest.mark.parametrize("mixing", ["translated", "gated"])
def test_the_others_start_undecided(mixing: str, build: Build) -> None:
    torch.testing.assert_close(build(mixing, 3).mixture_weights, torch.full((BLOCKS, 3), 1 / 3))


@counts
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_shares_and_best_path_equal_a_walk_over_all_paths(components: int, blocks: int, build: Build) -> None:
    hybrid = build("routed", components, num_blocks=blocks)
    mixing = hybrid.mixing
    assert isinstance(mixing, RoutedMixing)
    for seed in range(20):
        at_random_weights(hybrid, seed)
        if seed % 2:
            # zeros, as at vertices and at R = I
            with torch.no_grad():
                mixing.routing.copy_(torch.nn.functional.one_hot(mixing.routing.argmin(-1), components))
        routing, output = mixing.routing.detach().double(), mixing.weights.detach().double()
        shares = torch.zeros(blocks, components, dtype=torch.float64)
        best, best_share = [0], -1.0
        for path in itertools.product(range(components), repeat=blocks):
            factors = [routing[n, path[n], path[n - 1]] for n in range(1, blocks)]
            share = math.prod([float(output[path[-1]]), *(float(factor) for factor in factors)])
            for n, k in enumerate(path):
                shares[n, k] += share
            if share > best_share:
                best, best_share = list(path), share
        torch.testing.assert_close(hybrid.mixture_weights.double(), shares, atol=1e-6, rtol=0)
        assert mixing.best_path() == best


@pytest.mark.parametrize("mixing", ["translated", "gated"])
def test_the_best_path_takes_the_largest_weight_of_each_block(mixing: str, build: Build) -> None:
    hybrid = build(mixing, 3)
    hybrid.set_mixture_weights([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0, 0, 1]])
    # the first one among equals
    assert hybrid.mixing.best_path() == [1, 0, 2]


@mixings
@counts
def test_weights_come_back_as_they_were_set(mixing: str, components: int, build: Build) -> None:
    hybrid = build(mixing, components)
    for seed in range(5):
        weights = random_weights(BLOCKS, components, seed=seed)
        hybrid.set_mixture_weights(weights)
        torch.testing.assert_close(hybrid.mixture_weights, weights, atol=1e-7, rtol=0)
        assert not hybrid.mixture_weights.requires_grad
        for parameter in hybrid.mixing.mixture_parameters():
            torch.testing.assert_close(parameter.sum(-1), torch.ones(parameter.shape[:-1]))
    for path in itertools.product(range(components), repeat=BLOCKS):
        hybrid.set_mixture_weights(list(path))
        expected = torch.nn.functional.one_hot(torch.tensor(path), components).float()
        assert torch.equal(hybrid.mixture_weights, expected)
        assert hybrid.mixing.best_path() == list(path)
    hybrid.set_mixture_weights([[1, 0] + [0] * (components - 2)] * BLOCKS)
    hybrid.mixture_weights.zero_()
    assert hybrid.mixture_weights[0, 0] == 1


@mixings
@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([[0.5, 0.5]], r"shape \[1, 2\] \(expected numbers \[3, 2\], or 3 component indices\)"),
        ([[0.2, 0.3, 0.5]] * 3, r"shape \[3, 3\]"),
        ([0, 1], r"shape \[2\]"),
        ([0.0, 1.0, 0.0], r"shape \[3\]"),
        ([0, 1, 2], r"path \[0, 1, 2\] \(expected 3 indices from 0 to 1\)"),
        ([0, -1, 1], r"path \[0, -1, 1\]"),
        ([[1.5, -0.5]] + [[0.5, 0.5]] * 2, "negative, NaN or infinite"),
        ([[float("nan"), 1.0]] + [[0.5, 0.5]] * 2, "negative, NaN or infinite"),
        ([[0.5, 0.5], [0.5, 0.4], [0.5, 0.5]], r"row 1 sums to 0.9, not to 1"),
        ([[0.5, 0.5], [1.0]], "expected numbers"),
        (["gpt", "mamba", "gpt"], "expected numbers"),
        (None, "expected numbers"),
    ],
)
def test_weights_that_are_refused_change_nothing(mixing: str, weights: Any, reason: str, build: Build) -> None:
    hybrid = at_random_weights(build(mixing))
    before = [parameter.clone() for parameter in hybrid.mixing.mixture_parameters()]
    with pytest.raises(ManticoreError, match=f"set_mixture_weights: .*{reason}"):
        hybrid.set_mixture_weights(weights)
    for parameter, old in zip(hybrid.mixing.mixture_parameters(), before):
        assert torch.equal(parameter, old)


@mixings
@counts
def test_every_projector_has_a_translation_that_fits_it(mixing: str, components: int, build: Build) -> None:
    hybrid = build(mixing, components)
    found = hybrid.mixing.translations()
    assert {translation.name for translation in found} == set(hybrid.mixing.projectors)
    assert len(found) == BLOCKS * (2 * components if mixing == "gated" else components * (components - 1))
    for translation in found:
        for component, boundary in (translation.source, translation.target):
            assert 0 <= component < components
            assert 0 <= boundary <= BLOCKS
        widths = [config.hidden_size for config in hybrid.config.components]
        assert translation.projector.d_in == widths[translation.source[0]]
        assert translation.projector.d_out == widths[translation.target[0]]
        assert hybrid.mixing.projectors[translation.name] is translation.projector
