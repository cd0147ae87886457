"""One trial: what it measures, that it is a function of seed and design alone, and what stops it."""

from __future__ import annotations

import math

import pytest
import torch

from manticore.design_settings import Design
from manticore.errors import ManticoreError
from manticore.search.designs.data import byte_tokenizer, text_task
from manticore.search.designs.measures import costs, forward_flops, measured, training_flops
from manticore.search.designs.training import DesignTraining, Failed
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.training.budget import count_parameters, flops_per_step

WORDS = [f"the {a} {b} of the {c} is {d}.\n" * 8 for a in "abcd" for b in "efgh" for c in "ijkl" for d in "mnop"]
QUICK = {"text": WORDS, "length": 16, "batch_size": 4, "steps": 4, "validation_examples": 16, "lr": 1e-2}
AM, MM = ["attention", "swiglu"], ["swiglu", "swiglu"]


def settings(**changes):
    """Of a small text; ``text`` is in memory."""
    given = {**QUICK, "workload": "tokens=32,batch=2", **changes}
    text = given.pop("text")
    return Design(**given).model_copy(update={"text": text})


def making(layers):
    def make(*, vocab_size, positions):
        return StackConfig(layers=layers, vocab_size=vocab_size, hidden_size=8, max_position_embeddings=positions)

    return make


@pytest.fixture(scope="module")
def training():
    return DesignTraining(settings(), cpu=True)


def test_a_trial_is_a_function_of_seed_and_design(training):
    first = training.of_config(making(AM), "AM")
    between = training.of_config(making(MM), "MM")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = DesignTraining(settings(), cpu=True).of_config(making(AM), "AM")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert again.measures == first.measures
    assert again.curve == first.curve
    assert first.measures["loss"] != between.measures["loss"]
    other = DesignTraining(settings(), seed=1, cpu=True).of_config(making(AM), "AM")
    assert other.measures["loss"] != first.measures["loss"]
    assert [tokens for tokens, _ in first.curve] == [64 * step for step in range(1, 5)]
    assert first.measures["loss"] < math.log(258)
    assert first.measures["bits_per_byte"] > 0
    assert first.flops == 4 * 4 * training_flops(making(AM)(vocab_size=258, positions=16), 16)


def test_measures_are_means_over_repeats_each_with_its_own_seed():
    trained = DesignTraining(settings(repeats=2, steps=2), cpu=True).of_config(making(AM), "AM")
    losses = [values["loss"] for values in trained.repeats]
    assert losses[0] != losses[1]
    assert trained.measures["loss"] == pytest.approx(sum(losses) / 2)


def test_counted_costs_are_those_of_the_built_stack():
    config = making(["attention", "mamba", "swiglu"])(vocab_size=20, positions=32)
    model = StackForCausalLM(config)
    found = costs(config, settings().at)
    body = count_parameters(model.model.layers).total
    assert found["parameters"] == body
    assert forward_flops(config, 32) == flops_per_step(model, 1, 32, backward=False)
    assert found["flops"] == forward_flops(config, 32) / 32
    # keys and values of 32 tokens and Mamba's state, two sequences of bfloat16
    state = config.mixers()[1].state_size(1)
    assert found["state_bytes"] == 2 * 2 * (2 * 32 * 8 + state)
    assert costs(making(AM)(vocab_size=20, positions=32), settings().at)["cache_bytes"] == 2 * 2 * 2 * 32 * 8
    assert training_flops(config, 32) == pytest.approx(flops_per_step(model, 1, 32), rel=0.15)


def test_measured_costs():
    config = making(AM)(vocab_size=20, positions=64)
    model = StackForCausalLM(config)
    before = torch.get_num_threads()
    short, long = (
        measured(model, ["prefill_ms", "decode_ms", "peak_bytes"], settings(workload=w).at)
        for w in ("tokens=16", "tokens=64,batch=4")
    )
    assert all(value > 0 for value in (*short.values(), *long.values()))
    assert long["peak_bytes"] > short["peak_bytes"] > 4 * count_parameters(model).total
    assert torch.get_num_threads() == before


def test_what_is_poor_is_stopped_and_says_where(training):
    whole = training.of_config(making(AM), "AM")
    stopped = training.of_config(making(AM), "AM", most={3: whole.curve[2][1] - 1e-9})
    assert stopped.stopped == 3 * 64
    assert stopped.curve == whole.curve[:3]
    assert stopped.flops == whole.flops * 3 // 4
    kept = training.of_config(making(AM), "AM", most={3: whole.curve[2][1], 4: 0.0})
    assert kept.stopped is None
    assert kept.measures == whole.measures


def test_mad_scores_come_from_the_same_trial():
    chosen = settings(mad_tasks=["compression"], mad_epochs=1, objectives=["mad", "loss"], steps=1)
    found = DesignTraining(chosen, cpu=True).of_config(making(MM), "MM")
    assert 0 < found.measures["mad"] == found.measures["mad:compression"] < 1
    assert "loss" in found.measures
    assert found.flops > training_flops(making(MM)(vocab_size=16, positions=16), 16) * 1280


def test_what_diverges_or_cannot_be_built_is_a_failed_candidate():
    with pytest.raises(Failed, match="diverged"):
        DesignTraining(settings(lr=1e30), cpu=True).of_config(making(AM), "AM")
    with pytest.raises(Failed, match="heads do not divide"):
        DesignTraining(settings(), cpu=True).of_config(making(["mh-attention"]), "A")


def test_bytes_are_what_the_tokenizer_says():
    task, tokenizer = text_task(settings(text=["aé\n" * 400, "ß\x00z" * 400, "plain " * 900]))
    assert tokenizer is byte_tokenizer()
    assert task.vocab_size == len(tokenizer) == 258
    row = task.data["train"][0]
    assert row["targets"][:-1] == row["input_ids"][1:]
    assert tokenizer("aé\nß").input_ids == [tokenizer("a").input_ids[0], *tokenizer("é\nß").input_ids]
    assert len(tokenizer("é").input_ids) == 2
    with pytest.raises(ManticoreError, match="too short"):
        text_task(settings(text=["short"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": ["los"]}, "no measure is called 'los'. Did you mean 'loss'?"),
        ({"objectives": ["mad"]}, "mad is a mean over mad_tasks"),
        ({"objectives": ["mad:compression"]}, r"mad_tasks: \[compression\]"),
        ({"mad_tasks": ["compresion"]}, "Did you mean 'compression'?"),
        ({"objectives": ["loss", "maximise loss"]}, "loss is there twice"),
        ({"objectives": ["lower loss"]}, "'lower' is no direction"),
        ({"text": None}, "text is null"),
        ({"max": {"speed": 1.0}}, "no measure is called 'speed'"),
        ({"max": {"loss": -1.0}}, "loss is -1.0"),
        ({"stop": "median", "repeats": 2}, "of one training on a text"),
        ({"objectives": ["decode_ms"], "storage": "sqlite:///x.db"}, "decode_ms is timed"),
    ],
)
def test_objectives_that_cannot_be_computed_are_refused(options, said):
    with pytest.raises(ManticoreError, match=said) as refused:
        Design(**options)
    assert "\n" not in str(refused.value)
