"""What a study of designs will cost, from configurations alone."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from manticore.design_settings import Design as Settings
from manticore.schema.designs import DesignRecipe
from manticore.search.designs.data import tokenizer_of
from manticore.search.designs.design import asking_of, example_of, made_space, scores_of
from manticore.search.designs.evolution import most_trials
from manticore.search.designs.measures import training_flops
from manticore.search.designs.study import baselines
from manticore.search.designs.training import DesignTraining, Made
from manticore.seeding import derive_seed
from manticore.stacks.sizes import layer_parameters
from manticore.tasks.mad.protocol import choose_protocol, tier_settings

_SAMPLED = 32
"""Designs drawn at random that stand for those of the search; a space of no more is counted whole."""


@dataclass(frozen=True)
class StudyPlan:
    """All that is known before a study."""

    name: str
    designs: int
    """Of the space, at most."""
    trials: int
    """Designs that are trained, at most."""
    baselines: int
    repeats: int
    tokens: int
    """Of text that each training reads."""
    parameters: tuple[int, int, int]
    """Of a design drawn at random, embeddings and head left out: least, median, most."""
    flops_of_one: tuple[int, int, int]
    """Of training one: least, median, most."""
    flops: int
    """Of all trainings, where designs cost what those drawn at random do."""
    workers: int
    seconds: float | None
    """On all workers of this machine; None where no speed is known."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def plan_study(recipe: DesignRecipe, *, flops_per_second: float | None = None, measure: int | None = None) -> StudyPlan:
    """Count what a study will train.

    Args:
        recipe: checked.
        flops_per_second: what each worker reaches.
        measure: instead of that: train a design for so many steps here, and time it.

    Raises:
        ManticoreError: what the space or the method refuses, text that cannot be read.
    """
    settings = recipe.design
    space = made_space(settings)
    # a method that cannot go on says so at its first batch
    next(asking_of(settings, scores_of(settings, space), recipe.seed))
    draws = random.Random(derive_seed(recipe.seed, "design plan"))
    if space.size <= _SAMPLED:
        drawn = list(space.designs())
    else:
        drawn = [space.repaired(tuple(map(draws.choice, space.values)), draws) for _ in range(_SAMPLED)]
    makes = [partial(space.config, design) for design in drawn]
    hand_made = list(baselines(example_of(space)).values()) if settings.baselines else []
    makes.sort(key=lambda make: _flops(settings, make))
    costs = [_flops(settings, make) for make in makes]
    # layers have the same parameters with any vocabulary
    sizes = sorted(layer_parameters(make(vocab_size=16, positions=settings.length)) for make in makes)
    trials = min(settings.trials, space.size)
    if settings.method == "evolution":
        trials = most_trials(trials, **settings.method_options)
    whole = trials * statistics.mean(costs) + sum(_flops(settings, make) for make in hand_made)
    if measure is not None:
        flops_per_second = _measured(settings, makes[len(makes) // 2], measure, recipe.seed)
    seconds = None if flops_per_second is None else whole / (flops_per_second * settings.workers)
    tokens = 0 if settings.text is None else settings.training_steps * settings.batch_size * settings.length
    return StudyPlan(
        recipe.name, space.size, trials, len(hand_made), settings.repeats, tokens,
        _spread(sizes), _spread(costs), round(whole), settings.workers, seconds,
    )  # fmt: skip


def _spread(values: list[int]) -> tuple[int, int, int]:
    return values[0], values[len(values) // 2], values[-1]


def _flops(settings: Settings, make: Made) -> int:
    """Of all trainings of a design."""
    one = 0
    if settings.text is not None:
        config = make(vocab_size=len(tokenizer_of(settings.tokenizer)), positions=settings.length)
        one += settings.training_steps * settings.batch_size * training_flops(config, settings.length)
    if settings.mad_tasks:
        protocol = choose_protocol("published", tier=settings.mad_tier, selection="validation")
        epochs = settings.mad_epochs or protocol.epochs
        for setting in tier_settings(settings.mad_tier, list(settings.mad_tasks)):
            length = int(setting.options["seq_len"])
            config = make(vocab_size=int(setting.options["vocab_size"]), positions=length)
            examples = len(protocol.grid) * epochs * setting.num_train_examples
            one += examples * training_flops(config, length)
    return settings.repeats * one


def _measured(settings: Settings, make: Made, steps: int, seed: int) -> float:
    """FLOPs per second of a training of so many steps, everything around it included."""
    short = settings.model_copy(update={"steps": steps, "tokens": None, "repeats": 1, "mad_tasks": [], "stop": None})
    training = DesignTraining(short, seed=seed)
    training.prepare()
    begun = time.perf_counter()
    found = training.of_config(make, "plan")
    return found.flops / (time.perf_counter() - begun)
