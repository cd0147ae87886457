"""A study of genomes through the verb, poor ones stopped early: ended, killed and resumed, by several workers."""

from __future__ import annotations

import json
import signal
import sys

import pytest
from tiny_designs import recipe, untimed
from workers import Worker

import manticore
from manticore.search.designs.genomes import GenomeSpace
from manticore.stacks.configuration import StackConfig

SPACE = {"livs": 3, "width": 8, "least": 2, "norms": ["rms", "layer"]}
STUDY = {
    "space": "genomes",
    "space_options": SPACE,
    "method_options": {"population": 4, "generations": 3},
    "trials": 8,
    "steps": 8,
    "stop": "median",
    "stop_after": 3,
}


def found(out):
    """The record of a study, without what a clock has measured."""
    return untimed(json.loads((out / "study.json").read_text()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, and what one worker alone finds."""
    folder = tmp_path_factory.mktemp("place")
    recipe(folder, **STUDY)
    code, said = Worker(["design", "tiny.yaml", "-o", "alone", "--cpu"], folder).end()
    assert code == 0, said
    return folder


def test_it_ends_with_genomes_that_load_and_can_be_made_larger(place, monkeypatch):
    record, space = found(place / "alone"), GenomeSpace(**SPACE)
    assert len(record["trials"]) == 8
    stopped = [trial["design"] for trial in record["trials"] if trial["stopped"]]
    assert stopped
    assert not set(stopped) & set(record["front"])
    rows = {trial["design"]: trial for trial in record["trials"]}
    for name in record["front"]:
        loaded = StackConfig.from_pretrained(place / "alone" / rows[name]["folder"])
        expected = space.config(space.read(name), vocab_size=258, positions=16)
        assert loaded.to_dict() == expected.to_dict()
        manticore.StackForCausalLM(loaded)
    folder = str(place / "alone" / rows[record["front"][0]]["folder"])
    words = ["scale", folder, "--parameters", "200K", "--how", "stack", "--width", "64", "-o", "larger"]
    code, said = Worker(words, place).end()
    assert code == 0, said
    assert len(StackConfig.from_pretrained(place / "larger").layers) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="processes that end with their caller are Linux's")
def test_a_killed_one_is_ended_by_two_workers_that_stop_the_same_poor_ones(place):
    words = ["design", "tiny.yaml", "-o", "killed", "--cpu"]
    code, said = Worker(words, place, end=(6, signal.SIGKILL)).end()
    assert code == -signal.SIGKILL, said
    code, said = Worker([*words, "design.workers=2", "--resume"], place).end()
    assert code == 0, said
    assert found(place / "killed") == found(place / "alone")
