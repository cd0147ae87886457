import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manticore.errors import ManticoreError
from manticore.registry import resolve
from manticore.search.differentiable.methods import Darts, Dash, Gaea

METHODS = ["darts", "dash", "gaea"]
SHAPES = [(3,), (2, 3), (2, 3, 3)]


def simplex_parameter(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(shape, dtype=dtype).exponential_(generator=generator)
    return nn.Parameter(rows / rows.sum(-1, keepdim=True))


def assert_on_simplex(parameter):
    assert parameter.isfinite().all()
    assert parameter.min() >= 0
    torch.testing.assert_close(parameter.sum(-1), torch.ones(parameter.shape[:-1]), atol=1e-5, rtol=0)


def train(method, parameters, gradient_of, steps):
    """Steps as the search trainer takes them."""
    for _ in range(steps):
        method.begin_step()
        for parameter in parameters:
            parameter.grad = gradient_of(parameter)
        method.step()


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(METHODS),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    lr=st.sampled_from([1e-4, 0.1, 10.0]),
    seed=st.integers(0, 10_000),
)
def test_weights_never_leave_the_simplex(name, shape, scale, lr, seed):
    parameter = simplex_parameter(shape, seed)
    method = resolve("search", name)([parameter], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(8):
        method.begin_step()
        assert_on_simplex(parameter)
        parameter.grad = scale * torch.randn(shape, generator=generator)
        method.step()
        assert_on_simplex(parameter)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(METHODS),
    gradient=st.permutations([-0.4, 0.1, 0.3]),
    seed=st.integers(0, 10_000),
)
def test_the_component_with_the_smallest_gradient_wins(name, gradient, seed):
    parameter = simplex_parameter((2, 3), seed)
    method = resolve("search", name)([parameter], lr=0.1)
    fixed = torch.tensor(gradient).expand(2, 3)
    train(method, [parameter], lambda _: fixed.clone(), 200)
    assert parameter.argmax(-1).tolist() == [gradient.index(-0.4)] * 2


def test_the_gradient_is_that_of_autograd_through_the_softmax():
    parameter = simplex_parameter((2, 3, 3), dtype=torch.float64)
    target = torch.randn(2, 3, 3, dtype=torch.float64)
    method = Darts([parameter], lr=0.1, start_floor=1e-9)
    reference = parameter.detach().log().requires_grad_()
    adam = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        parameter.grad = None
        ((parameter - target) ** 2).sum().backward()
        method.step()
        adam.zero_grad()
        ((reference.softmax(-1) - target) ** 2).sum().backward()
        adam.step()
        torch.testing.assert_close(parameter.detach(), reference.detach().softmax(-1), atol=1e-12, rtol=0)


def test_dash_maps_the_gradient_through_its_own_sample():
    temperature = 0.7
    parameter = simplex_parameter((2, 3), dtype=torch.float64)
    method = Dash([parameter], lr=0.1, temperature=temperature, final_temperature=temperature, start_floor=1e-9)
    target = torch.randn(2, 3, dtype=torch.float64)
    alpha = method.state[parameter]["alpha"].clone().requires_grad_()
    method.begin_step()
    noise = (parameter.detach().log() * temperature - alpha.detach()).detach()
    ((parameter - target) ** 2).sum().backward()
    (((((alpha + noise) / temperature).softmax(-1)) - target) ** 2).sum().backward()
    method.step()
    # after one step Adam's first moment is the gradient times (1 - beta1)
    torch.testing.assert_close(method.state[parameter]["exp_avg"] / 0.1, alpha.grad)


def test_dash_draws_one_sample_per_step_and_none_is_left_afterwards():
    parameter = simplex_parameter((2, 3))
    start = parameter.detach().clone()
    method = Dash([parameter], lr=0.1, start_floor=1e-6)
    torch.testing.assert_close(parameter.detach(), start)
    method.begin_step()
    sample = parameter.detach().clone()
    assert not torch.allclose(sample, start, atol=1e-3)
    method.settle()
    torch.testing.assert_close(parameter.detach(), start)
    method.begin_step()
    assert not torch.allclose(parameter, sample, atol=1e-3)
    parameter.grad = torch.zeros_like(parameter)
    method.step()
    torch.testing.assert_close(parameter.detach(), start)


def test_dash_noise_follows_the_seed_and_not_the_global_generator():
    samples = []
    for global_seed, seed in [(0, 5), (1, 5), (0, 6)]:
        torch.manual_seed(global_seed)
        parameter = simplex_parameter((2, 3))
        Dash([parameter], seed=seed).begin_step()
        samples.append(parameter.detach().clone())
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_dash_noise_is_gumbel():
    parameter = nn.Parameter(torch.full((20_000, 2), 0.5))
    Dash([parameter], temperature=1.0).begin_step()
    # the difference of two Gumbel variables is logistic: variance pi^2 / 3
    logits = parameter[:, 0].log() - parameter[:, 1].log()
    assert logits.mean().abs() < 0.05
    assert logits.var().item() == pytest.approx(math.pi**2 / 3, rel=0.05)


