"""A search whose path must keep limits of cost."""

import json

import pytest
from copying_task import copying_task
from small_models import gpt_model, mamba_model

import manticore
from manticore.errors import ManticoreError, SeveralErrors
from manticore.hybrid.combine import combine
from manticore.search.candidates import COSTS
from manticore.settings import Search
from manticore.training.budget import cache_cost

QUICK = {"finetune_flops": 3e8, "lr": 1e-2, "batch_size": 8}
"""The first marks decide."""


@pytest.fixture(scope="module")
def supernet():
    return combine([gpt_model(), mamba_model()], num_blocks=2)


def test_a_limit_on_the_cache_leads_from_a_hybrid_to_the_recurrent_parent(supernet, tmp_path):
    free = manticore.search(supernet, copying_task(), **QUICK)
    assert free.path == [0, 1]
    assert free.costs.of((0, 1))["cache_bytes"] > 4000

    limits = {"max": {"cache_bytes": 4000}, "workload": "tokens=32"}
    bound = manticore.search(supernet, copying_task(), **QUICK, out=tmp_path, **limits)
    assert bound.path == [1, 1]
    assert cache_cost(bound.model, 32).bytes_per_token == 0
    assert bound.verdict.startswith("mamba alone is as good as any path that was looked at and keeps the limits")
    # parents are looked at all the same
    assert {tuple(candidate.path) for candidate in bound.candidates} == {(0, 0), (1, 1)}
    shown = {tuple(each["path"]): each["costs"] for each in bound.to_dict()["candidates"]}
    assert shown[0, 0]["cache_bytes"] > 4000 >= shown[1, 1]["cache_bytes"]
    assert bound.to_dict()["limits"] == {"cache_bytes": 4000}

    # its losers are gone, so that it cannot go on as a search that might choose one of them
    with pytest.raises(ManticoreError, match=r"was started with max="):
        manticore.search(supernet, copying_task(), **QUICK, out=tmp_path, resume=True, max={"cache_bytes": 9000})


def test_limits_that_nothing_keeps_train_nothing(supernet, tmp_path):
    with pytest.raises(ManticoreError) as caught:
        manticore.search(supernet, copying_task(), out=tmp_path / "searched", max={"cache_bytes": 10})
    assert str(caught.value) == (
        "search: max: no path keeps the limits at tokens=32,batch=1; the nearest is [1, 1], mamba, "
        "with cache_bytes 2304 (limit 10). Fix: higher limits"
    )
    assert not (tmp_path / "searched").exists()


def test_a_percentage_is_of_what_the_first_component_has_alone(supernet, tmp_path):
    # the other parent's cache is 2304 bytes at this workload
    given = {"max": {"cache_bytes": "90 %"}, "workload": "tokens=32"}
    bound = manticore.search(supernet, copying_task(), **QUICK, out=tmp_path / "searched", **given)
    alone = cache_cost(manticore.discretize(supernet, [0, 0]), 32)
    assert bound.limits == {"cache_bytes": pytest.approx(0.9 * 32 * alone.bytes_per_token)}
    assert not bound.costs.keeps((0, 0), bound.limits)
    assert bound.costs.keeps(tuple(bound.path), bound.limits)
    # a search that resumes may be told the number
    again = {**QUICK, **given, "max": bound.limits}
    manticore.search(supernet, copying_task(), **again, out=tmp_path / "searched", resume=True)


def test_a_percentage_of_nothing_is_refused(supernet):
    with pytest.raises(ManticoreError) as caught:
        manticore.search(supernet, copying_task(), max={"state_bytes": "60%"})
    assert str(caught.value) == (
        "search: max: state_bytes is 60% of what component 0 has alone, which is none at tokens=32,batch=1. "
        "Fix: a number"
    )


def test_times_stay_as_a_search_has_measured_them(supernet, tmp_path):
    settings = {**QUICK, "max": {"decode_ms": 1e6}}
    manticore.search(supernet, copying_task(), **settings, out=tmp_path)
    noted = json.loads((tmp_path / COSTS).read_text())
    assert noted["costs"]["decode_ms"]["blocks"]
    manticore.search(supernet, copying_task(), **settings, out=tmp_path, resume=True)
    assert json.loads((tmp_path / COSTS).read_text()) == noted


WRONG = {
    "cost": ({"max": {"cache_byte": 1}}, "max: no cost is called 'cache_byte'. Did you mean 'cache_bytes'?"),
    "number": (
        {"max": {"decode_ms": 0}},
        "max: decode_ms is 0 (expected a positive number, or a percentage of what the first component has). "
        "Fix: decode_ms=2e6, or decode_ms=60%",
    ),
    **{
        text: (
            {"max": {"parameters": text}},
            f"max: parameters is {text!r} (expected a positive number, or a percentage of what the first component "
            "has). Fix: parameters=2e6, or parameters=60%",
        )
        for text in ("1", "0%", "-5%", "sixty%", "1e2%", "٦٠%", "9" * 400 + "%")
    },
    "workload": ({"workload": "batch=2"}, "workload: 'batch=2' is none. Fix: tokens=4096,batch=1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_limits_are_named(name, supernet):
    given, expected = WRONG[name]
    with pytest.raises(SeveralErrors) as caught:
        manticore.search(supernet, copying_task(), **given)
    assert str(caught.value) == f"search: {expected}"


def test_methods_that_learn_weights_have_no_limits(supernet):
    with pytest.raises(ManticoreError, match=r"^search: method 'darts' has no max \(got .*\)\. Fix: leave it out$"):
        manticore.search(supernet, copying_task(), method="darts", max={"cache_bytes": 4000})


def test_a_workload_has_one_form():
    assert Search(workload=" tokens=64 , batch=2 ").workload == "tokens=64,batch=2"
    assert Search(workload="tokens=64").workload == "tokens=64,batch=1"
