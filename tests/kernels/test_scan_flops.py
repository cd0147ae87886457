"""The scan's operators on the meta device and under the FLOP counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_dispatch import PATHS

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
# triton, which is interpreted without a GPU, has tests of its own with smaller shapes
PATH_NAMES = [name for name, entry in PATHS.items() if name != "triton" and entry.problem() is None]


def inputs(device, optional=OPTIONAL, batch=2, channels=5, steps=70, state_size=4):
    def leaf(*shape):
        return torch.rand(*shape, device=device).requires_grad_()

    tensors = {
        "u": leaf(batch, channels, steps),
        "delta": leaf(batch, channels, steps),
        "A": leaf(channels, state_size),
        "B": leaf(batch, state_size, steps),
        "C": leaf(batch, state_size, steps),
        "D": leaf(channels),
        "z": leaf(batch, channels, steps),
        "delta_bias": leaf(channels),
        "initial_state": leaf(batch, channels, state_size),
    }
    return {name: value for name, value in tensors.items() if name not in OPTIONAL or name in optional}


def count(tensors, backward=True, softplus=True):
    with FlopCounterMode(display=False) as counter:
        out = selective_scan(**tensors, delta_softplus=softplus)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("path", PATH_NAMES)
@pytest.mark.parametrize("optional", [OPTIONAL, (), ("z",), ("D", "delta_bias")])
def test_same_count_on_meta_and_on_cpu(path, optional, monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", path)
    for backward in (False, True):
        on_meta = count(inputs("meta", optional), backward)
        assert on_meta > 0
        assert on_meta == count(inputs("cpu", optional), backward)


def test_count_by_hand():
    """The plain recurrence: 7 per state element and 1 per step forward, 20 and 5 backward."""
    assert count(inputs("meta", ()), backward=False, softplus=False) == 2 * 5 * 70 * (7 * 4 + 1)
    assert count(inputs("meta", ()), softplus=False) == 2 * 5 * 70 * (27 * 4 + 6)


def test_count_grows_linearly_with_length():
    assert count(inputs("meta", steps=1400)) == 20 * count(inputs("meta", steps=70))


def test_meta_shapes_are_the_real_shapes():
    results = {}
    for device in ("meta", "cpu"):
        tensors = inputs(device)
        out, state = selective_scan(**tensors, return_last_state=True)
        (out.sum() + state.sum()).backward()
        results[device] = [(x.shape, x.dtype) for x in (out, state, *(t.grad for t in tensors.values()))]
    assert results["meta"] == results["cpu"]
