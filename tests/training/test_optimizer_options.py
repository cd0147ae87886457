"""Options of the optimizer: betas, epsilon, what decays, and no clipping."""

import math

import pytest
from copying_task import copying_task

from manticore.errors import ManticoreError
from manticore.schema.loading import load_recipe
from manticore.settings import Finetune
from manticore.training.finetune import finetune
from manticore.training.trainer import TaskTrainer, training_arguments
from tests.conftest import gpt_neo

OFFICIAL = {"weight_decay": 0.1, "decay": "all", "adam_betas": [0.9, 0.98], "adam_eps": 1e-9, "max_grad_norm": 0}
"""Adam of the Long Range Arena's released code."""


def made(tmp_path, *, decay="maps", **options):
    task, model = copying_task(), gpt_neo(8)
    settings = Finetune(steps=1, batch_size=4, weight_decay=0.1, warmup_steps=0, **options)
    run = {"log_steps": 1, "saves": False, "seed": 0, "data_seed": 0, "bf16": False, "cpu": True}
    trainer = TaskTrainer(model, training_arguments(tmp_path, settings, **run), task, decay=decay)
    return model, trainer.create_optimizer()


def test_they_reach_the_optimizer(tmp_path):
    model, optimizer = made(tmp_path, decay="all", adam_betas=[0.9, 0.98], adam_eps=1e-9)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters()}
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.9, 0.98, 1e-9)}
    model, optimizer = made(tmp_path)
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.dim() < 2} <= spared
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.9, 0.999, 1e-8)}


def test_no_clipping_is_no_clipping():
    def losses(norm):
        run = finetune(gpt_neo(8), copying_task(), steps=3, batch_size=4, lr=1e-2, max_grad_norm=norm, log_steps=1)
        return [row["loss"] for row in run.history]

    assert losses(0) == losses(1e9)
    # Adam forgets the scale of gradients, but for its epsilon
    assert losses(0) != losses(1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adam_betas": [0.9]}, r"adam_betas is \[0.9\] .expected two numbers"),
        ({"adam_betas": [0.9, 1.0]}, "expected two numbers from 0 to below 1"),
        ({"adam_betas": [math.nan, 0.9]}, "expected two numbers from 0 to below 1"),
        ({"adam_eps": 0.0}, "adam_eps is 0.0 .expected a number above 0"),
        ({"decay": "norms"}, "decay is 'norms' .expected 'maps' or 'all'"),
    ],
)
def test_impossible_ones_end_in_one_line(options, message):
    with pytest.raises(ManticoreError, match=message) as caught:
        finetune(gpt_neo(8), copying_task(), steps=1, batch_size=4, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "image", "pathfinder32", "path-x"])
def test_the_recipes_of_the_arena_train_with_its_released_optimizer(task):
    recipe = load_recipe(f"lra-{task}").recipe
    decay = 0.1 if task in ("listops", "text", "retrieval") else 0.0
    clipping = 1.0 if task == "path-x" else 0
    for section in (recipe.search, recipe.finetune):
        found = {name: getattr(section, name) for name in OFFICIAL}
        assert found == {**OFFICIAL, "weight_decay": decay, "max_grad_norm": clipping}


def test_the_published_recipe_has_the_released_settings():
    recipe = load_recipe("manticore-published").recipe
    search = recipe.search
    assert (recipe.combine.mixing, recipe.combine.released, recipe.align) == ("gated", True, None)
    assert recipe.combine.projector_options == {"init": "default"}
    assert (search.lr, search.weight_decay, search.decay, search.schedule, search.warmup_steps) == (
        2e-4, 0.01, "all", "linear", 0,
    )  # fmt: skip
    assert (search.mixture_weight_decay, search.mixture_schedule, search.mixture_warmup_steps) == (0.01, "linear", 0)
    assert (search.temperature, search.final_temperature) == (1.0, 1.0)
