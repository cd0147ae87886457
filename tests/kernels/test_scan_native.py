"""The compiled scan: every instruction set, threads, and what happens without a compiler."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.kernels import scan_native, scan_reference
from manticore.kernels.doctor import scan_status
from manticore.kernels.native_build import BASELINE, INSTRUCTION_SETS, instruction_set
from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_contract import Inputs

needs_compiler = pytest.mark.skipif(scan_native.problem() is not None, reason="needs a C compiler")
SETS = [BASELINE, *(INSTRUCTION_SETS[name] for name in ("AVX2", "AVX512"))]


def make(batch=3, channels=150, steps=70, state_size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Inputs(
        u=normal(batch, steps, channels).transpose(1, 2),
        delta=normal(batch, channels, steps),
        A=-normal(channels, state_size).exp(),
        B=normal(batch, steps, state_size).transpose(1, 2),
        C=normal(batch, state_size, steps),
        D=normal(channels),
        z=normal(batch, steps, channels).transpose(1, 2),
        delta_bias=normal(channels),
        initial_state=normal(batch, state_size, channels),
        delta_softplus=True,
    )


def everything(path, inputs):
    """Outputs and all gradients of one path."""
    out, last_state, states = path.forward(inputs, True)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    gradients = path.backward(inputs, states, weights.to(out.dtype), torch.ones_like(last_state))
    return {"out": out, "last_state": last_state, "states": states, **vars(gradients)}


@needs_compiler
@pytest.mark.parametrize("target", SETS, ids=lambda target: target.name)
def test_every_instruction_set(target, monkeypatch):
    if target.lanes > instruction_set().lanes:
        pytest.skip(f"this processor has no {target.name}")
    monkeypatch.setattr(scan_native, "instruction_set", lambda: target)
    compiled = scan_native.library(target)
    assert compiled.scan_lanes() == target.lanes
    inputs = make()
    truth = everything(scan_reference, inputs.map(torch.Tensor.double))
    for name, value in everything(scan_native, inputs).items():
        error = (value.double() - truth[name]).abs().max() / truth[name].abs().max()
        assert error <= 2e-6, f"{name}: {error:.1e}"


@needs_compiler
def test_threads_do_not_change_a_bit():
    inputs = make(channels=300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything(scan_native, inputs)
        torch.set_num_threads(5)
        together = everything(scan_native, inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@needs_compiler
def test_accuracy_over_the_whole_range_of_the_exponential():
    """One step from a state of ones shows exp(delta * A) itself."""
    exponents = torch.linspace(-95, 92, 20_000)
    ones = torch.ones(1, 1, exponents.numel())
    inputs = Inputs(
        u=torch.zeros(1, exponents.numel(), 1),
        delta=torch.ones(1, exponents.numel(), 1),
        A=exponents[:, None],
        B=torch.zeros(1, 1, 1),
        C=torch.ones(1, 1, 1),
        D=None,
        z=None,
        delta_bias=None,
        initial_state=ones,
        delta_softplus=False,
    )
    found = scan_native.forward(inputs, False).last_state.flatten().double()
    truth = exponents.double().exp()
    inside = (exponents > -87.3) & (exponents < 88.3)
    assert ((found - truth).abs() <= 3e-7 * truth)[inside].all()
    assert (found[exponents < -88.1] == 0).all()
    assert found[exponents > 88.8].isinf().all()


@needs_compiler
def test_accuracy_of_softplus():
    """delta = softplus(raw), read off as the first state with u = B = 1; relative accuracy in both tails."""
    raw = torch.cat([torch.linspace(-80, 80, 20_000), torch.tensor([0.0])])
    one = torch.ones(1, 1, 1)
    inputs = Inputs(
        u=torch.ones(1, raw.numel(), 1),
        delta=raw.reshape(1, -1, 1),
        A=torch.zeros(raw.numel(), 1),
        B=one,
        C=one,
        D=None,
        z=None,
        delta_bias=None,
        initial_state=None,
        delta_softplus=True,
    )
    found = scan_native.forward(inputs, False).last_state.flatten().double()
    truth = torch.nn.functional.softplus(raw.double(), threshold=200)
    assert ((found - truth).abs() <= 5e-7 * truth).all()


@needs_compiler
def test_works_in_a_forked_process():
    """A data loader's worker must not hang after the parent has used threads."""
    inputs = make(channels=300)
    scan_native.forward(inputs, True)
    child = os.fork()
    if child == 0:
        try:
            scan_native.forward(inputs, True)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0


@needs_compiler
def test_double_goes_to_torch(monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", "native")
    inputs = make().map(torch.Tensor.double)
    out = selective_scan(inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, delta_softplus=True)
    assert out.dtype == torch.float64


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """As on a machine without a compiler and with an empty cache; decisions made so far are forgotten."""
    from manticore.kernels import scan_dispatch

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path))
    scan_native.library.cache_clear()
    scan_dispatch._say_once.cache_clear()
    yield
    scan_native.library.cache_clear()
    scan_dispatch._say_once.cache_clear()


def test_without_a_compiler_torch_runs_and_says_so_once(no_compiler, caplog):
    inputs = make()
    with caplog.at_level(logging.WARNING, "manticore.kernels"):
        for _ in range(3):
            selective_scan(inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, delta_softplus=True)
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    assert "plain torch" in message
    assert "slower" in message
    assert "no C compiler" in message
    assert "Fix: install one" in message


def test_asked_for_but_impossible(no_compiler, monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", "native")
    inputs = make()
    with pytest.raises(ManticoreError, match=r"MANTICORE_SCAN=native: no C compiler .* Fix: install one"):
        selective_scan(inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C)


def test_doctor_without_a_compiler(no_compiler):
    status = scan_status()
    assert status.path == "torch"
    assert "no C compiler" in status.why
    assert status.faster is not None
    assert "apt install gcc" in status.faster


@needs_compiler
def test_doctor(monkeypatch):
    status = scan_status()
    assert (status.path, status.faster) == ("native", None)
    assert instruction_set().name in status.why
    monkeypatch.setenv("MANTICORE_SCAN", "torch")
    status = scan_status()
    assert (status.path, status.why) == ("torch", "MANTICORE_SCAN=torch")
    assert status.faster == "unset MANTICORE_SCAN (runs native)"


def test_doctor_on_another_device():
    status = scan_status("meta")
    assert status.path == "torch"
    assert status.faster is None


def test_import_does_not_build(tmp_path):
    """Importing the package, or asking for help, must not start a compiler."""
    code = "import manticore.kernels.scan, manticore.kernels.mamba, manticore.kernels.doctor"
    environment = {**os.environ, "MANTICORE_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
