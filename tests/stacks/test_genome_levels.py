"""The levels below a backbone genome are those of the layers that are built."""

from __future__ import annotations

import pytest

from manticore.errors import ManticoreError
from manticore.stacks.catalogue import measured
from manticore.stacks.genome_levels import FEATURIZERS, levels
from manticore.stacks.liv.codes import POOL, OperatorCode

WIDTH = 32
NAMES = {"keys": "B", "values": "V", "B": "B", "V": "V", "kernel": "K"}
"""What layers hand on → its group."""


def test_the_published_example_at_all_levels() -> None:
    found = levels("21211-31112-21221-32112")
    assert [each.operator for each in found] == [OperatorCode.read(code) for code in ("22123", "32123") * 2]
    assert [len(each.featurizer) for each in found] == [3, 3, 3, 3]
    assert [group.repeat for group in found[1].featurizer] == [1, 4, 4]
    assert not any(each.differential for each in found)


def test_operators_beside_the_pool_and_differences() -> None:
    beside, difference = levels("12113.1.1.1.1-14.1.1.1.1")
    assert beside.operator == OperatorCode(1, 2, 1, 1, 3)
    assert (difference.operator, difference.differential) == (OperatorCode.read("54111"), True)
    with pytest.raises(ManticoreError, match="LIV 1, integer 1"):
        levels("13111.1.1.1.1")


@pytest.mark.parametrize("operator", range(1, 18))
def test_featurizers_are_what_is_built(operator: int) -> None:
    (level,) = levels(f"{operator}.1.1.1.1")
    groups = {group.name: group for group in level.featurizer}
    mixer = measured(POOL[operator - 1], WIDTH, 8)
    handed = {name for group in mixer.feature_groups for name in group} - {"decay"}
    assert {NAMES[name] for name in handed} == groups.keys() - {"C"}
    copies = 1 + level.differential
    if level.operator.token_mixing == 2:
        # keys and values of a token, before they are repeated
        kept = groups["B"].expansion + groups["V"].expansion
        assert mixer.state_size(3) - mixer.state_size(2) == copies * kept * WIDTH
    if level.operator.token_mixing == 4:
        assert mixer.state_size(1) == copies * groups["B"].expansion * groups["V"].expansion * WIDTH


def test_there_are_nine_featurizers() -> None:
    assert sorted(FEATURIZERS) == list(range(1, 10))
    assert all(group.expansion * group.repeat >= 1 for groups in FEATURIZERS.values() for group in groups)
