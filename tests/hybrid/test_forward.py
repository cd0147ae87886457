"""The way through a hybrid: short to read, and every component's own forward runs once."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import BLOCKS, Build
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model

KINDS = (
    manticore.ManticoreForCausalLM,
    manticore.ManticoreForSequenceClassification,
    manticore.ManticoreForTokenClassification,
    manticore.ManticoreForPairClassification,
)


def of_kind(kind: Any, hybrid: PreTrainedModel) -> PreTrainedModel:
    if kind is manticore.ManticoreForCausalLM:
        return hybrid
    made: PreTrainedModel = kind.from_causal_lm(hybrid, num_labels=5)
    return made


def inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(model, manticore.ManticoreForPairClassification):
        given |= {"input_ids_2": ids.flip(0), "attention_mask_2": torch.ones_like(ids)}
    return given


def frames_above_a_layer(hybrid: Any, k: int, input_ids: Tensor, **given: Tensor) -> list[tuple[str, str]]:
    """File and function of every frame of this package while the first layer of component k runs."""
    package = str(Path(manticore.__file__).parent)
    seen: list[tuple[str, str]] = []

    def look(*_: Any) -> None:
        frame = inspect.currentframe()
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(package):
                seen.append((code.co_filename, code.co_qualname))
            frame = frame.f_back

    handle = hybrid.runners[k].layers[0].register_forward_pre_hook(look)
    hybrid(input_ids, **given)
    handle.remove()
    return seen


@torch.no_grad()
def test_four_frames_in_two_files_stand_between_forward_and_a_layer(build: Build, ids: Tensor) -> None:
    hybrid = build(components=3)
    names = ["Runner.run", "through_blocks", "_StandIn.forward", "ManticoreForCausalLM.forward"]
    for path in ([0, 1, 2], [0, 0, 0]):
        seen = frames_above_a_layer(manticore.discretize(hybrid, path), 0, ids)
        assert [name for _, name in seen] == names
        assert len({file for file, _ in seen}) == 2
    for kind in KINDS[1:]:
        made = of_kind(kind, manticore.discretize(hybrid, [0, 1, 2]))
        seen = frames_above_a_layer(made, 0, **inputs(made, ids))
        forward = next(each for each in kind.__mro__ if "forward" in vars(each)).__name__
        # of pairs the check of both documents stands between
        between = [name for _, name in seen[3:-1] if name != "ManticoreForPairClassification._read"]
        assert [*(name for _, name in seen[:3]), *between] == [*names[:3], "heads_mixed"]
        assert seen[-1][1] == f"{forward}.forward"
        assert len({file for file, _ in seen}) <= 4
    # one component waits inside the other
    waiting = [*names[:2], *names[2:3] * 3, *names[3:]]
    assert [name for _, name in frames_above_a_layer(hybrid, 0, ids)] == waiting


@pytest.mark.parametrize("discretized", [False, True])
@pytest.mark.parametrize(("kind", "released"), [(KINDS[0], True), *((kind, False) for kind in KINDS)])
@torch.no_grad()
def test_every_component_runs_its_own_forward_once(
    build: Build, ids: Tensor, kind: Any, discretized: bool, released: bool
) -> None:
    how: dict[str, Any] = {"mixing": "gated", "released": True, "vocab_size": 97} if released else {}
    hybrid = build(components=3, **how)
    if discretized:
        # the component in the middle is neither first nor last
        hybrid = manticore.discretize(hybrid, [0, 1, 2])
    model = of_kind(kind, hybrid)
    calls: dict[str, int] = {}

    def counted(name: str, module: nn.Module) -> None:
        calls[name] = 0
        module.register_forward_pre_hook(lambda *_: calls.update({name: calls[name] + 1}))

    for k in range(3):
        counted(f"body of {k}", model.component(k).base_model)
        for index, layer in enumerate(model.runners[k].layers):
            if any(True for _ in layer.parameters()):
                counted(f"layer {index} of {k}", layer)
    model(**inputs(model, ids))
    assert {name: count for name, count in calls.items() if count != 1} == {}


@torch.no_grad()
def test_a_classifier_costs_what_the_familys_own_does(ids: Tensor) -> None:
    # its embeddings are narrower than its layers: the map between them is work before the first layer
    parent = tiny_model("opt")
    config = type(parent.config)(**parent.config.to_dict())
    config.num_labels, config.pad_token_id = 5, 0
    own = AutoModelForSequenceClassification.from_config(config).eval()
    ours = manticore.ManticoreForSequenceClassification.from_causal_lm(parent, num_labels=5)
    supernet = manticore.ManticoreForSequenceClassification.from_causal_lm(
        manticore.combine([parent, parent], num_blocks=BLOCKS, check=False), num_labels=5
    )
    supernet.set_mixture_weights([1] * BLOCKS)
    costs = []
    for model in (own, ours, supernet):
        with FlopCounterMode(display=False) as counter:
            model(ids, attention_mask=torch.ones_like(ids))
        costs.append(counter.get_total_flops())
    assert costs[0] > 0
    assert costs == [costs[0]] * 3
