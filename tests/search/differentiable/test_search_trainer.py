import pytest
import torch
from tiny_search import make_hybrid, recall

from manticore.search.differentiable.joint import Order
from manticore.search.differentiable.methods import Darts
from manticore.search.differentiable.trainer import MixturePlan, SearchTrainer
from manticore.settings import Search
from manticore.training.trainer import training_arguments


@pytest.fixture
def make_trainer(tmp_path):
    def make(order="simultaneous", max_grad_norm=1.0, schedule="constant_with_warmup", warmup_steps=0, steps=1):
        hybrid = make_hybrid()
        for parameter in hybrid.mixing.mixture_parameters():
            parameter.requires_grad_(True)
        settings = Search(
            steps=steps, batch_size=8, lr=0.01, weight_decay=0.5, schedule="linear", accumulation=2,
            max_grad_norm=max_grad_norm,
        )  # fmt: skip
        run = {"log_steps": 1, "saves": False, "seed": 0, "data_seed": 0, "bf16": False, "cpu": True}
        args = training_arguments(tmp_path, settings, **run)
        plan = MixturePlan(
            make_method=lambda parameters: Darts(parameters, lr=0.1),
            order=Order(order),
            schedule=schedule,
            warmup_steps=warmup_steps,
            seed=0,
        )
        return SearchTrainer(hybrid, args, recall(), plan=plan, stage="search")

    return make


def test_the_mixture_is_in_no_group_of_the_network_and_is_not_decayed(make_trainer):
    trainer = make_trainer()
    trainer.create_optimizer()
    mixture = {id(parameter) for parameter in trainer.mixture}
    network = {id(p) for group in trainer.joint.network.param_groups for p in group["params"]}
    assert not mixture & network
    assert network | mixture == {id(p) for p in trainer.hybrid.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in trainer.joint.mixture.param_groups] == [0.0]
    assert max(group["weight_decay"] for group in trainer.joint.network.param_groups) == 0.5


def test_network_and_mixture_follow_their_own_schedules(make_trainer):
    trainer = make_trainer(schedule="constant_with_warmup", warmup_steps=2, steps=4)
    trainer.create_optimizer_and_scheduler(4)
    seen = []
    for _ in range(4):
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        seen.append((rates[0], rates[-1]))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert [network for network, _ in seen] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [mixture for _, mixture in seen] == pytest.approx([0.0, 0.05, 0.1, 0.1])


def test_the_mixtures_gradient_does_not_count_in_the_clipped_norm(make_trainer):
    trained = []
    for factor in (1.0, 1e6):
        trainer = make_trainer(max_grad_norm=1e-3)
        for parameter in trainer.mixture:
            parameter.register_hook(lambda gradient, factor=factor: gradient * factor)
        (row,) = trainer.run()
        trained.append((row["grad_norm"], [p.detach().clone() for p in trainer.hybrid.component_0.parameters()]))
    assert trained[0][0] == trained[1][0]
    assert all(torch.equal(a, b) for a, b in zip(trained[0][1], trained[1][1]))


def test_bilevel_steps_read_the_two_halves_in_turn(make_trainer):
    trainer = make_trainer("bilevel")
    sampler = trainer._get_train_sampler()
    rows = [row.tobytes() for row in trainer.train_dataset.with_format("numpy")["input_ids"][:]]
    halves = [{rows[i] for i in half.tolist()} for half in (sampler.network_half, sampler.mixture_half)]
    assert not halves[0] & halves[1]
    batches = [{row.numpy().tobytes() for row in batch["input_ids"]} for batch in trainer.get_train_dataloader()]
    # two micro-batches of 4 make a step of 8; each half has 32 examples
    assert len(batches) == 16
    for i, batch in enumerate(batches):
        assert batch <= halves[i // 2 % 2]
