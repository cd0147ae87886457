"""Genomes as a space of designs: whatever is mutated, crossed and repaired builds and runs; sizes, depth, refusals."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_designs import searched

from manticore.errors import ManticoreError
from manticore.search.designs.evolution import offspring
from manticore.search.designs.genomes import GenomeSpace
from manticore.search.designs.space import Design
from manticore.search.designs.variation import crossover, mutate
from manticore.stacks.configuration import StackConfig
from manticore.stacks.genome import encode
from manticore.stacks.modeling import StackForCausalLM

SPACE = GenomeSpace(livs=4, least=2, width=16, norms=["rms", "layer"], residuals=["pre", "post", "output"])


def _drawn(draws: random.Random) -> Design:
    return SPACE.repaired(tuple(draws.choice(values) for values in SPACE.values), draws)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_crossed_mutated_and_repaired_builds_and_runs(seed: int) -> None:
    draws = random.Random(seed)
    raw = mutate(crossover(_drawn(draws), _drawn(draws), 2, draws), SPACE.values, 0.3, draws)
    design = SPACE.repaired(raw, draws)
    assert SPACE.problem(design) is None
    assert SPACE.repaired(design, draws) == design
    assert SPACE.read(SPACE.spelled(design)) == design
    config = SPACE.config(design, vocab_size=7, positions=8)
    assert encode(config) == SPACE.genome(design)
    assert StackConfig(**config.to_diff_dict()).layers == config.layers
    torch.manual_seed(0)
    model = StackForCausalLM(config)
    tokens = torch.randint(7, (2, 5))
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


def test_every_class_alone_and_below_itself_with_all_that_it_can_share() -> None:
    for operator in range(1, 18):
        space = GenomeSpace(livs=2, width=16, classes=[operator])
        for design in space.designs():
            StackForCausalLM(space.config(design, vocab_size=7, positions=8))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        # alone: the classes; two: weights shared or not, features not or in one way (attention) or two
        ({"livs": 1}, 17),
        ({"livs": 2, "classes": ["sa-1"]}, 4),
        ({"livs": 2, "classes": ["rec-1"]}, 6),
        ({"livs": 2, "classes": ["sa-1", "rec-1"]}, 12),
        # another class of the family can give features, not weights
        ({"livs": 2, "classes": ["sa-1", "sa-3"]}, 4 + 4 + 2 + 2),
        ({"livs": 2, "classes": ["sa-1"], "least": 1}, 5),
        ({"livs": 2, "classes": ["sa-1"], "norms": ["rms", "layer"], "residuals": ["pre", "post"]}, 16),
        # all 5 x 5 but the one in which LIV 3 has the weights of LIV 2 for what that one reuses
        ({"livs": 3, "classes": [9]}, 24),
    ],
)
def test_the_size_of_small_spaces_is_that_of_their_list(options: dict[str, object], size: int) -> None:
    space = GenomeSpace(width=16, **options)
    designs = list(space.designs())
    assert (len(designs), len(set(designs)), space.size) == (size,) * 3
    assert all(space.problem(each) is None and space.repaired(each, random.Random(0)) == each for each in designs)
    assert all(space.read(space.spelled(each)) == each for each in designs)


def test_a_space_of_eight_is_told_without_a_list() -> None:
    assert 1e11 < GenomeSpace(livs=8).size < 1e14


def test_the_key_makes_the_space_again() -> None:
    space = GenomeSpace(livs=3, width=16, classes=["sa-1", 5, "12113"], options={"sa-1": {"num_heads": 2}}, least=2)
    arguments = {name: value for name, value in space.key.items() if name != "kind"}
    assert GenomeSpace(**arguments).key == space.key
    assert list(space.operators) == [1, 5, 12113]
    design = space.read("11111-12113.1.1.1.1")
    assert space.config(design, vocab_size=7, positions=8).layers == [
        ["sa-1", {"num_heads": 2}],
        ["liv", {"code": "12113"}],
    ]


def test_weights_are_not_taken_from_who_has_none() -> None:
    # LIV 2 reuses the keys and values of LIV 1 and so has no maps for them, which LIV 3 would need
    with pytest.raises(ManticoreError, match=r"LIV 3 .* shares weights .* with LIV 2 .* has none for the features"):
        GenomeSpace(livs=3, width=16).read("11112-11212-11221")
    space = GenomeSpace(livs=3, width=16)
    repaired = space.repaired((0, 0, 1, 1, 1, 1, 2, 1, 2, 2, 1, 2, 1, 2, 2, 2, 1), random.Random(0))
    assert space.spelled(repaired) == "11112-12112-13121"


def test_evolution_of_genomes_mends_its_offspring_and_counts_them() -> None:
    space = GenomeSpace(livs=5, width=16)

    def measure(design: Design) -> dict[str, float]:
        return {"loss": -sum(liv.operator == 7 for liv in space.genome(design).livs)}

    scores, batches = searched("evolution", space, measure, 16 + 4 * 14, population=16, generations=4)
    assert all(space.problem(design) is None for batch in batches for design in batch)
    counts = offspring(scores.notes.values())
    assert 0 < sum(row["invalid"] for row in counts) < sum(row["made"] for row in counts)
    assert all(scores.notes[design]["repaired"] in (True, False) for design in batches[-1])
    assert scores.values(scores.best() or ()) < scores.values(min(batches[0], key=scores.values))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("11111-11111", "genome: 2 LIVs (expected 3). Fix"),
        ("11111-11111-91111", "LIV 3, integer 1 (class) is 9 (expected one of 1, 5 in this space)"),
        ("11111-11111-51211-", "LIV 4 has 0 integers"),
        ("v1.layer.pre_11111-11111-11111", "norms: unknown 'layer'"),
        (
            "11211-51211-11111",
            "LIV 2 (rec-1) shares weights in featurizer group 1 with LIV 1 (sa-1), which is of",
        ),
    ],
)
def test_text_of_no_design_of_this_space_is_refused(text: str, said: str) -> None:
    with pytest.raises(ManticoreError) as raised:
        GenomeSpace(livs=3, width=16, classes=["sa-1", "rec-1"]).read(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": []}, "genomes: no classes"),
        ({"classes": ["sa-5"]}, "no class is called 'sa-5'. Did you mean 'sa-"),
        ({"classes": [18]}, "no class is called 18 (expected 1 to 17)"),
        ({"classes": ["sa-1", 1]}, "classes: 1 is given twice"),
        (
            {"classes": ["99999"]},
            "genomes: operator code '99999': position 2, token mixing, is '9' (expected 1 behind 9)",
        ),
        ({"norms": ["batch"]}, "norms: unknown 'batch' (expected one of rms, layer)"),
        ({"options": {"mamba": {}}}, "options: unknown 'mamba'"),
        ({"options": {"sa-1": {"heads": 2}}}, "unknown option 'heads'"),
        ({"width": 10, "options": {"sa-1": {"num_heads": 4}}}, "heads do not divide width 10"),
        ({"livs": "x"}, "genomes: livs is 'x' (expected a whole number). Fix: give 1 to"),
        ({"classes": "sa-1"}, "genomes: classes is 'sa-1' (expected a list of classes). Fix: classes=['sa-1'"),
        ({"options": {"sa-1": 2}}, "genomes: options is {'sa-1': 2} (expected options by layer names)"),
        ({"least": 9}, "least is 9 (expected 1 to 8)"),
        # a layer under two names would be trained twice
        ({"classes": ["sa-1", "12123"]}, "classes: 12123 is the operator of sa-1"),
        ({"classes": [12113], "options": {"liv": {"code": "12123"}}}, "options: liv: the code is the genome's"),
    ],
)
def test_spaces_that_cannot_be_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ManticoreError) as raised:
        GenomeSpace(**options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_integers_have_readable_names_and_values():
    labels = SPACE.labels
    assert [len(called) for _, called in labels] == [len(legal) for legal in SPACE.values]
    assert len({name for name, _ in labels}) == len(labels)
    assert labels[:3] == [("norm", ("rms", "layer")), ("residual", SPACE.residuals), ("LIV 01 class", labels[2][1])]
    assert labels[2][1][:2] == ["none", "sa-1"]
    others = GenomeSpace(livs=1, width=16, classes=["12113", "12123"]).labels
    assert others[2] == ("LIV 01 class", ["12113", "12123"])
