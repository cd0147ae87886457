"""One decoding step: torch and Triton against the scan itself."""

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.kernels import scan_triton
from manticore.kernels.scan import selective_scan
from manticore.kernels.state_update import selective_state_update

PATHS = ["torch", *(["triton"] if scan_triton.problem() is None else [])]
ON_GPU = torch.cuda.is_available()
OPTIONAL = ("D", "z", "dt_bias")


@pytest.fixture(params=PATHS)
def device(request, monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", request.param)
    return "cuda" if ON_GPU and request.param == "triton" else "cpu"


def make(batch, channels, state_size, dtype=torch.float32, optional=OPTIONAL):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {
        "state": normal(batch, channels, state_size),
        "x": normal(batch, channels),
        "dt": normal(batch, channels),
        "A": -normal(channels, state_size).exp(),
        "B": normal(batch, state_size),
        "C": normal(batch, state_size),
        "D": normal(channels),
        "z": normal(batch, channels),
        "dt_bias": normal(channels),
    }
    return {name: value for name, value in tensors.items() if name not in OPTIONAL or name in optional}


def by_the_scan(tensors, softplus):
    """A scan of one step from the state, in float64."""
    doubles = {name: value.double() for name, value in tensors.items()}
    names = {"x": "u", "dt": "delta", "dt_bias": "delta_bias", "state": "initial_state"}
    steps = {
        names.get(name, name): value[:, :, None] if name in ("x", "dt", "B", "C", "z") else value
        for name, value in doubles.items()
    }
    out, state = selective_scan(**steps, delta_softplus=softplus, return_last_state=True)
    return out[:, :, 0], state


def check(found, expected, tolerance=2e-6):
    assert (found.cpu().double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [OPTIONAL, (), ("D",), ("z",), ("dt_bias",)])
@pytest.mark.parametrize(("batch", "channels", "state_size"), [(2, 19, 16), (1, 3, 5)])
def test_equals_a_scan_of_one_step(device, batch, channels, state_size, optional, softplus):
    tensors = make(batch, channels, state_size, optional=optional)
    expected, expected_state = by_the_scan(tensors, softplus)
    tensors = {name: value.to(device) for name, value in tensors.items()}
    out = selective_state_update(**tensors, dt_softplus=softplus)
    check(out, expected)
    check(tensors["state"], expected_state)


def test_low_precision_keeps_the_dtypes(device):
    tensors = make(2, 5, 16, torch.bfloat16)
    expected, expected_state = by_the_scan(tensors, True)
    tensors = {name: value.to(device) for name, value in tensors.items()}
    out = selective_state_update(**tensors, dt_softplus=True)
    assert out.dtype == tensors["state"].dtype == torch.bfloat16
    check(out, expected, 2**-7)
    check(tensors["state"], expected_state, 2**-7)


def test_any_strides(device):
    """A state kept as [B, N, D], and halves of one projection."""
    tensors = make(2, 5, 6)
    expected, expected_state = by_the_scan(tensors, True)
    tensors["state"] = tensors["state"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["x"], tensors["z"] = torch.cat([tensors["x"], tensors["z"]], dim=1).chunk(2, dim=1)
    tensors["A"] = tensors["A"].T.contiguous().T
    tensors["D"] = tensors["D"].repeat_interleave(2)[::2]
    tensors = {name: value.to(device) for name, value in tensors.items()}
    check(selective_state_update(**tensors, dt_softplus=True), expected)
    check(tensors["state"], expected_state)


def test_mistakes_are_named():
    tensors = make(2, 5, 6)
    with pytest.raises(ManticoreError, match=r"selective_state_update: B .*got \(2, 5\), expected \(2, 6\).*Fix:"):
        selective_state_update(**{**tensors, "B": torch.zeros(2, 5)})
    with pytest.raises(ManticoreError, match=r"state does not fit"):
        selective_state_update(**{**tensors, "state": torch.zeros(2, 5)})
    with pytest.raises(ManticoreError, match=r"no backward pass"):
        selective_state_update(**{**tensors, "A": tensors["A"].requires_grad_()})
