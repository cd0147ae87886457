"""Alignment keeps what was before wherever held-out text says that it was better."""

import copy

import pytest
import torch
from tiny_aligned import dataset, hybrid_of, snapshot, tokens_of, unchanged

import manticore
from manticore.hybrid.mixing import Translation
from manticore.projectors.kinds import make_projector
from manticore.projectors.ridge import FeatureSums
from manticore.stages.align import AlignRecord, left_as_it_was
from manticore.stages.align import Translation as Record
from manticore.training.calibration import calibration_packs
from manticore.training.projector_fits import ErrorsBefore, FeatureSpace, fit

MIXINGS = ["translated", "routed", "gated"]


def drawn_anew(hybrid, seed):
    """Projectors and mixture weights at random: alignment may begin anywhere."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for projector in hybrid.mixing.projectors.values():
            for parameter in projector.parameters():
                parameter.normal_(std=0.3)
    hybrid.set_mixture_weights(torch.rand(2, len(hybrid.runners)).add(0.1).softmax(1))
    return hybrid


def heldout_loss(hybrid, data, tokens, seed):
    _, held = calibration_packs(data, tokens=tokens, holdout=0.25, length=0, seed=seed, tokenizer=None)
    with torch.no_grad():
        logits = hybrid(held.input_ids).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), held.targets.flatten()))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    ("names", "seed", "fresh"),
    [(("gpt", "mamba"), 0, False), (("llama", "gpt"), 1, True), (("mamba", "gpt", "llama"), 2, False)],
)
def test_the_heldout_loss_never_rises(mixing, names, seed, fresh):
    hybrid = hybrid_of(*names, mixing=mixing)
    if not fresh:
        drawn_anew(hybrid, seed)
    data = dataset(24, 12, seed)
    before = heldout_loss(hybrid, data, 288, seed)
    report = manticore.align(hybrid, data, tokens=288, holdout=0.25, seed=seed, batch_size=18)
    after = heldout_loss(hybrid, data, 288, seed)
    assert after <= before + 1e-6
    assert report.loss_after == pytest.approx(after, abs=1e-5)
    assert report.loss_before == pytest.approx(before, abs=1e-5)
    for found in report.translations:
        assert found.r2_before is None or found.r2_heldout >= found.r2_before - 1e-6


def taught(hybrid, rows=40, length=12):
    """Text that the hybrid as it is predicts as well as it can, so that any other map does worse; sure of itself."""
    with torch.no_grad():
        for k in range(len(hybrid.runners)):
            hybrid.component(k).get_output_embeddings().weight.mul_(20)
        ids = tokens_of(rows, length)
        return dataset(rows, length, targets=hybrid(ids).logits.argmax(-1).tolist())


@pytest.mark.parametrize("mixing", MIXINGS[::2])
def test_what_raises_the_loss_is_withdrawn_and_said(mixing):
    hybrid = drawn_anew(hybrid_of("gpt", "mamba", mixing=mixing), 1)
    data, before = taught(hybrid), snapshot(hybrid)
    harmed = copy.deepcopy(hybrid)
    forced = manticore.align(harmed, data, tokens=480, withdraw=False)
    assert forced.loss_after > forced.loss_before + 0.1
    report = manticore.align(hybrid, data, tokens=480)
    assert report.loss_closed_form > report.loss_before >= report.loss_after
    assert report.withdrawn
    for found in report.translations:
        if found.name in report.withdrawn:
            assert (found.kept, found.r2, found.r2_heldout) == ("before", None, found.r2_before)
    kept = {name.split(".")[2] for name, value in hybrid.state_dict().items() if not torch.equal(value, before[name])}
    assert kept == {f.name for f in report.translations if f.kept != "before"}
    assert report.flops > forced.flops
    said = left_as_it_was(report)
    assert any(f"raise the held-out loss to {report.loss_closed_form:.3f}" in line for line in said)


def test_a_map_that_does_worse_on_heldout_text_is_not_written():
    """Three tokens for 16 to 24 channels: without a ridge the fit is perfect, and worthless."""
    hybrid, data = hybrid_of("gpt", "mamba"), dataset(40, 3)
    options = {"tokens": 120, "holdout": 0.975, "ridge": 0.0}
    written = manticore.align(copy.deepcopy(hybrid), data, withdraw=False, **options)
    before = snapshot(hybrid)
    report = manticore.align(hybrid, data, **options)
    worse = {f.name for f in written.translations if f.r2_heldout < f.r2_before}
    assert worse
    assert worse == {f.name for f in report.translations if f.kept == "before"} - set(report.withdrawn)
    after = hybrid.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.split(".")[-2] in worse)
    assert left_as_it_was(report)[0].startswith(f"{len(worse)} of 4 projectors stay as they were")
    assert "more tokens help" in left_as_it_was(written)[-1]


@pytest.mark.parametrize("rows", [4, 30])
def test_held_out_text_chooses_the_strength(rows):
    """Never worse than one strength for all, and stronger where there is less text."""
    data = dataset(rows + 20, 8)
    options = {"tokens": (rows + 20) * 8, "holdout": 20 / (rows + 20)}
    chosen = manticore.align(hybrid_of("gpt", "mamba"), data, **options)
    fixed = manticore.align(hybrid_of("gpt", "mamba"), data, ridge=1e-4, withdraw=False, **options)
    for found, one in zip(chosen.translations, fixed.translations):
        assert found.r2_heldout >= one.r2_heldout - 1e-9
    if rows == 4:
        assert all(f.r2_heldout > o.r2_heldout + 0.02 for f, o in zip(chosen.translations, fixed.translations))


def test_a_low_rank_is_chosen_where_the_truth_is_one():
    generator = torch.Generator().manual_seed(0)

    def drawn(tokens):
        x = torch.randn(tokens, 32, generator=generator)
        return {source: x, target: x @ truth + 2 * torch.randn(tokens, 24, generator=generator)}

    source, target = FeatureSpace(0, 1), FeatureSpace(1, 1)
    truth = torch.randn(32, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    translation = Translation("1_0_1", make_projector("linear", 32, 24), source, target)
    sums, heldout = FeatureSums([(source, target)]), FeatureSums([(source, target)])
    sums.update(drawn(60))
    features = drawn(4000)
    heldout.update(features)
    errors = ErrorsBefore([translation])
    errors.update(features, None)
    found = fit(translation, sums, heldout, errors, None, keep_best=True)
    assert found.kept.endswith("rank 3")
    with torch.no_grad():
        error = (translation.projector(features[source]) - features[target]).square().sum(-1).mean()
    assert found.r2_heldout == pytest.approx(1 - float(error) / heldout.variance(target), abs=1e-4)
    assert found.r2_before < 0


def test_steps_that_raise_the_heldout_loss_are_taken_back():
    hybrid = drawn_anew(hybrid_of("gpt", "mamba"), 1)
    data = taught(hybrid)
    closed = copy.deepcopy(hybrid)
    alone = manticore.align(closed, data, tokens=480)
    report = manticore.align(hybrid, data, tokens=480, steps=3, lr=3.0)
    assert report.steps_withdrawn
    assert report.loss_after == alone.loss_after
    assert unchanged(hybrid, snapshot(closed))
    assert "the gradient steps raise the held-out loss: withdrawn" in left_as_it_was(report)


def test_a_map_that_was_not_finite_is_replaced():
    hybrid = hybrid_of("gpt", "mamba")
    with torch.no_grad():
        next(iter(hybrid.mixing.projectors.values())).weight[0, 0] = float("nan")
    report = manticore.align(hybrid, dataset(), tokens=480)
    assert report.translations[0].r2_before is None
    assert report.translations[0].kept != "before"
    assert torch.isfinite(torch.tensor(report.loss_after))


def test_nothing_is_said_of_an_alignment_that_helped_or_of_an_old_record():
    good = Record(name="1_0_1", r2=0.9, r2_heldout=0.88, r2_before=-1.0, kept="ridge 0.0001")
    assert left_as_it_was(AlignRecord(translations=(good,))) == []
    assert left_as_it_was(AlignRecord(translations=(Record(r2_heldout=-40.0),))) == []
