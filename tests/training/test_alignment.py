"""Alignment of real, tiny hybrids with random weights."""

import copy
import json
import warnings

import pytest
import torch
from datasets import Dataset
from tiny_aligned import component, dataset, hybrid_of, snapshot, tokens_of, unchanged

import manticore
from manticore.training.alignment import FeatureSpace, boundary_features
from manticore.training.calibration import Packs, calibration_packs


@pytest.mark.parametrize("mixing", ["translated", "routed", "gated"])
def test_projectors_are_the_regressions_on_the_text_that_is_not_held_out(mixing):
    """K = 3 of three families and widths: weights and both R² against dense least squares on the features."""
    hybrid = hybrid_of("gpt", "mamba", "llama", mixing=mixing)
    before = snapshot(hybrid)
    data = dataset(80, 16)
    report = manticore.align(hybrid, data, tokens=80 * 16, holdout=0.25, ridge=0.0, batch_size=7, withdraw=False)
    assert unchanged(hybrid, before, except_projectors=True)
    fit, held = calibration_packs(data, tokens=80 * 16, holdout=0.25, length=0, seed=0, tokenizer=None)
    assert (report.tokens, report.heldout_tokens) == (fit.tokens, held.tokens) == (60 * 16, 20 * 16)

    translations = hybrid.mixing.translations()
    spaces = {space for t in translations for space in (t.source, t.target)}
    features = [boundary_features(hybrid, spaces, packs) for packs in (fit, held)]
    assert [f.name for f in report.translations] == [t.name for t in translations]
    for translation, found in zip(translations, report.translations):
        (x, held_x), (y, held_y) = (
            [part[FeatureSpace(*space)].flatten(0, 1).double() for part in features]
            for space in (translation.source, translation.target)
        )
        affine = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y, driver="gelsd").solution
        with torch.no_grad():
            mapped = translation.projector(held_x.float())
        torch.testing.assert_close(
            mapped, (held_x @ affine[:-1] + affine[-1]).float(), rtol=1e-3, atol=1e-3 * float(held_y.std())
        )
        for r2, inputs, outputs in ((found.r2, x, y), (found.r2_heldout, held_x, held_y)):
            error = (inputs @ affine[:-1] + affine[-1] - outputs).square().sum()
            assert r2 == pytest.approx(1 - float(error / (outputs - outputs.mean(0)).square().sum()), abs=1e-4)
        assert found.r2_heldout <= found.r2 + 0.05
        assert (found.source, found.target) == (translation.source[0], translation.target[0])
        assert found.boundary == translation.source[1] == translation.target[1]


