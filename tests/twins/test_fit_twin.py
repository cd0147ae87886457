"""Fitting a twin's mixers to its parent's attention: errors fall, nothing else changes, a stopped fit goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

import manticore
from benchmarks.tiny_families import VOCABULARY, tiny_model
from manticore.errors import ManticoreError
from manticore.twin_settings import Twin
from manticore.twins.fit import fit_twin


@pytest.fixture(scope="module")
def parent() -> PreTrainedModel:
    """Its maps are wide enough that attention tells tokens apart."""
    model = tiny_model("llama", seed=1)
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def text() -> Dataset:
    rows = torch.randint(0, VOCABULARY, (40, 16), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": rows.tolist()})


OPTIONS: dict[str, Any] = {"tokens": 640, "batch_size": 4, "lr": 3e-3, "holdout": 0.1}


# linear attention starts near what it is to become
@pytest.mark.parametrize(
    ("mixer", "lr", "share"), [("gated-delta-net", 3e-3, 0.95), ("mamba-2", 3e-3, 0.95), ("linear-attention", 1e-4, 1)]
)
def test_errors_fall_and_only_mixers_change(
    mixer: Any, lr: float, share: float, parent: PreTrainedModel, text: Dataset
) -> None:
    start = manticore.twin(parent, mixer, layers=[1, 2])
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    theirs = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    twin = manticore.twin(parent, mixer, layers=[1, 2], text=text, **{**OPTIONS, "lr": lr})
    report = twin.fitted
    assert sorted(report.after) == [1, 2]
    for index in (1, 2):
        assert report.after[index] < share * report.before[index]
    assert (report.tokens, report.heldout_tokens, report.steps) == (576, 64, 9)
    changed = {name for name, tensor in twin.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".self_attn." in name and name.split(".")[3] in ("1", "2") for name in changed)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in parent.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in twin.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mixer", ["gated-delta-net", "mamba-2", "linear-attention"])
def test_it_begins_with_output_maps_in_closed_form_that_never_harm(mixer: Any, family: str, text: Dataset) -> None:
    # maps of GPT-2 have biases; gradients that move nothing leave the closed form alone
    options = {**OPTIONS, "lr": 1e-30, "text": text}
    for tokens, harmless in ((640, False), (48, True)):
        report = manticore.twin(tiny_model(family, seed=1), mixer, **{**options, "tokens": tokens}).fitted
        for index, error in report.after.items():
            assert error <= report.before[index]
            # random weights give noise, of which nothing can be learned but its scale: behind a norm it is another one
            assert harmless or mixer == "linear-attention" or error < 1.1 < report.before[index]


def test_a_window_of_the_whole_text_has_no_error_to_begin_with(parent: PreTrainedModel, text: Dataset) -> None:
    options = {**OPTIONS, "text": text, "tokens": 64}
    whole = manticore.twin(parent, "sliding-attention", window=16, **options)
    assert all(error < 1e-10 for error in whole.fitted.before.values())
    short = manticore.twin(parent, "sliding-attention", window=2, **options)
    assert all(error > 0.01 for error in short.fitted.before.values())


def test_a_stopped_fit_goes_on_to_the_same_numbers(parent: PreTrainedModel, text: Dataset, tmp_path: Path) -> None:
    place = tmp_path / "fit.safetensors"
    options = {**OPTIONS, "text": text, "layers": [1], "save_steps": 2}
    whole = manticore.twin(parent, **options)

    def stop(step: int, steps: int, figures: Any) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manticore.twin(parent, **options, checkpoint=place, progress=stop)
    steps: list[int] = []
    again = manticore.twin(parent, **options, checkpoint=place, progress=lambda step, *_: steps.append(step))
    # one batch of held-out text, four steps that were kept; not from the beginning
    assert steps[0] == 6
    assert (again.fitted.before, again.fitted.after) == (whole.fitted.before, whole.fitted.after)
    for one, other in zip(again.parameters(), whole.parameters()):
        assert torch.equal(one, other)
    assert not place.exists()


def test_checkpoints_of_another_fit_and_damaged_ones_are_refused(
    parent: PreTrainedModel, text: Dataset, tmp_path: Path
) -> None:
    place = tmp_path / "fit.safetensors"

    def stop(step: int, steps: int, figures: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    options = {**OPTIONS, "text": text, "layers": [1], "save_steps": 1, "checkpoint": place}
    with pytest.raises(KeyboardInterrupt):
        manticore.twin(parent, **options, progress=stop)
    with pytest.raises(ManticoreError, match="of a fit with other settings"):
        manticore.twin(parent, **{**options, "lr": 1e-4})
    place.write_bytes(place.read_bytes()[:200])
    with pytest.raises(ManticoreError, match="is damaged"):
        manticore.twin(parent, **options)
    other = tiny_model("llama", seed=2)
    with pytest.raises(ManticoreError, match="not the parent"):
        fit_twin(manticore.twin(parent, layers=[1]), other, Twin(text="stdlib"))
