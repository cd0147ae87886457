"""Every path of the selective scan against the float64 loop: outputs and all gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manticore.errors import ManticoreError
from manticore.kernels import scan_reference
from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_contract import CHUNK, Inputs
from manticore.kernels.scan_dispatch import PATHS

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
# triton, which is interpreted without a GPU, has tests of its own with smaller shapes
PATH_NAMES = [name for name, entry in PATHS.items() if name != "triton" and entry.problem() is None]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def make(batch, channels, steps, state_size, optional=OPTIONAL, softplus=True, dtype=torch.float64, seed=0):
    """Random inputs of a size that Mamba sees, as leaves."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "u": normal(batch, channels, steps),
        "delta": normal(batch, channels, steps) - 1 if softplus else uniform(batch, channels, steps),
        "A": -normal(channels, state_size).exp(),
        "B": normal(batch, state_size, steps),
        "C": normal(batch, state_size, steps),
        "D": normal(channels),
        "z": normal(batch, channels, steps),
        "delta_bias": normal(channels) * 0.3,
        "initial_state": normal(batch, channels, state_size),
    }
    kept = {name: value for name, value in tensors.items() if name not in OPTIONAL or name in optional}
    return {name: value.to(dtype).requires_grad_() for name, value in kept.items()}


def loss(out, last_state):
    """Touches every output element with another weight."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    state_weight = torch.linspace(1, -0.5, last_state.numel(), dtype=torch.float64).reshape(last_state.shape)
    return (out.double() * weight).sum() + (last_state.double() * state_weight).sum()


def run(tensors, softplus=True):
    out, last_state = selective_scan(**tensors, delta_softplus=softplus, return_last_state=True)
    grads = torch.autograd.grad(loss(out, last_state), list(tensors.values()))
    return {"out": out, "last_state": last_state, **dict(zip(tensors, grads))}


def truth(tensors, softplus=True):
    """The loop in float64, differentiated by autograd."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    inputs = {name: leaves.get(name) for name in ("u", "delta", "A", "B", "C", *OPTIONAL)}
    if inputs["initial_state"] is not None:
        inputs["initial_state"] = inputs["initial_state"].transpose(1, 2)
    out, last_state, _ = scan_reference.scan(Inputs(**inputs, delta_softplus=softplus))
    last_state = last_state.transpose(1, 2)
    grads = torch.autograd.grad(loss(out, last_state), list(leaves.values()))
    return {"out": out, "last_state": last_state, **dict(zip(leaves, grads))}


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.fixture(params=PATH_NAMES)
def path(request, monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("batch", "channels", "steps", "state_size"),
    [(1, 3, 1, 4), (2, 3, 63, 4), (1, 20, 129, 16), (3, 17, 33, 5), (2, 35, 64, 64), (1, 1, 32, 1)],
)
def test_equals_the_loop(path, batch, channels, steps, state_size, dtype):
    tensors = make(batch, channels, steps, state_size, dtype=dtype)
    assert_close(run(tensors), truth(tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(
    "optional", [(), ("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z"), ("D", "delta_bias")]
)
def test_missing_inputs(path, optional, softplus):
    tensors = make(2, 5, 40, 4, optional, softplus, torch.float32)
    assert_close(run(tensors, softplus), truth(tensors, softplus), TOLERANCE[torch.float32])


def test_any_strides(path):
    tensors = make(2, 19, 45, 6, dtype=torch.float32)
    expected = truth(tensors)
    strided = {}
    for index, (name, value) in enumerate(tensors.items()):
        # every other element of a larger tensor with the last two axes swapped, or a channels-last layout
        if value.dim() == 3 and index % 2:
            value = value.detach().transpose(1, 2).contiguous().transpose(1, 2)
        else:
            shape = [2 * size for size in value.shape]
            holder = torch.full(shape, float("nan"))
            holder[tuple(slice(None, None, 2) for _ in shape)] = value.detach()
            value = holder[tuple(slice(None, None, 2) for _ in shape)]
        strided[name] = value.requires_grad_()
    assert not strided["u"].is_contiguous()
    assert_close(run(strided), expected, TOLERANCE[torch.float32])


def test_broadcast_inputs(path):
    """Views with stride 0, as ``expand`` makes them."""
    tensors = make(3, 6, 37, 4, dtype=torch.float32)
    tensors["B"] = tensors["B"][:1].detach().expand(3, -1, -1).requires_grad_()
    tensors["initial_state"] = tensors["initial_state"][:, :1].detach().expand(-1, 6, -1).requires_grad_()
    assert_close(run(tensors), truth(tensors), TOLERANCE[torch.float32])


@pytest.mark.parametrize("cut", [1, 32, 50])
def test_two_calls_equal_one(path, cut):
    """Handing the state over equals one long scan, gradients included."""
    tensors = make(2, 9, 70, 8)
    whole = run(tensors)
    halves = [
        {name: value[..., part] if name in ("u", "delta", "B", "C", "z") else value for name, value in tensors.items()}
        for part in (slice(None, cut), slice(cut, None))
    ]
    first, state = selective_scan(**halves[0], delta_softplus=True, return_last_state=True)
    halves[1]["initial_state"] = state
    second, last_state = selective_scan(**halves[1], delta_softplus=True, return_last_state=True)
    out = torch.cat([first, second], dim=2)
    grads = torch.autograd.grad(loss(out, last_state), list(tensors.values()))
    assert_close({"out": out, "last_state": last_state, **dict(zip(tensors, grads))}, whole, 1e-12)


def test_gradient_through_the_state_alone(path):
    tensors = make(2, 5, 40, 4, ("initial_state",))
    _, state = selective_scan(**tensors, delta_softplus=True, return_last_state=True)
    used = {name: value for name, value in tensors.items() if name != "C"}
    found = torch.autograd.grad(state.sum(), list(used.values()))
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    start = leaves["initial_state"].transpose(1, 2)
    inputs = Inputs(*(leaves[name] for name in ("u", "delta", "A", "B", "C")), None, None, None, start, True)
    expected = torch.autograd.grad(scan_reference.scan(inputs)[1].sum(), [leaves[name] for name in used])
    assert_close(dict(zip(used, found)), dict(zip(used, expected)), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_half_precision_is_computed_in_float32(path, dtype, tolerance):
    """Only the result is rounded: half a unit in the last place of the type."""
    tensors = make(2, 7, 50, 16, dtype=dtype)
    out, last_state = selective_scan(**tensors, delta_softplus=True, return_last_state=True)
    assert out.dtype == dtype
    assert last_state.dtype == torch.float32
    expected = truth(tensors)
    assert ((out.double() - expected["out"]).abs() <= tolerance * expected["out"].abs() + 1e-5).all()
    out.sum().backward()
    assert all(value.grad.dtype == dtype for value in tensors.values())


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("name", [name for name in PATH_NAMES if name != "reference"])
def test_memory_does_not_grow_with_length_times_state(name):
    module = PATHS[name].load()
    tensors = {key: value.detach() for key, value in make(2, 64, 512, 16, (), dtype=torch.float32).items()}
    inputs = Inputs(**tensors, D=None, z=None, delta_bias=None, initial_state=None, delta_softplus=True)
    with LargestTensor() as largest:
        out, _, states = module.forward(inputs, True)
        module.backward(inputs, states, torch.ones_like(out), None)
    # one chunk with all its states, or one tensor of the size of u
    assert largest.elements <= max(CHUNK * 2 * 64 * 16, 2 * 64 * 512)


def test_without_gradients_equals_with(path):
    tensors = make(2, 5, 70, 4, dtype=torch.float32)
    with torch.no_grad():
        quiet = selective_scan(**tensors, delta_softplus=True)
    assert torch.equal(quiet, selective_scan(**tensors, delta_softplus=True))


def test_autocast_does_not_round_inside(path):
    tensors = make(2, 5, 40, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = selective_scan(**tensors, delta_softplus=True)
    assert torch.equal(out, selective_scan(**tensors, delta_softplus=True))


def test_large_time_steps_forget(path):
    """A decay of exp(-1e4) is zero, not a NaN."""
    tensors = make(1, 4, 40, 4, softplus=False, dtype=torch.float32)
    with torch.no_grad():
        tensors["delta"].mul_(1e4)
    # exp(x) in float32 is off by |x| roundings, and here what is left of a state has a large |x|
    assert_close(run(tensors, softplus=False), truth(tensors, softplus=False), 5 * TOLERANCE[torch.float32])


def test_nan_is_not_hidden(path):
    tensors = make(1, 4, 40, 4, dtype=torch.float32)
    with torch.no_grad():
        tensors["u"][0, 1, 7] = float("nan")
    out = selective_scan(**tensors, delta_softplus=True)
    assert out[0, 1, 7:].isnan().all()
    assert not out[0, 1, :7].isnan().any()
    assert not out[0, (0, 2, 3)].isnan().any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 5, 39)),
        ("A", (4, 4)),
        ("A", (5,)),
        ("B", (2, 40, 4)),
        ("C", (2, 1, 4, 40)),
        ("D", (1,)),
        ("z", (2, 5)),
        ("delta_bias", (4,)),
        ("initial_state", (2, 4, 5)),
        ("u", (2, 5)),
        ("u", (2, 5, 0)),
    ],
)
def test_wrong_shapes_are_refused(name, shape):
    tensors = make(2, 5, 40, 4)
    tensors[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ManticoreError, match=r"selective_scan: .*\(got .*expected .*Fix:"):
        selective_scan(**tensors)


