"""Weights that all paths share: each step trains one path of the supernet, the one that is drawn for it.

Only that path's segments and projectors run, only they have gradients, and AdamW leaves everything else alone: weights,
moments and counts of steps. So a step costs what the path costs, in time and in memory of activations; weights and
optimizer are those of the whole supernet.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import one_hot
from transformers import TrainerCallback

from manticore.errors import ManticoreError, NotFiniteError
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.runs.ledger import RunLog
from manticore.search.beam import MOST_SCORED, beam, compared_examples
from manticore.search.choice import Shared
from manticore.search.curves import Point, SharedScores
from manticore.search.objective import Objective, held_out
from manticore.search.path_costs import PathCosts
from manticore.search.sampling import Sampler, sampled
from manticore.search.space import Path, spelled
from manticore.settings import Finetune
from manticore.training.budget import flops_per_step
from manticore.training.callbacks import Progress
from manticore.training.opening import as_trained, opened
from manticore.training.precision import Precision
from manticore.training.trainable import merge_lora
from manticore.training.trainer import TaskTrainer

logger = logging.getLogger(__name__)

SHARED = "shared"
"""The folder of the shared weights, beside those of candidates."""
SCORES = "scores.jsonl"


def follow(supernet: ManticorePreTrainedModel, path: Path) -> ManticorePreTrainedModel:
    """The supernet itself, computing one path from now on."""
    weights = one_hot(torch.tensor(path), supernet.config.num_components).float()
    # not the supernet's own method, which also asks for the end of generated text, step by step
    supernet.mixing.set_mixture_weights(weights)
    return supernet


class SharedTrainer(TaskTrainer):
    """Trains one path per step.

    Args:
        supernet: mixture weights do not train.
        arguments: those of ``TaskTrainer`` after its model.
        paths: of each step.
        named: those of ``TaskTrainer``.

    Raises:
        ManticoreError: weights are sharded, which are gathered by module, whether a path needs them or not.
    """

    def __init__(
        self, supernet: ManticorePreTrainedModel, *arguments: Any, paths: Sequence[Path], **named: Any
    ) -> None:
        super().__init__(supernet, *arguments, **named)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ManticoreError(
                "search: sharded training gathers all weights at every step, but each step reads one path's. "
                "Fix: search in one process, fine-tune with sharding afterwards"
            )
        self.add_callback(_TakePath(supernet, paths))


class _TakePath(TrainerCallback):
    def __init__(self, supernet: ManticorePreTrainedModel, paths: Sequence[Path]) -> None:
        self._supernet, self._paths = supernet, paths

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        follow(self._supernet, self._paths[state.global_step])


def shared_scores(objective: Objective, request: Shared, progress: bool | Progress = False) -> SharedScores:
    """Train shared weights and score paths with them, or go on with that; a second call finds what the first one left.

    The objective's supernet stays as it is: a copy trains, on the data and at the rate that candidates have.

    Args:
        objective: how candidates train, and on what.
        request: what is asked for.
        progress: of the training.

    Raises:
        ManticoreError: a budget below one step, sharded weights, or the folder is that of another search.
    """
    return _Sharing(objective, request).scores(progress)


class _Sharing:
    def __init__(self, objective: Objective, request: Shared) -> None:
        self.objective, self.request = objective, request
        self._trainer: SharedTrainer | None = None
        self.folder = objective.folder / SHARED
        self.inputs = objective.inputs
        self.key = {
            "sampling": request.sampling,
            "units": request.units,
            "unit": objective.unit,
            "allowed": request.space.key,
        }
        settings = objective.settings.key(task=objective.task.name, seed=objective.seed)
        scored = {"settings": settings, "examples": objective.examples, **self.key}
        self.log = RunLog(self.folder / SCORES, scored, self.inputs, resume=True, stage="search")

    def scores(self, progress: bool | Progress) -> SharedScores:
        """What was asked for."""
        end = self.log.get("end")
        if end is None:
            end = self.log.add("end", self._found(progress))
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        points = {path: self._kept(path) for path in map(tuple, end["paths"])}
        kept = {path: point for path, point in points.items() if point is not None}
        return SharedScores(kept, end["flops"], end["steps"], end["failed"], end["seconds"])

    def _found(self, progress: bool | Progress) -> dict[str, Any]:
        objective = self.objective
        supernet = _trainable_copy(objective)
        sampler = Sampler(
            self.request.space, self.request.sampling, objective.seed, objective.supernet.mixture_weights.tolist()
        )
        costs = step_costs(supernet, objective.settings, objective.task.length)
        paths = sampled(sampler, costs, self.request.units * objective.unit)
        try:
            self._train(supernet, paths, progress)
        except NotFiniteError as error:
            return self._failed(f"diverged: {error}", supernet, paths, costs)
        except torch.OutOfMemoryError:
            return self._failed("out of memory", supernet, paths, costs)
        if objective.settings.trainable == "lora":
            merge_lora(supernet)
        flops = sum(map(costs, paths))
        scored = beam(self.request.space, *self._scoring(supernet, flops), objective.seed)
        failed = None if scored else "no path has finite scores"
        return {"paths": list(scored), "flops": flops, "steps": len(paths), "failed": failed, "seconds": self._seconds}

    def _train(self, supernet: ManticorePreTrainedModel, paths: list[Path], progress: bool | Progress) -> None:
        objective = self.objective
        settings = objective.settings.model_copy(update={"steps": len(paths), "budget_flops": None})
        precision = Precision(supernet, settings.dtype, bf16=settings.bf16, cpu=objective.cpu, stage="search")
        with opened(
            follow(supernet, paths[0]), objective.task, settings, precision,
            stage="search", draws="shared", seed=objective.seed, out=self.folder, resume=True, cpu=objective.cpu,
            key=self.key, inputs=self.inputs,
        ) as training:  # fmt: skip
            self._trainer = SharedTrainer(
                supernet, training.args, objective.task, paths=paths, stage="search",
                checkpoint=training.checkpoint, decay=settings.decay, progress=progress,
                metrics_file=training.folder / "metrics.jsonl",
            )  # fmt: skip
            self._trainer.run()

    def _failed(
        self, why: str, supernet: ManticorePreTrainedModel, paths: list[Path], costs: PathCosts
    ) -> dict[str, Any]:
        logger.warning("search: the shared weights: %s", why)
        made = 0 if self._trainer is None else self._trainer.state.global_step + 1
        spent = sum(map(costs, paths[:made]))
        return {"paths": [], "flops": spent, "steps": made, "failed": why, "seconds": self._seconds}

    @property
    def _seconds(self) -> float:
        return 0.0 if self._trainer is None else self._trainer.stopwatch.seconds

    def _scoring(
        self, supernet: ManticorePreTrainedModel, afforded: int
    ) -> tuple[Callable[[Path], Point | None], PathCosts]:
        objective, space = self.objective, self.request.space
        costs = PathCosts(
            lambda path: flops_per_step(follow(supernet, path), 1, objective.task.length, backward=False), additive=True
        )
        one = max(map(costs, space.alone))
        most = min(objective.examples, len(objective.task.data["validation"]))
        examples = compared_examples(most, afforded, min(space.size, MOST_SCORED), one)

        def score(path: Path) -> Point | None:
            if self.log.get(spelled(path)) is None:
                try:
                    point = held_out(follow(supernet, path), objective.task, objective.settings.batch_size, examples)
                    point = replace(point, spent=examples * costs(path))
                    self.log.add(spelled(path), point.to_dict())
                except NotFiniteError as error:
                    self.log.add(spelled(path), {"failed": str(error)})
            return self._kept(path)

        return score, costs

    def _kept(self, path: Path) -> Point | None:
        record = self.log.get(spelled(path)) or {}
        return Point.read(record) if "loss" in record else None


def _trainable_copy(objective: Objective) -> ManticorePreTrainedModel:
    """A copy of the supernet with what trains marked, as candidates have it."""
    tokenizer = getattr(objective.supernet, "tokenizer", None)
    supernet = copy.deepcopy(objective.supernet, {id(tokenizer): tokenizer})
    return objective.prepared(supernet)


def step_costs(supernet: ManticorePreTrainedModel, settings: Finetune, length: int) -> PathCosts:
    """FLOPs of a training step of every path, as ``requires_grad`` stands; changes which path the supernet follows."""
    tables = [supernet.component(k).get_input_embeddings() for k in range(supernet.config.num_components)]

    def cost(path: Path) -> int:
        with as_trained(supernet, settings):
            return flops_per_step(follow(supernet, path), settings.batch_size, length)

    return PathCosts(
        cost,
        additive=all(weight.requires_grad for table in tables for weight in table.parameters()),
    )
