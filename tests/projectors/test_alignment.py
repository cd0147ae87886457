"""Alignment of real, tiny hybrids with random weights."""

import copy
import functools
import json
import warnings

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
)

import manticore
from manticore.errors import ManticoreError
from manticore.projectors.alignment import FeatureSpace, boundary_features
from manticore.projectors.calibration import Packs, calibration_packs
from manticore.tasks.text import split_documents

VOCABULARY = 61
CONFIGS = {
    "gpt": GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        attention_types=[[["global"], 3]],
        max_position_embeddings=32,
    ),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=4, state_size=4),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    ),
}


def component(name, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name])


def tokens_of(rows, length, seed=0):
    """Random ids ``[rows, length]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, length), generator=generator)


def dataset(rows=60, length=16, seed=0, **columns):
    return Dataset.from_dict({"input_ids": tokens_of(rows, length, seed).tolist(), **columns})


@functools.cache
def built(names, mixing, projector):
    components = [component(name, seed) for seed, name in enumerate(names)]
    return manticore.combine(components, num_blocks=2, mixing=mixing, projector=projector, check=False)


def hybrid_of(*names, mixing="translated", projector="linear", **attributes):
    """A hybrid of two blocks; a copy, so that tests do not see each other."""
    hybrid = copy.deepcopy(built(names, mixing, projector))
    for name, value in attributes.items():
        setattr(hybrid, name, value)
    return hybrid


def snapshot(hybrid):
    return {name: value.clone() for name, value in hybrid.state_dict().items()}


def unchanged(hybrid, before, *, except_projectors=False):
    return all(
        torch.equal(value, before[name])
        for name, value in hybrid.state_dict().items()
        if not (except_projectors and ".projectors." in name)
    )


@pytest.mark.parametrize("mixing", ["translated", "routed", "gated"])
def test_projectors_are_the_regressions_on_the_text_that_is_not_held_out(mixing):
    """K = 3 of three families and widths: weights and both R² against dense least squares on the features."""
    hybrid = hybrid_of("gpt", "mamba", "llama", mixing=mixing)
    before = snapshot(hybrid)
    data = dataset(80, 16)
    report = manticore.align(hybrid, data, tokens=80 * 16, holdout=0.25, ridge=0.0, batch_size=7)
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
    report = manticore.align(hybrid, dataset(100, 16), tokens=1600, ridge=1e-9)
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
        report = manticore.align(hybrid, dataset(100, 16), tokens=1600, ridge=1e-9)
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
    assert set(read_back["translations"][0]) == {"name", "source", "target", "boundary", "r2", "r2_heldout"}
    assert len(read_back["translations"]) == 4
    assert read_back["seconds"] > 0


def test_flops_grow_with_tokens_and_steps():
    flops = [
        manticore.align(hybrid_of("gpt", "llama"), dataset(80), tokens=tokens, steps=steps, batch_size=4).flops
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


# --- text


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character; line ends and blanks included."""
    characters = "\n abcdefghijklmnopqrstuvwxyz.,0123456789"
    vocabulary = {"<eos>": 0} | {character: i + 1 for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


def documents(count=60):
    return [f"document {i} says {'abc' * (i % 7)}, and then {i * i} more.\n" * 3 for i in range(count)]


def test_text_is_packed_and_what_the_text_task_holds_out_is_not_read(tokenizer):
    texts = documents()
    fit, held = calibration_packs(texts, tokens=2048, holdout=0.2, length=16, seed=0, tokenizer=tokenizer)
    assert (fit.tokens, held.tokens) == (102 * 16, 26 * 16)
    stream = tokenizer.decode(torch.cat([fit.input_ids, held.input_ids]).flatten())
    splits = split_documents(texts)
    read = stream.split("<eos>")
    assert len(read) > 10
    allowed = set(splits["train"])
    assert all(document in allowed for document in read[:-1])
    # one stream: what a position must predict is the token after it, across packs too
    assert torch.equal(fit.targets.flatten()[:-1], fit.input_ids.flatten()[1:])


def test_align_reads_text_with_the_hybrids_own_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(documents()))
    hybrid = hybrid_of("gpt", "mamba", tokenizer=tokenizer)
    by_path = manticore.align(hybrid, path, tokens=1024, length=16)
    by_list = manticore.align(hybrid, [path.read_text()], tokens=1024, length=16, tokenizer=tokenizer)
    assert by_path.translations == by_list.translations
    assert by_path.tokens + by_path.heldout_tokens == 1024


