"""The Triton path of the scan: on a GPU where there is one, else interpreted, so shapes are small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_selective_scan import assert_close, loss, make, truth
from torch.utils.flop_counter import FlopCounterMode

from manticore.kernels import scan_triton
from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_contract import Inputs
from manticore.kernels.scan_dispatch import choose

pytestmark = pytest.mark.skipif(scan_triton.problem() is not None, reason=str(scan_triton.problem()))
ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 2e-6
HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""One unit in the last place: a GPU rounds results to half of that, the interpreter cuts them off."""


@pytest.fixture(autouse=True)
def triton_path(monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", "triton")
    assert choose(torch.device(DEVICE), torch.float32) == "triton"


def on_device(tensors):
    """The same values as leaves where Triton runs."""
    return {name: value.detach().to(DEVICE).requires_grad_() for name, value in tensors.items()}


def run(tensors, softplus=True):
    """Outputs and gradients of all inputs, on the CPU."""
    out, last_state = selective_scan(**tensors, delta_softplus=softplus, return_last_state=True)
    found = {"out": out.cpu(), "last_state": last_state.cpu()}
    grads = torch.autograd.grad(loss(found["out"], found["last_state"]), list(tensors.values()))
    return {**found, **{name: grad.cpu() for name, grad in zip(tensors, grads)}}


@pytest.mark.parametrize(
    ("batch", "channels", "steps", "state_size"),
    [
        (1, 3, 1, 4),
        (2, 3, 63, 4),
        (1, 3, 129, 16),
        (1, 3, 63, 64),
        (1, 2, 300, 5),
        (1, 1, 32, 1),
        (1, 9, 9, 4),
        (1, 3, 20, 600),
    ],
)
def test_equals_the_loop(batch, channels, steps, state_size):
    """Many tiles of time, several programs of channels, sizes that are not powers of two."""
    tensors = make(batch, channels, steps, state_size, dtype=torch.float32)
    assert_close(run(on_device(tensors)), truth(tensors), TOLERANCE)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z")])
def test_missing_inputs(optional, softplus):
    tensors = make(1, 2, 20, 4, optional, softplus, torch.float32)
    assert_close(run(on_device(tensors), softplus), truth(tensors, softplus), TOLERANCE)


def test_any_strides():
    tensors = make(2, 5, 25, 6, dtype=torch.float32)
    strided = {}
    for index, (name, value) in enumerate(on_device(tensors).items()):
        if value.dim() == 3 and index % 2:
            value = value.detach().transpose(1, 2).contiguous().transpose(1, 2)
        else:
            holder = torch.full([2 * size for size in value.shape], float("nan"), device=DEVICE)
            holder[tuple(slice(None, None, 2) for _ in value.shape)] = value.detach()
            value = holder[tuple(slice(None, None, 2) for _ in value.shape)]
        strided[name] = value.requires_grad_()
    assert not strided["u"].is_contiguous()
    assert_close(run(strided), truth(tensors), TOLERANCE)


def test_rows_of_a_larger_tensor():
    """Halves of one projection, as a mixer cuts them: contiguous time, channels of another tensor between batches."""
    tensors = make(2, 4, 24, 4, ("z",), dtype=torch.float32)
    both = torch.cat([tensors["u"], tensors["z"]], dim=1).detach().to(DEVICE)
    cut = on_device(tensors)
    cut["u"], cut["z"] = (half.requires_grad_() for half in both.chunk(2, dim=1))
    assert_close(run(cut), truth(tensors), TOLERANCE)


def test_broadcast_inputs():
    """Views with stride 0, as ``expand`` makes them."""
    tensors = make(3, 4, 17, 4, dtype=torch.float32)
    tensors["B"] = tensors["B"][:1].detach().expand(3, -1, -1)
    tensors["delta"] = tensors["delta"][:, :, :1].detach().expand(-1, -1, 17)
    expanded = {**on_device(tensors), "B": tensors["B"].to(DEVICE).requires_grad_()}
    assert_close(run(expanded), truth(tensors), TOLERANCE)


@pytest.mark.parametrize("cut", [1, 8, 13])
def test_two_calls_equal_one(cut):
    """Handing the state over equals one long scan, gradients included."""
    tensors = on_device(make(1, 3, 20, 4, dtype=torch.float32))
    whole = run(tensors)
    halves = [
        {name: value[..., part] if name in ("u", "delta", "B", "C", "z") else value for name, value in tensors.items()}
        for part in (slice(None, cut), slice(cut, None))
    ]
    first, state = selective_scan(**halves[0], delta_softplus=True, return_last_state=True)
    halves[1]["initial_state"] = state
    second, last_state = selective_scan(**halves[1], delta_softplus=True, return_last_state=True)
    out = torch.cat([first, second], dim=2)
    grads = torch.autograd.grad(loss(out.cpu(), last_state.cpu()), list(tensors.values()))
    found = {"out": out, "last_state": last_state, **dict(zip(tensors, grads))}
    assert_close({name: value.cpu() for name, value in found.items()}, whole, TOLERANCE)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    """Inputs are read as they are; only results are rounded, gradients to the inputs' dtypes."""
    tensors = make(1, 3, 40, 16, dtype=dtype)
    found, expected = run(on_device(tensors)), truth(tensors)
    assert found["last_state"].dtype == torch.float32
    assert found["out"].dtype == dtype
    assert ((found["out"].double() - expected["out"]).abs() <= HALF[dtype] * expected["out"].abs() + 1e-5).all()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
    # the gradient of the output comes in rounded, so gradients carry that error too
    assert_close(found, expected, 2 * HALF[dtype])


def test_mixed_dtypes_as_under_autocast():
    """Sequences in bfloat16, parameters in float32: each gradient in the dtype of its tensor."""
    tensors = make(1, 3, 20, 4, dtype=torch.float32)
    for name in ("u", "delta", "B", "C"):
        tensors[name] = tensors[name].detach().bfloat16()
    found, expected = run(on_device(tensors)), truth(tensors)
    assert found["A"].dtype == found["z"].dtype == torch.float32
    assert found["u"].dtype == found["B"].dtype == torch.bfloat16
    assert_close(found, expected, 2 * HALF[torch.bfloat16])


def test_inputs_are_read_without_copies_in_float32(monkeypatch):
    """No tensor of the size of a sequence is made in another dtype."""
    tensors = {name: value.detach().to(DEVICE) for name, value in make(1, 8, 64, 4, dtype=torch.bfloat16).items()}
    made = []
    original = torch.Tensor.to

    def watched(self, *arguments, **options):
        result = original(self, *arguments, **options)
        if result.numel() >= 8 * 64 and result.dtype == torch.float32:
            made.append(result.shape)
        return result

    monkeypatch.setattr(torch.Tensor, "to", watched)
    out = selective_scan(**tensors, delta_softplus=True)
    assert out.dtype == torch.bfloat16
    assert made == []


def test_gradient_through_the_state_alone():
    tensors = make(1, 3, 40, 4, ("initial_state",), dtype=torch.float32)
    leaves = on_device(tensors)
    _, state = selective_scan(**leaves, delta_softplus=True, return_last_state=True)
    used = [name for name in leaves if name != "C"]
    found = torch.autograd.grad(state.sum(), [leaves[name] for name in used])
    doubles = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    _, state = selective_scan(**doubles, delta_softplus=True, return_last_state=True)
    expected = torch.autograd.grad(state.sum(), [doubles[name] for name in used])
    assert_close({name: grad.cpu() for name, grad in zip(used, found)}, dict(zip(used, expected)), TOLERANCE)


def test_large_time_steps_forget():
    """A decay of exp(-1e4) is zero, not a NaN."""
    tensors = make(1, 3, 20, 4, softplus=False, dtype=torch.float32)
    with torch.no_grad():
        tensors["delta"].mul_(1e4)
    # A's gradient is all in decays like exp(-50), whose relative error is 50 times that of the exponent
    assert_close(run(on_device(tensors), softplus=False), truth(tensors, softplus=False), 1e-5)


def test_tiny_time_steps_keep_their_digits():
    """softplus(-20) is 2e-9: 1 + exp(-20) alone would round it to 0 in float32."""
    tensors = make(1, 2, 10, 4, ("z",), dtype=torch.float32)
    with torch.no_grad():
        tensors["delta"].sub_(20)
    assert_close(run(on_device(tensors)), truth(tensors), TOLERANCE)


def test_nan_is_not_hidden():
    tensors = on_device(make(1, 4, 40, 4, dtype=torch.float32))
    with torch.no_grad():
        tensors["u"][0, 1, 7] = float("nan")
    out = selective_scan(**tensors, delta_softplus=True)
    assert out[0, 1, 7:].isnan().all()
    assert not out[0, 1, :7].isnan().any()
    assert not out[0, (0, 2, 3)].isnan().any()


def test_twice_the_same_bits():
    tensors = on_device(make(1, 9, 9, 4, dtype=torch.float32))
    first, second = run(tensors), run(tensors)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_float64_goes_to_torch():
    tensors = on_device(make(1, 3, 12, 4))
    assert choose(torch.device(DEVICE), torch.float64) == "torch"
    assert_close(run(tensors), truth({name: value.cpu() for name, value in tensors.items()}), 1e-12)


def test_same_flops_as_any_path(monkeypatch):
    counts = []
    for path in ("triton", "torch"):
        monkeypatch.setenv("MANTICORE_SCAN", path)
        with FlopCounterMode(display=False) as counter:
            tensors = on_device(make(1, 3, 9, 4, dtype=torch.float32))
            selective_scan(**tensors, delta_softplus=True).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_shapes_without_computing():
    """What torch.compile and the meta device are told is what comes."""
    tensors = {name: value.detach() for name, value in make(2, 3, 300, 6, dtype=torch.bfloat16).items()}
    tensors["initial_state"] = tensors["initial_state"].transpose(1, 2)
    inputs = Inputs(**tensors, delta_softplus=True)
    real = torch.ops.manticore.selective_scan(*vars(inputs.map(lambda x: x.to(DEVICE))).values(), "triton", True)
    meta = torch.ops.manticore.selective_scan(*vars(inputs.map(lambda x: x.to("meta"))).values(), "triton", True)
    assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in meta]


