"""Maps that an adapter must not touch are found by the source of their owners and by shared weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tiny_families import tiny_model
from manticore.components.adapters import unsafe_maps
from manticore.kernels.mamba import use_selective_scan


class Reader(nn.Module):
    """Reads some weights of its children itself, and asks others about their type only."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.called, self.asked, self.started = (nn.Linear(4, 4) for _ in range(4))
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.deep = nn.ModuleDict({"raw": nn.Linear(4, 4), "called": nn.Linear(4, 4)})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.started.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x.to(self.asked.weight.dtype))
        x = self.started(self.inner(self.asked(x)))
        return F.linear(F.linear(x, self.raw.weight), self.deep.raw.weight)


class Heir(Reader):
    """Inherits what reads."""


def in_layers(names: object) -> set[str]:
    return {name.rpartition(".")[2] for name in names if ".layers." in name}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Reader, Heir])
def test_weights_that_are_read_as_tensors_are_found_and_no_others(kind: type[Reader]) -> None:
    assert unsafe_maps(kind()) == {
        "raw": f"{kind.__name__} reads its weight as a tensor",
        "deep.raw": f"{kind.__name__} reads its weight as a tensor",
    }
    assert set(unsafe_maps(nn.Sequential(nn.ReLU(), kind()))) == {"1.raw", "1.deep.raw"}


def test_a_class_without_source_is_refused_as_a_whole() -> None:
    namespace: dict[str, type[nn.Module]] = {}
    code = "class Hidden(nn.Module):\n    def forward(self, x):\n        return self.a(x)\n"
    exec(code, {"nn": nn, "__name__": "nowhere"}, namespace)
    hidden = namespace["Hidden"]()
    hidden.a = nn.Linear(2, 2)
    assert unsafe_maps(hidden) == {"a": "Hidden has no source that could be checked"}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mamba", {"conv1d", "x_proj", "dt_proj", "out_proj"}),
        ("falcon_mamba", {"conv1d", "x_proj", "dt_proj", "out_proj", "b_layernorm", "c_layernorm", "dt_layernorm"}),
        ("mamba2", {"conv1d", "norm", "out_proj"}),
        ("jamba", {"conv1d", "dt_proj"}),
        ("llama", set()),
        ("qwen3_next", {"conv1d"}),
    ],
)
def test_families(family: str, expected: set[str]) -> None:
    model = tiny_model(family)
    found = in_layers(unsafe_maps(model))
    assert found == expected
    use_selective_scan(model)
    assert in_layers(unsafe_maps(model)) == expected


def test_a_branch_that_is_never_taken_does_not_count() -> None:
    bloom = tiny_model("bloom")
    assert not any("dense" in name for name in unsafe_maps(bloom))
    slow = tiny_model("bloom", slow_but_exact=True, pretraining_tp=2)
    assert {name.rpartition(".")[2] for name in unsafe_maps(slow) if ".h." in name} == {"dense", "dense_4h_to_h"}


def test_shared_weights_are_told_with_their_other_place() -> None:
    model = tiny_model("gpt2")
    assert unsafe_maps(model)["lm_head"] == "its weight is also that of transformer.wte"
    zamba2 = in_layers(unsafe_maps(tiny_model("zamba2")))
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"} <= zamba2
    both = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert unsafe_maps(both) == {}
    # one module in two places has one update, which acts in both
    both["b"] = both["a"]
    assert unsafe_maps(both) == {}
    both["b"] = nn.Linear(2, 2)
    both["b"].weight = both["a"].weight
    assert set(unsafe_maps(both)) == {"a", "b"}


def test_reading_is_the_same_for_copies_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert set(unsafe_maps(Reader())) == {"raw", "deep.raw"}
