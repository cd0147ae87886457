"""Which path runs where, and the adapter to mamba_ssm's kernels, whose functions are stood in for on the CPU."""

import sys
from types import SimpleNamespace

import pytest
import torch
from test_selective_scan import assert_close, make, truth

from manticore.errors import ManticoreError
from manticore.kernels import scan_dispatch, scan_mamba_ssm, scan_torch, scan_triton
from manticore.kernels.doctor import scan_status
from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_contract import Inputs
from manticore.kernels.scan_dispatch import PATHS, choose

CUDA = torch.device("cuda")


@pytest.fixture
def available(monkeypatch):
    """Says which paths this machine can run, and lets the dispatch decide."""
    monkeypatch.delenv("MANTICORE_SCAN", raising=False)
    scan_dispatch._say_once.cache_clear()

    def only(*names):
        for name in ("mamba_ssm", "triton"):
            problem = None if name in names else f"{name} is missing. Fix: install {name}"
            entry = SimpleNamespace(**{**vars(PATHS[name]), "problem": lambda problem=problem: problem})
            monkeypatch.setitem(PATHS, name, entry)

    yield only
    scan_dispatch._say_once.cache_clear()


def given(**changes):
    tensors = {name: value.detach() for name, value in make(1, 3, 8, 4, ("D", "z"), dtype=torch.float32).items()}
    values = {"delta_bias": None, "initial_state": None, "delta_softplus": True, **tensors, **changes}
    return Inputs(**values)


def test_order_on_cuda(available):
    available("mamba_ssm", "triton")
    assert choose(CUDA, torch.float32, given()) == "mamba_ssm"
    available("triton")
    assert choose(CUDA, torch.float32, given()) == "triton"
    available()
    assert choose(CUDA, torch.float32, given()) == "torch"


def test_what_mamba_ssm_cannot_take_goes_to_triton(available):
    available("mamba_ssm", "triton")
    assert choose(CUDA, torch.float32, given(initial_state=torch.zeros(1, 4, 3))) == "triton"
    assert choose(CUDA, torch.float32, given(A=torch.zeros(3, 300))) == "triton"
    assert choose(CUDA, torch.float64, given()) == "torch"


def test_the_interpreter_is_never_chosen_by_itself(monkeypatch):
    monkeypatch.delenv("MANTICORE_SCAN", raising=False)
    assert choose(torch.device("cpu"), torch.float32) in ("native", "torch")


def test_doctor_names_what_is_missing_on_cuda(available):
    available("triton")
    status = scan_status("cuda")
    assert status.path == "triton"
    assert "mamba_ssm is missing" in status.why
    assert status.faster == "install mamba_ssm"
    available("mamba_ssm", "triton")
    assert scan_status("cuda").faster is None


def test_torch_on_cuda_says_how_to_get_triton(available, caplog):
    available()
    choose(CUDA, torch.float32)
    assert "install triton" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["triton", "mamba_ssm"])
def test_asked_for_without_a_gpu(name, monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", name)
    monkeypatch.setattr(scan_triton, "interpreted", lambda: False)
    scan_triton.problem.cache_clear()
    try:
        with pytest.raises(ManticoreError, match=rf"MANTICORE_SCAN={name}: .* Fix: "):
            selective_scan(**make(1, 3, 4, 4, dtype=torch.float32))
    finally:
        scan_triton.problem.cache_clear()


def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """What the compiled module documents: output, states as pairs (decay, state) per 2048 steps, gated output."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32
    assert B.dim() == 4
    plain = [None if x is None else x.float() for x in (u, delta, A, B[:, 0], C[:, 0], D)]
    inputs = Inputs(*plain, None, delta_bias, None, delta_softplus)
    out, last, _ = scan_torch.forward(inputs, False)
    pairs = torch.full((*u.shape[:2], -(-u.shape[2] // 2048), 2 * A.shape[1]), 7.0)
    pairs[:, :, -1, 1::2] = last.transpose(1, 2)
    gated = [] if z is None else [(out * torch.nn.functional.silu(z.float())).to(u.dtype)]
    return [out.to(u.dtype), pairs, *gated]


def bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute):
    assert x.is_contiguous()
    assert (x[..., 0::2] == 7).all()
    assert dout.dtype == u.dtype
    expected, *_ = fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    assert (out is None) == (z is None)
    assert out is None or torch.equal(out, expected)
    plain = [None if t is None else t.float() for t in (u, delta, A, B[:, 0], C[:, 0], D, z)]
    inputs = Inputs(*plain, delta_bias, None, delta_softplus)
    _, _, states = scan_torch.forward(inputs, True)
    g = scan_torch.backward(inputs, states, dout.float(), None)
    gate = [] if z is None else [g.z.to(z.dtype)]
    return [g.u.to(u.dtype), g.delta.to(u.dtype), g.A, g.B[:, None], g.C[:, None], g.D, g.delta_bias, *gate]


@pytest.mark.parametrize("optional", [("D", "z", "delta_bias"), ("z",), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter(monkeypatch, optional, dtype):
    """Every tensor arrives where the compiled functions expect it, and comes back."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SimpleNamespace(fwd=fwd, bwd=bwd))
    tensors = make(2, 3, 21, 4, optional, dtype=dtype)
    values = {name: tensors.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")}
    inputs = Inputs(**values, initial_state=None, delta_softplus=True).map(torch.Tensor.detach)
    out, last_state, kept = scan_mamba_ssm.forward(inputs, True)
    assert kept.shape == scan_mamba_ssm.states_shape(inputs)
    grad_out = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(dtype)
    gradients = scan_mamba_ssm.backward(inputs, kept, grad_out, None)
    leaves = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    expected_out, expected_state = selective_scan(**leaves, delta_softplus=True, return_last_state=True)
    grads = torch.autograd.grad(expected_out, list(leaves.values()), grad_out.double())
    tolerance = 2e-6 if dtype == torch.float32 else 2**-6
    found = {name: getattr(gradients, name) for name in tensors}
    assert_close({**found, "out": out}, {**dict(zip(tensors, grads)), "out": expected_out}, tolerance)
    assert_close({"state": last_state.transpose(1, 2)}, {"state": expected_state}, 2e-6)


@pytest.mark.skipif(scan_triton.problem() is not None, reason=str(scan_triton.problem()))
def test_adapter_with_a_gradient_of_the_last_state():
    """mamba_ssm's backward pass knows none, so that of the Triton path is taken."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = make(1, 2, 9, 4, ("D",), dtype=torch.float32)
    values = {name: tensors.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")}
    inputs = Inputs(**values, initial_state=None, delta_softplus=True).map(lambda x: x.detach().to(device))
    batch, channels, steps = inputs.u.shape
    weight = torch.linspace(-1, 1, batch * channels * steps).reshape(batch, channels, steps)
    state_weight = torch.linspace(1, -0.5, batch * channels * 4).reshape(batch, channels, 4)
    gradients = scan_mamba_ssm.backward(
        inputs, torch.empty(0), weight.to(device), state_weight.transpose(1, 2).to(device)
    )
    expected = truth(tensors)
    found = {name: getattr(gradients, name).cpu() for name in tensors}
    assert_close(found, {name: expected[name] for name in tensors}, 2e-6)