@pytest.mark.parametrize(("batch", "channels", "expected"), [(8, 1536, 16), (1, 1536, 4), (2, 1536, 8)])
def test_programs_fill_the_device(batch, channels, expected):
    """132 multiprocessors: two programs each where there is work for that, but never a program of a single channel."""
    assert scan_triton.channels_per_program(batch, channels, 132) == expected


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from manticore.kernels import scan_triton
from manticore.kernels import scan_triton_kernels as kernels

SEQUENCES = ("u", "delta", "z", "B", "C", "out", "grad_out", "grad_u", "grad_delta", "grad_z")
for kernel in (kernels.forward_kernel, kernels.backward_kernel):
    for capability, dtype, state_size, given in ((90, "bf16", 16, True), (80, "fp32", 5, False)):
        padded, lanes, warps = scan_triton.tile(state_size, 2048)
        constants = {"GROUP": 8, "N": padded, "LANES": lanes}
        signature, constexprs = {}, {}
        for index, parameter in enumerate(kernel.params):
            name = parameter.name
            if parameter.is_constexpr:
                signature[name], constexprs[(index,)] = "constexpr", constants.get(name, given)
            elif name in SEQUENCES:
                signature[name] = "*" + dtype
            else:
                pointer = name in ("A", "D", "bias", "initial", "last", "states", "grad_state")
                signature[name] = "*fp32" if pointer or name.startswith("parts_") else "i32"
        source = ASTSource(kernel, signature, constexprs)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        print(kernel.__name__, capability, len(compiled.asm["cubin"]) > 0, flush=True)
"""


def test_kernels_compile_for_gpus(tmp_path):
    """Down to machine code for two generations; needs no GPU, but a process that does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("True") == 4


def test_registers_of_a_tile_do_not_depend_on_the_state_size():
    for state_size in (1, 4, 16, 64, 100, 256):
        padded, lanes, warps = scan_triton.tile(state_size, 2048)
        assert padded >= state_size
        assert padded * lanes <= 512
        assert padded * lanes / (32 * warps) <= 2