def test_complex_and_devices_are_refused():
    tensors = make(2, 5, 40, 4)
    with pytest.raises(ManticoreError, match="A has the wrong dtype"):
        selective_scan(**{**tensors, "A": tensors["A"].to(torch.complex128)})
    with pytest.raises(ManticoreError, match="z has the wrong device"):
        selective_scan(**{**tensors, "z": tensors["z"].to("meta")})


def test_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv("MANTICORE_SCAN", "fast")
    with pytest.raises(ManticoreError, match=r"MANTICORE_SCAN: unknown path .got 'fast'"):
        selective_scan(**make(1, 3, 4, 4))


def test_no_second_derivative():
    """Refused by torch, not silently zero."""
    tensors = make(1, 3, 4, 4)
    out = selective_scan(**tensors, delta_softplus=True)
    (grad,) = torch.autograd.grad(out.square().sum(), [tensors["u"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("shared", [(), ("B", "delta_bias"), ("A", "D", "delta_bias")])
def test_mapped_over_copies_equals_one_call_per_copy(shared):
    """What ``shared`` names has no dimension of copies; its gradient is the sum over them."""
    copies = [make(2, 5, CHUNK + 3, 4, seed=seed) for seed in range(3)]
    alone = [run({name: (copies[0] if name in shared else own)[name] for name in own}) for own in copies]
    stacked = {
        name: (copies[0][name] if name in shared else torch.stack([own[name] for own in copies]))
        .detach()
        .requires_grad_()
        for name in copies[0]
    }

    def scan(tensors):
        return selective_scan(**tensors, delta_softplus=True, return_last_state=True)

    dims = {name: None if name in shared else 0 for name in stacked}
    out, last_state = torch.func.vmap(scan, in_dims=(dims,))(stacked)
    whole = sum(loss(*each) for each in zip(out, last_state))
    gradients = dict(zip(stacked, torch.autograd.grad(whole, list(stacked.values()))))
    for name, got in {"out": out, "last_state": last_state, **gradients}.items():
        each = torch.stack([result[name] for result in alone])
        torch.testing.assert_close(got, each.sum(0) if name in shared else each, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        again, _ = torch.func.vmap(scan, in_dims=(dims,))(stacked)
    assert torch.equal(again, out)
