"""Genomes: what the published example decodes to, what is refused, and that repair makes legal ones of any."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manticore.errors import ManticoreError
from manticore.stacks.genome import decode, encode, repair
from manticore.stacks.genome_integers import NORMS, RESIDUALS, Genome, Liv
from manticore.stacks.genome_links import misfits
from manticore.stacks.liv.codes import POOL

EXAMPLE = "21211-31112-21221-32112"
LAYERS = [
    "sa-2",
    "sa-3",
    ["sa-2", {}, {"weights_of": 0}],
    ["sa-3", {}, {"features_of": 1, "features": ["keys", "values"]}],
]


def _livs(depth: int) -> st.SearchStrategy[Liv]:
    # few classes and groups, so that sharing meets
    classes, groups = st.sampled_from([1, 2, 5, 6, 7, 9, 17]), st.integers(1, 3)
    return st.builds(Liv, classes, groups, st.integers(1, 2), groups, st.integers(1, 3))


any_genomes = st.integers(1, 9).flatmap(
    lambda depth: st.builds(
        Genome,
        st.lists(_livs(depth), min_size=depth, max_size=depth).map(tuple),
        st.sampled_from(NORMS),
        st.sampled_from(RESIDUALS),
    )
)


def test_the_published_example_has_the_two_links_of_the_paper() -> None:
    assert decode(EXAMPLE) == LAYERS
    assert str(encode(LAYERS)) == EXAMPLE


@settings(max_examples=60, deadline=None)
@given(any_genomes, st.integers(0, 99))
def test_repaired_genomes_are_legal_and_canonical(genome: Genome, seed: int) -> None:
    repaired = repair(genome, random.Random(seed))
    assert not list(misfits(repaired, alone=True))
    assert [liv.operator for liv in repaired.livs] == [liv.operator for liv in genome.livs]
    assert repair(repaired, random.Random(seed + 1)) == repaired
    assert Genome.read(str(repaired)) == repaired
    assert encode(decode(repaired), norm=repaired.norm, residual=repaired.residual) == repaired


@settings(max_examples=60, deadline=None)
@given(any_genomes)
def test_repair_changes_nothing_that_a_legal_genome_means(genome: Genome) -> None:
    if list(misfits(genome)):
        with pytest.raises(ManticoreError, match="genome: LIV"):
            decode(genome)
    elif not list(misfits(genome, alone=True)):
        assert decode(repair(genome, random.Random(0))) == decode(genome)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        # alone in its group, or the others of the group do not share: nothing is shared
        ("12111-91111", ["sa-1", "gmemless"]),
        ("12211-12111", ["sa-1", "sa-1"]),
        # for attention all but the queries is keys and values
        ("11112-11113", ["sa-1", ["sa-1", {}, {"features_of": 0, "features": ["keys", "values"]}]]),
        # numbers of several digits; more LIVs than nine
        ("17.1.2.1.1-17.1.2.1.1", ["diff-gconv-2", ["diff-gconv-2", {}, {"weights_of": 0}]]),
        ("91111-" * 10 + "9.11.1.11.1", ["gmemless"] * 11),
        # both links at once, of different owners
        (
            "11212-11121-11212",
            ["sa-1", "sa-1", ["sa-1", {}, {"weights_of": 0, "features_of": 0, "features": ["keys", "values"]}]],
        ),
    ],
)
def test_what_groups_and_strategies_mean(text: str, layers: list[object]) -> None:
    assert decode(text) == layers
    assert decode(encode(layers)) == layers


def test_a_header_says_norm_and_residual_and_is_left_out_where_they_are_stars() -> None:
    genome = Genome.read(f"v1.layer.post_{EXAMPLE}")
    assert (genome.norm, genome.residual) == ("layer", "post")
    assert str(genome) == f"v1.layer.post_{EXAMPLE}"
    assert str(Genome.read(f"v1.rms.pre_{EXAMPLE}")) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "LIV 1 has 0 integers (expected 5"),
        ("11111-", "LIV 2 has 0 integers"),
        ("11111-2111", "LIV 2 has 4 integers"),
        ("121111", "LIV 1 has 6 integers (expected 5, with dots where one has several digits)"),
        ("1.1.1.1.1.1", "LIV 1 has 6 integers (expected 5)"),
        ("1x111", "LIV 1, integer 2 is 'x' (expected a number)"),
        ("1.1..1.1", "LIV 1, integer 3 is ''"),
        ("1.1.1.1.²", "LIV 1, integer 5 is '²'"),
        ("1.1.1.1." + "9" * 5000, "LIV 1, integer 5 is '999"),
        ("01111", "LIV 1, integer 1 (class) is 0 (expected 1 to 17"),
        ("11111-18.1.1.1.1", "LIV 2, integer 1 (class) is 18 (expected 1 to 17"),
        ("10111", "LIV 1, integer 2 (featurizer group) is 0 (expected 1 to 9)"),
        ("1.10.1.1.1", "LIV 1, integer 2 (featurizer group) is 10 (expected 1 to 9)"),
        ("11311", "LIV 1, integer 3 (featurizer strategy) is 3 (expected one of 1, 2)"),
        ("11114", "LIV 1, integer 5 (feature strategy) is 4 (expected one of 1, 2, 3)"),
        ("91211-11211", "LIV 2 (sa-1) shares weights in featurizer group 1 with LIV 1 (gmemless), which is of another"),
        ("91112-11112", "LIV 2 (sa-1) shares features in feature group 1 with LIV 1 (gmemless), which is of another"),
        ("v2.rms.pre_11111", "the header is 'v2.rms.pre' (expected v1.NORM.RESIDUAL)"),
        ("v1.rms_11111", "the header is 'v1.rms'"),
        ("v1.batch.pre_11111", "norm is 'batch' (expected one of rms, layer)"),
        ("v1.rms.prf_11111", "residual is 'prf'"),
    ],
)
def test_illegal_text_is_refused_in_one_line_that_says_where(text: str, said: str) -> None:
    with pytest.raises(ManticoreError) as raised:
        decode(text)
    assert said in str(raised.value)
    assert str(raised.value).startswith("genome: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    assert "Fix: " in str(raised.value) or "Did you mean" in str(raised.value)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "no LIVs"),
        (["mamba"], "layers[0] is 'mamba', which no genome holds"),
        ([["sa-1", {"num_heads": 2}]], "layers[0] (sa-1) has the options {'num_heads': 2}"),
        (["sa-1", ["sa-1", {}, {"weights_of": 1}]], "layers[1] shares with layers[1] (expected a lower layer)"),
        ([["sa-1", {}, {"weights_of": 1}], "sa-1"], "layers[0] shares with layers[1] (expected a lower layer)"),
        (["sa-1", ["sa-2", {}, {"weights_of": 0}]], "LIV 2 (sa-2) shares weights"),
        (["rec-1", ["sa-2", {}, {"features_of": 0, "features": ["keys", "values"]}]], "LIV 2 (sa-2) shares features"),
        (["sa-1", ["sa-1", {}, {"features_of": 0, "features": ["keys"]}]], "layers[1] shares the features keys"),
    ],
)
def test_layers_that_no_genome_holds_are_refused(layers: list[object], said: str) -> None:
    with pytest.raises(ManticoreError) as raised:
        encode(layers)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_chain_of_sharing_leads_to_its_first_layer() -> None:
    shares = {"features": ["keys", "values"]}
    layers = [
        "sa-1",
        ["sa-1", {}, {"weights_of": 0, "features_of": 0, **shares}],
        ["sa-1", {}, {"weights_of": 1, "features_of": 1, **shares}],
    ]
    assert decode(encode(layers))[2] == ["sa-1", {}, {"weights_of": 0, "features_of": 0, **shares}]


def test_options_of_all_layers_of_a_name_are_none_of_the_genome() -> None:
    layers = [["sa-1", {"num_heads": 2}], "gmemless"]
    assert str(encode(layers, layer_options={"sa-1": {"num_heads": 2}})) == "11111-91111"


def test_the_pool_has_the_published_order() -> None:
    assert len(POOL) == 17
    assert POOL[:9] == ("sa-1", "sa-2", "sa-3", "sa-4", "rec-1", "rec-2", "gconv-1", "gconv-2", "gmemless")
    assert POOL[9:] == tuple(f"diff-{name}" for name in POOL[:8])