def test_boundary_features_are_what_the_components_hold_when_they_run_alone():
    hybrid = hybrid_of("gpt", "mamba")
    ids = tokens_of(2, 9)
    batch = Packs(ids, ids, None)
    spaces = [(k, n) for k in range(2) for n in range(3)]
    features = boundary_features(hybrid, spaces, batch)
    for k in range(2):
        seen, layers, edges = {}, hybrid.runners[k].layers, hybrid.config.boundaries[k]
        hooks = [
            layer.register_forward_hook(lambda _, args, out, i=i, seen=seen: seen.update({i: args[0], i + 1: out}))
            for i, layer in enumerate(layers)
        ]
        with torch.no_grad():
            hybrid.component(k)(ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        for n in range(3):
            output = seen[edges[n]]
            assert torch.equal(features[k, n], output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("mixing", ["translated", "gated"])
@pytest.mark.parametrize("projector", ["linear", "linear-skip", "two-layer", "low-rank"])
def test_identical_components_find_the_identity(mixing, projector):
    twin = component("gpt")
    hybrid = manticore.combine(
        [twin, twin], num_blocks=2, mixing=mixing, projector=projector, projector_options={"init": "default"}
    )
    report = manticore.align(hybrid, dataset(100, 16), tokens=1600, ridge=1e-9, withdraw=False)
    for found in report.translations:
        assert found.r2 == pytest.approx(1, abs=1e-6)
        assert found.r2_heldout == pytest.approx(1, abs=1e-6)
    ids = tokens_of(3, 12, seed=9)
    with torch.no_grad():
        for translation in hybrid.mixing.translations():
            features = boundary_features(hybrid, [translation.source], Packs(ids, ids, None))
            x = features[FeatureSpace(*translation.source)]
            torch.testing.assert_close(translation.projector(x), x, rtol=0, atol=1e-4)
        torch.testing.assert_close(hybrid(ids).logits, twin(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("projector", ["linear", "linear-skip", "two-layer"])
def test_two_components_that_differ_by_a_rotation_are_joined_without_loss(projector):
    """The stream of a Llama without norms' gains may be rotated: the hybrid at a mixed vertex is the component."""
    first = component("llama")
    second = copy.deepcopy(first)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        second.model.embed_tokens.weight.copy_(first.model.embed_tokens.weight @ rotation)
        for layer in second.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight.copy_(reader.weight @ rotation)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(rotation.T @ writer.weight)
        second.lm_head.weight.copy_(first.lm_head.weight @ rotation)
    hybrid = manticore.combine([first, second], num_blocks=2, projector=projector)
    ids = tokens_of(3, 12, seed=9)
    with torch.no_grad():
        expected = first(ids).logits
        hybrid.set_mixture_weights([0, 1])
        assert (hybrid(ids).logits - expected).abs().max() > 0.01
        report = manticore.align(hybrid, dataset(100, 16), tokens=1600, ridge=1e-9, withdraw=False)
        torch.testing.assert_close(hybrid(ids).logits, expected, rtol=0, atol=1e-4)
    assert min(found.r2_heldout for found in report.translations) > 1 - 1e-6
    assert abs(report.loss_after - report.loss_before) > 1e-4


def test_losses_are_those_of_the_held_out_text():
    hybrid = hybrid_of("gpt", "mamba")
    data = dataset(40, 16)
    _, held = calibration_packs(data, tokens=640, holdout=0.25, length=0, seed=5, tokenizer=None)
    losses = []
    for act in (False, True):
        if act:
            report = manticore.align(hybrid, data, tokens=640, holdout=0.25, seed=5, batch_size=3)
        with torch.no_grad():
            losses.append(float(hybrid(held.input_ids, labels=held.input_ids).loss))
    assert report.loss_before == pytest.approx(losses[0], abs=1e-5)
    assert report.loss_after == report.loss_closed_form == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("mixing", ["translated", "gated"])
def test_gradient_steps_move_projectors_only_and_lower_the_loss(mixing):
    hybrid = hybrid_of("gpt", "mamba", mixing=mixing)
    # one sentence over and over: there is something to learn
    data = Dataset.from_dict({"input_ids": tokens_of(1, 16).expand(40, 16).tolist()})
    before = snapshot(hybrid)
    report = manticore.align(hybrid, data, tokens=640, steps=15, lr=1e-2, batch_size=8)
    assert unchanged(hybrid, before, except_projectors=True)
    assert report.loss_after < report.loss_closed_form - 0.05
    assert report.steps == 15
    assert all(parameter.grad is None for parameter in hybrid.parameters())


def test_closed_form_and_steps_repeat_to_the_bit_and_depend_on_the_seed():
    states = []
    for seed in (0, 0, 1):
        # more hidden units than an affine map needs: the rest is drawn at random
        hybrid = manticore.combine(
            [component("gpt"), component("llama")],
            num_blocks=2,
            projector="two-layer",
            projector_options={"hidden": 40},
            check=False,
        )
        state = torch.random.get_rng_state()
        manticore.align(hybrid, dataset(), tokens=480, steps=2, batch_size=4, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        states.append(snapshot(hybrid))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_batches_do_not_change_the_result():
    maps = []
    for batch_size in (1, 7, 64):
        hybrid = hybrid_of("gpt", "mamba")
        manticore.align(hybrid, dataset(30), tokens=480, batch_size=batch_size)
        maps.append(snapshot(hybrid))
    for other in maps[1:]:
        for name, value in maps[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_fitted_nor_scored(side):
    """Rows padded to 16 tokens give the same sums as the same rows without padding."""
    ids = tokens_of(40, 10)
    pad = torch.zeros(40, 6, dtype=torch.long)
    order = [pad, ids] if side == "left" else [ids, pad]
    mask = [pad, torch.ones_like(ids)] if side == "left" else [torch.ones_like(ids), pad]
    padded = Dataset.from_dict(
        {"input_ids": torch.cat(order, 1).tolist(), "attention_mask": torch.cat(mask, 1).tolist()}
    )
    plain = Dataset.from_dict({"input_ids": ids.tolist()})
    # GPT-Neo counts positions from the left, padding included
    names = ("mamba", "llama") if side == "left" else ("mamba", "gpt")
    reports = []
    for data, tokens in ((padded, 640), (plain, 400)):
        hybrid = hybrid_of(*names)
        reports.append((manticore.align(hybrid, data, tokens=tokens, batch_size=8), hybrid))
    (left, left_hybrid), (right, right_hybrid) = reports
    assert (left.tokens, left.heldout_tokens) == (right.tokens, right.heldout_tokens) == (360, 40)
    assert left.loss_before == pytest.approx(right.loss_before, abs=1e-5)
    assert left.loss_after == pytest.approx(right.loss_after, abs=1e-3)
    for one, other in zip(left_hybrid.mixing.translations(), right_hybrid.mixing.translations()):
        torch.testing.assert_close(one.projector.weight, other.projector.weight, rtol=1e-2, atol=1e-3)


def test_targets_of_a_task_are_what_is_scored():
    """A data set with targets of its own, mostly ignored, as MAD's tasks have."""
    ids = tokens_of(20, 8)
    targets = torch.full_like(ids, -100)
    targets[:, 5] = ids[:, 2]
    hybrid = hybrid_of("gpt", "llama")
    data = dataset(20, 8, targets=targets.tolist())
    report = manticore.align(hybrid, data, tokens=160, holdout=0.5)
    _, held = calibration_packs(data, tokens=160, holdout=0.5, length=0, seed=0, tokenizer=None)
    with torch.no_grad():
        logits = hybrid(held.input_ids).logits[:, 5]
    expected = torch.nn.functional.cross_entropy(logits, held.input_ids[:, 2])
    assert report.loss_after == pytest.approx(float(expected), abs=1e-5)


def test_modes_and_gradients_come_back():
    hybrid = hybrid_of("gpt", "mamba")
    hybrid.train()
    hybrid.component_0.eval()
    hybrid.component_1.requires_grad_(False)
    hybrid.mixing.weights.requires_grad_(True)
    modes = [(type(module), module.training) for module in hybrid.modules()]
    gradients = [parameter.requires_grad for parameter in hybrid.parameters()]
    manticore.align(hybrid, dataset(), tokens=480, steps=1)
    assert [(type(module), module.training) for module in hybrid.modules()] == modes
    assert [parameter.requires_grad for parameter in hybrid.parameters()] == gradients


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("at", [1, 5, 8, 12, 15])
def test_interrupted_anywhere_the_hybrid_is_as_it_was(at):
    hybrid = hybrid_of("gpt", "mamba")
    hybrid.train()
    before = snapshot(hybrid)
    gradients = [parameter.requires_grad for parameter in hybrid.parameters()]
    seen = []

    def interrupt(step, steps, figures):
        seen.append((step, steps))
        if step == at:
            raise Interrupt

    with pytest.raises(Interrupt):
        manticore.align(hybrid, dataset(40), tokens=640, batch_size=8, steps=6, progress=interrupt)
    assert len(seen) == at
    assert unchanged(hybrid, before)
    assert hybrid.training
    assert hybrid.component_0.training
    assert [parameter.requires_grad for parameter in hybrid.parameters()] == gradients


def test_progress_counts_to_its_end():
    seen = []
    manticore.align(
        hybrid_of("gpt", "mamba"),
        dataset(40),
        tokens=640,
        batch_size=8,
        steps=3,
        progress=lambda step, steps, figures: seen.append((step, steps, figures)),
    )
    assert [step for step, _, _ in seen] == list(range(1, seen[0][1] + 1))
    assert sum("loss" in figures for _, _, figures in seen) == 3


def test_report_is_plain_numbers():
    report = manticore.align(hybrid_of("gpt", "mamba"), dataset(), tokens=480)
    read_back = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    fields = {"name", "source", "target", "boundary", "r2", "r2_heldout", "r2_before", "kept"}
    assert set(read_back["translations"][0]) == fields
    assert len(read_back["translations"]) == 4
    assert read_back["seconds"] > 0


def test_flops_grow_with_tokens_and_steps():
    flops = [
        manticore.align(
            hybrid_of("gpt", "llama"), dataset(80), tokens=tokens, steps=steps, batch_size=4, withdraw=False
        ).flops
        for tokens, steps in ((640, 0), (1280, 0), (640, 4))
    ]
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.01)
    assert flops[2] > flops[0] > 0


def test_a_discretized_hybrid_keeps_the_fitted_hand_overs():
    hybrid = hybrid_of("gpt", "mamba")
    manticore.align(hybrid, dataset(), tokens=480)
    ids = tokens_of(2, 9)
    small = manticore.discretize(hybrid, [0, 1])
    hybrid.set_mixture_weights([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, hybrid(ids).logits)


def test_half_precision_components():
    models = [component("gpt").bfloat16(), component("llama").bfloat16()]
    hybrid = manticore.combine(models, num_blocks=2)
    report = manticore.align(hybrid, dataset(), tokens=480, steps=1)
    assert all(p.dtype == torch.bfloat16 for p in hybrid.mixing.projectors.parameters())
    assert report.loss_after == pytest.approx(report.loss_before, abs=0.5)


def test_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manticore.align(hybrid_of("gpt", "llama"), dataset(), tokens=480, steps=2)
