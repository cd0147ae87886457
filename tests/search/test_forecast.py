"""What a search over candidates will cost is what it counts afterwards."""

import pytest
import torch
from tiny_search import recall
from transformers import AutoModelForCausalLM

import manticore
from manticore.plan.costing import Costing
from manticore.plan.planner import plan
from manticore.schema.recipe import Recipe
from manticore.search import beam, forecast, shared
from manticore.search.choice import Shared
from manticore.search.forecast import Forecast
from manticore.search.space import Space
from manticore.stages.search import candidate_prices
from manticore.training.shapes import small_config

SHAPES = {"gpt_neo": (3, 32), "mamba": (4, 24), "llama": (3, 16)}
"""Layers and width of parents that differ in both."""


def recipe(blocks, components, **search):
    families = list(SHAPES)[:components]
    sizes = {family: dict(zip(("layers", "width"), SHAPES[family])) for family in families}
    options = {"vocab_size": 8, "seq_len": 12, "num_validation_examples": 8, "num_test_examples": 8}
    return Recipe(
        name="small",
        seed=3,
        pretrain=[{"name": f, "family": f, "vocab_size": 48, **sizes[f]} for f in families],
        components=[{"name": family, "source": family} for family in families],
        task={"name": "mad/in-context-recall", "options": {**options, "num_train_examples": 64}},
        combine={"num_blocks": blocks},
        align=None,
        search={"batch_size": 4, "validation_examples": 32, **search},
        finetune={"steps": 12, "batch_size": 4, "trainable": search.get("trainable", "all")},
        compare=None,
    )


def searched(given):
    """The search of a recipe, without the stages before it."""
    configs = [small_config(family, layers=a, width=b) for family, (a, b) in SHAPES.items()][: len(given.components)]
    models = []
    for config in configs:
        config.vocab_size = 48
        torch.manual_seed(0)
        models.append(AutoModelForCausalLM.from_config(config))
    hybrid = manticore.combine(models, num_blocks=given.combine.num_blocks, check=False)
    costing = Costing(given, devices=1, memory=1e12, accelerator=False).of_candidates()
    prices = candidate_prices(costing, given.search, Space(given.combine.num_blocks, len(models)))
    section = given.search.model_copy(update={"finetune_flops": float(prices.unit)})
    return prices, manticore.search(hybrid, recall(), section, seed=given.seed, cpu=True)


@pytest.mark.parametrize(
    ("blocks", "components", "most", "search"),
    [
        (2, 3, 256, {"sampling": "layouts", "trainable": "lora", "shared_units": 0.7}),
        (3, 2, 6, {"sampling": "weighted"}),
    ],
    ids=["all", "beam"],
)
def test_a_plan_counts_what_a_search_counts(monkeypatch, blocks, components, most, search):
    for module in (beam, forecast, shared):
        monkeypatch.setattr(module, "MOST_SCORED", most)
    # without an end before the cap, only which paths race is not known before
    given = recipe(blocks, components, method="oneshot", gap=1e6, top=1, **search)
    planned = next(row for row in plan(given, device_memory=1e12).stages if row.name == "search")
    prices, found = searched(given)
    # a beam spends what so many drawn paths cost
    assert len(found.shared) == components**blocks or abs(len(found.shared) - most) <= 1
    asked = Shared(Space(blocks, components), given.search.shared_units or components / 2, given.search.sampling)
    marks = {tuple(each.path): tuple(point.mark for point in each.points) for each in found.candidates}
    course = Forecast(marks, asked, tuple(tuple(each.path) for each in found.shared))
    assert course.flops(prices) == found.flops
    # a parent that is the best by shared weights races once
    twice = components + 1 - len(marks)
    path = (0,) * blocks
    assert planned.flops - twice * prices.candidate(path, marks[path]) == pytest.approx(found.flops, rel=0.03)