def test_long_documents_are_read_as_far_as_needed(tokenizer):
    """A first guess of characters that is too low is corrected, and no more tokens come than were asked for."""
    texts = ["0123456789" * 3000]
    fit, held = calibration_packs(texts, tokens=20000, holdout=0.1, length=100, seed=0, tokenizer=tokenizer)
    assert len(fit) + len(held) == 200


def test_less_text_than_asked_for_is_said(tokenizer, caplog):
    calibration_packs(documents(10), tokens=10**6, holdout=0.1, length=16, seed=0, tokenizer=tokenizer)
    assert "of the 1000000 tokens asked for" in caplog.text


def test_rows_are_drawn_without_replacement_and_held_out_rows_are_others():
    data = Dataset.from_dict({"input_ids": torch.arange(61 * 4).view(61, 4).tolist()})
    fit, held = calibration_packs(data, tokens=10**6, holdout=0.3, length=0, seed=3, tokenizer=None)
    rows = torch.cat([fit.input_ids[:, 0], held.input_ids[:, 0]])
    assert len(rows.unique()) == len(rows) == 61
    assert len(held) == 18
    other, _ = calibration_packs(data, tokens=10**6, holdout=0.3, length=0, seed=4, tokenizer=None)
    assert not torch.equal(fit.input_ids, other.input_ids)


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 2.5}, "tokens is 2.5"),
        ({"holdout": 0.0}, "holdout is 0.0. Fix: give a share between 0 and 1"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"text": ["words without a tokenizer"]}, "text needs a tokenizer"),
        ({"text": DatasetDict({"train": dataset()})}, r"text is a DatasetDict .* text\['train'\]"),
        ({"text": dataset(1)}, "1 pack of 16 tokens .expected two or more"),
        ({"text": dataset(0)}, "the data set is empty"),
        ({"text": Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 2]]})}, "have 2 to 3 tokens .expected one length"),
        ({"text": Dataset.from_dict({"input_ids": [[1, 99]] * 4})}, "token id 99 .expected ids below .* 61"),
        ({"text": dataset(4, 33)}, "sequences of 33 tokens, but component 0 has 32 positions"),
        ({"text": dataset(4, 4, targets=[[-100] * 4] * 4)}, "nothing to predict"),
    ],
)
def test_unusable_input_is_named_and_changes_nothing(options, message):
    hybrid = hybrid_of("gpt", "mamba")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match=message):
        manticore.align(hybrid, **({"text": dataset()} | options))
    assert unchanged(hybrid, before)


def test_no_text_is_no_text():
    with pytest.raises(ManticoreError, match=r"^align: text is None \(expected a file, .* Fix: leave it out"):
        manticore.align(hybrid_of("gpt", "mamba"), None)


def test_a_discretized_hybrid_is_refused():
    small = manticore.discretize(hybrid_of("gpt", "mamba"), [0, 1])
    with pytest.raises(ManticoreError, match="Fix: align before discretizing"):
        manticore.align(small, dataset())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_component(bad):
    hybrid = hybrid_of("gpt", "mamba")
    with torch.no_grad():
        hybrid.component_1.backbone.layers[1].norm.weight[0] = bad
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match="component 1 at boundary 1 hold NaN or infinity"):
        manticore.align(hybrid, dataset(), tokens=480)
    after = hybrid.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if value.isfinite().all())


def test_steps_that_no_projector_feels_are_refused():
    hybrid = hybrid_of("gpt", "mamba", mixing="routed")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match="no projector is used at the hybrid's mixture weights"):
        manticore.align(hybrid, dataset(), tokens=480, steps=2)
    assert unchanged(hybrid, before)


def test_steps_that_diverge_are_undone():
    hybrid = hybrid_of("gpt", "mamba")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match=r"the loss is .* in step \d+. Fix: a smaller lr"):
        manticore.align(hybrid, dataset(), tokens=480, steps=20, lr=1e30)
    assert unchanged(hybrid, before)


def test_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manticore.align(hybrid_of("gpt", "llama"), dataset(), tokens=480, steps=2)
