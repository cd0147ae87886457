"""The search as a ``Trainer``: network and mixture weights learn side by side, each with its own optimizer.

Everything else (data, devices, checkpoints, resuming) is the ordinary trainer's. The mixture weights are
parameters of the model, so data-parallel training averages their gradients like any others, and their noise is
drawn from (seed, step), so all ranks hold the same sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from manticore.errors import ManticoreError
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.search.differentiable.halves import AlternatingHalves
from manticore.search.differentiable.joint import JointOptimizer, Order
from manticore.search.differentiable.methods import SearchMethod
from manticore.search.differentiable.mixture_log import LOGGED_WEIGHTS, entropy
from manticore.training.trainer import TaskTrainer


@dataclass(frozen=True)
class MixturePlan:
    """How the mixture weights learn.

    ``order`` and ``schedule`` are names; ``seed`` orders the two halves of a bilevel search.
    """

    make_method: Callable[[list[nn.Parameter]], SearchMethod]
    order: Order
    schedule: str
    warmup_steps: int
    seed: int


class SearchTrainer(TaskTrainer):
    """Trains a supernet and its mixture weights, which require gradients already.

    Args:
        hybrid: the supernet.
        arguments: those of ``TaskTrainer`` after its model.
        plan: how the mixture weights learn.
        named: those of ``TaskTrainer``.
    """

    def __init__(self, hybrid: ManticorePreTrainedModel, *arguments: Any, plan: MixturePlan, **named: Any) -> None:
        super().__init__(hybrid, *arguments, **named)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ManticoreError(
                "search: sharded training splits the mixture weights over devices, where they cannot be read. "
                "Fix: search with data parallelism (torchrun), fine-tune with sharding afterwards"
            )
        self.hybrid = hybrid
        self.plan = plan
        self.mixture = hybrid.mixing.mixture_parameters()
        self.joint: JointOptimizer | None = None
        self.add_callback(_BeginStep(self))

    def run(self) -> list[dict[str, float]]:
        """Train to the last step; whatever ends the training, no random sample stays in the model."""
        try:
            return super().run()
        finally:
            if self.joint is not None:
                self.joint.settle()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Both optimizers as one; the mixture weights are in no group of the network's."""
        if self.optimizer is None:
            for parameter in self.mixture:
                parameter.requires_grad_(False)
            network = super().create_optimizer(model)
            for parameter in self.mixture:
                parameter.requires_grad_(True)
            self.joint = JointOptimizer(network, self.plan.make_method(self.mixture), self.plan.order)
            self.optimizer = self.joint
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """One scheduler over all groups: the network's schedule on its own groups, the mixture's on the rest."""
        if self.lr_scheduler is None:
            assert self.joint is not None, "the trainer makes the optimizer first"
            network = _factor(
                self.args.lr_scheduler_type, self.args.get_warmup_steps(num_training_steps), num_training_steps
            )
            mixture = _factor(self.plan.schedule, self.plan.warmup_steps, num_training_steps)
            factors = [network] * len(self.joint.network.param_groups)
            factors += [mixture] * len(self.joint.mixture.param_groups)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer or self.joint, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if self.plan.order is not Order.BILEVEL:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        chunk = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return AlternatingHalves(len(dataset), chunk, self.plan.seed)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self.accelerator.clip_grad_norm_(self._network_parameters(model), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(self._network_parameters(model), float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _network_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        mixture = {id(parameter) for parameter in self.mixture}
        return [parameter for parameter in model.parameters() if id(parameter) not in mixture]

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds the mixture weights ``[N][K]`` and their mean entropy in nats to every row with a loss."""
        if "loss" in logs:
            weights = self.hybrid.mixture_weights
            logs["entropy"] = entropy(weights).mean().item()
            logs[LOGGED_WEIGHTS] = weights.tolist()
        super().log(logs, start_time)


class _BeginStep(TrainerCallback):
    """Tells the search method that a step begins."""

    def __init__(self, trainer: SearchTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.joint is not None:
            self._trainer.joint.begin_step()


def _factor(schedule: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate's factor per step, as transformers defines the schedule of that name."""
    alone = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return get_scheduler(schedule, alone, warmup_steps, total_steps).lr_lambdas[0]
