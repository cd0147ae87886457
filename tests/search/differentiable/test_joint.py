import pytest
import torch
from torch import nn

from manticore.errors import ManticoreError
from manticore.search.differentiable.joint import JointOptimizer, Order
from manticore.search.differentiable.methods import Darts, Dash


def make(order, method=Darts):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    mixture = nn.Parameter(torch.tensor([[0.3, 0.7]]))
    optimizer = JointOptimizer(
        torch.optim.AdamW(network.parameters(), lr=0.01), method([mixture], lr=0.1), Order.parse(order)
    )
    return network, mixture, optimizer


def take(network, mixture, optimizer, steps):
    """Steps on a toy loss; returns per step which of (network, mixture) moved."""
    moved = []
    for step in range(steps):
        before = network.weight.detach().clone(), mixture.detach().clone()
        optimizer.begin_step()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        ((network(x) * mixture).sum(-1) - 1).square().mean().backward()
        optimizer.step()
        moved.append((not torch.equal(before[0], network.weight), not torch.equal(before[1], mixture)))
    return moved


def test_simultaneous_moves_both_every_step():
    assert take(*make("simultaneous"), 3) == [(True, True)] * 3


@pytest.mark.parametrize("order", ["alternating", "bilevel"])
@pytest.mark.parametrize("method", [Darts, Dash])
def test_odd_steps_move_the_network_and_even_steps_the_mixture(order, method):
    assert take(*make(order, method), 4) == [(True, False), (False, True)] * 2


def test_learning_rates_are_separate():
    _, _, optimizer = make("simultaneous")
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    optimizer.param_groups[1]["lr"] = 0.0
    network, mixture = optimizer.param_groups[0]["params"][0], optimizer.param_groups[1]["params"][0]
    before = network.detach().clone(), mixture.detach().clone()
    optimizer.begin_step()
    for parameter in (network, mixture):
        parameter.grad = torch.ones_like(parameter) * torch.arange(1.0, parameter.shape[-1] + 1)
    optimizer.step()
    assert not torch.equal(network, before[0])
    torch.testing.assert_close(mixture.detach(), before[1])


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("method", [Darts, Dash])
def test_a_saved_state_continues_identically_on_the_same_turn(order, method, tmp_path):
    network, mixture, optimizer = make(order, method)
    take(network, mixture, optimizer, 3)
    torch.save({"optimizer": optimizer.state_dict(), "network": network.state_dict()}, tmp_path / "state.pt")
    expected = take(network, mixture, optimizer, 3)

    resumed_network, resumed_mixture, resumed = make(order, method)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed_network.load_state_dict(saved["network"])
    resumed.load_state_dict(saved["optimizer"])
    assert take(resumed_network, resumed_mixture, resumed, 3) == expected
    assert torch.equal(mixture, resumed_mixture)
    assert torch.equal(network.weight, resumed_network.weight)


def test_an_unknown_order_is_refused():
    with pytest.raises(ManticoreError, match="Did you mean 'alternating'"):
        Order.parse("alternate")
