"""Copies that train side by side end where each would have ended alone."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from manticore.kernels.mamba import use_selective_scan
from manticore.tasks.metrics import IGNORE
from manticore.training.stacked import StackedAdamW, StackedModel, why_not_stacked
from tests.conftest import gpt_neo, mamba

LRS, DECAYS = (1e-2, 1e-3, 1e-2), (0.0, 0.1, 0.5)


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        inputs = torch.randint(0, 97, (4, 9), generator=generator)
        targets = torch.randint(0, 97, (4, 9), generator=generator)
        targets[torch.rand(4, 9, generator=generator) < 0.4] = IGNORE
        yield inputs, targets


def trained_by_torch(model, lr, decay):
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, betas=(0.9, 0.98))
    losses = []
    for inputs, targets in batches():
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


def trained_together(model, lrs, decays):
    stacked = StackedModel(model, len(lrs))
    optimizer = StackedAdamW(stacked, decays, betas=(0.9, 0.98))
    losses = []
    for inputs, targets in batches():
        loss = stacked.loss(inputs, targets)
        gradients = torch.autograd.grad(loss.sum(), list(stacked.parameters.values()))
        optimizer.step(dict(zip(stacked.parameters, gradients)), lrs)
        losses.append(loss.detach())
    return torch.stack(losses), stacked


@pytest.mark.parametrize("make", [gpt_neo, mamba])
@pytest.mark.parametrize("copies", [1, 3])
def test_copies_equal_models_trained_alone_with_torch_s_optimizer(copies, make):
    model = make()
    use_selective_scan(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, stacked = trained_together(model, LRS[:copies], DECAYS[:copies])
    for index in range(copies):
        expected, parameters = trained_by_torch(model, LRS[index], DECAYS[index])
        assert losses[:, index].tolist() == pytest.approx(expected, rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(stacked.parameters[name][index], parameter.detach(), rtol=1e-3, atol=2e-5)
    # tied weights are one parameter, and the model given is left as it was
    assert set(stacked.parameters) == set(before)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_is_frozen_is_shared_and_stays():
    model = gpt_neo()
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    stacked = StackedModel(model, 2)
    assert len(stacked.parameters) == len(list(model.parameters())) - 1
    assert stacked.logits(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 2, 5, 97)


def test_copies_that_are_dropped_do_not_change_the_others():
    model = gpt_neo()
    _, all_three = trained_together(model, LRS, DECAYS)
    stacked = StackedModel(model, 3)
    optimizer = StackedAdamW(stacked, DECAYS, betas=(0.9, 0.98))
    lrs = list(LRS)
    for step, (inputs, targets) in enumerate(batches()):
        if step == 1:
            stacked.keep([0, 2])
            optimizer.keep([0, 2])
            lrs = [LRS[0], LRS[2]]
        gradients = torch.autograd.grad(stacked.loss(inputs, targets).sum(), list(stacked.parameters.values()))
        optimizer.step(dict(zip(stacked.parameters, gradients)), lrs)
    for name, parameters in stacked.parameters.items():
        torch.testing.assert_close(parameters, all_three.parameters[name][[0, 2]], rtol=1e-3, atol=2e-5)


def test_a_model_that_cannot_be_mapped_says_why_and_runs_as_one_copy():
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    assert why_not_stacked(gpt_neo(), ids) is None

    class ReadsValues(type(gpt_neo())):
        def forward(self, input_ids, **kwargs):
            output = super().forward(input_ids, **kwargs)
            return output if output.logits.sum() > -1e9 else None

    model = ReadsValues(gpt_neo().config).eval()
    assert why_not_stacked(model, ids)
    assert torch.equal(StackedModel(model, 1).logits(ids)[0], model(input_ids=ids, use_cache=False).logits)