def test_dash_temperature_falls_on_a_geometric_path_and_stays():
    parameter = simplex_parameter((2, 2))
    method = Dash([parameter], temperature=1.0, final_temperature=0.01, anneal_steps=2)
    seen = []
    for _ in range(4):
        method.begin_step()
        seen.append(method.current_temperature)
    assert seen == pytest.approx([1.0, 0.1, 0.01, 0.01])


def test_gaea_step_is_the_published_formula_with_the_floor_before_the_last_normalisation():
    parameter = nn.Parameter(torch.tensor([[0.5, 0.3, 0.2]]))
    method = Gaea([parameter], lr=2.0, floor=1e-5)
    parameter.grad = torch.tensor([[-1.0, 0.5, 100.0]])
    method.step()
    grown = [0.5 * math.exp(2.0), 0.3 * math.exp(-1.0), 0.2 * math.exp(-9.0)]
    floored = [max(value / sum(grown), 1e-5) for value in grown]
    expected = torch.tensor([[value / sum(floored) for value in floored]])
    torch.testing.assert_close(parameter.detach(), expected)
    assert floored[2] == 1e-5
    assert parameter.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_vertex_can_be_left(name):
    parameter = nn.Parameter(torch.eye(3).repeat(2, 1, 1))
    method = resolve("search", name)([parameter], lr=0.1, start_floor=0.02)
    assert parameter.min().item() == pytest.approx(0.02, rel=0.05)
    assert_on_simplex(parameter)
    gradient = torch.tensor([0.5, -0.5, 0.5]).expand(2, 3, 3)
    train(method, [parameter], lambda _: gradient.clone(), 120)
    assert (parameter.argmax(-1) == 1).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_state_continues_identically(name, tmp_path):
    def start():
        parameters = [simplex_parameter((2, 3), 1), simplex_parameter((3,), 2)]
        return parameters, resolve("search", name)(parameters, lr=0.1)

    def gradient_of(parameter):
        return (parameter.detach() - 0.3) * torch.arange(3.0)

    parameters, method = start()
    train(method, parameters, gradient_of, 5)
    torch.save(method.state_dict(), tmp_path / "method.pt")
    train(method, parameters, gradient_of, 5)

    resumed_parameters, resumed = start()
    resumed.load_state_dict(torch.load(tmp_path / "method.pt", weights_only=True))
    train(resumed, resumed_parameters, gradient_of, 5)
    for a, b in zip(parameters, resumed_parameters):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_loading_a_state_restores_the_weights_in_the_model(name):
    parameter, other = simplex_parameter((2, 3), 1), simplex_parameter((2, 3), 2)
    method, second = (resolve("search", name)([p], lr=0.1) for p in (parameter, other))
    train(method, [parameter], lambda p: p.detach() - 1, 3)
    second.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_parameter_without_gradient_stays(name):
    used, unused = simplex_parameter((2, 3), 1), simplex_parameter((2, 3), 2)
    method = resolve("search", name)([used, unused], lr=0.1, start_floor=1e-6)
    before = used.detach().clone(), unused.detach().clone()
    method.begin_step()
    used.grad = torch.randn(2, 3)
    method.step()
    assert not torch.allclose(used, before[0], atol=1e-4)
    torch.testing.assert_close(unused.detach(), before[1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_the_weights_survive(name, value):
    parameter = simplex_parameter((2, 3))
    method = resolve("search", name)([parameter])
    weights = parameter.detach().clone()
    method.begin_step()
    parameter.grad = torch.full((2, 3), value)
    with pytest.raises(ManticoreError, match=r"not finite.*Fix"):
        method.step()
    method.settle()
    assert torch.equal(parameter, weights)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("weights", [[[0.5, 0.6]], [[-0.1, 1.1]], [[math.nan, 1.0]]], ids=["sum", "negative", "nan"])
def test_a_start_off_the_simplex_is_refused(name, weights):
    with pytest.raises(ManticoreError, match="sum to 1"):
        resolve("search", name)([nn.Parameter(torch.tensor(weights))])


@pytest.mark.parametrize(
    "options",
    [{"start_floor": 0.0}, {"start_floor": 0.5}, {"temperature": 0.0}, {"anneal_steps": 0}],
    ids=str,
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ManticoreError, match=next(iter(options))):
        Dash([simplex_parameter((2, 2))], **options)
