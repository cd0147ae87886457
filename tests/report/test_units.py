"""Numbers as text."""

from __future__ import annotations

import pytest

from manticore.report import units


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (units.count, 0, "0"),
        (units.count, 999, "999"),
        (units.count, 999_600, "1 M"),
        (units.count, 1_234_567, "1.23 M"),
        (units.count, None, "–"),
        (units.flops, 2.5e12, "2.5 TFLOP"),
        (units.flops, 12, "12 FLOP"),
        (units.memory, 0, "0 B"),
        (units.memory, 1023, "1023 B"),
        (units.memory, 81_920, "80 KiB"),
        (units.duration, 0.04, "0.0 s"),
        (units.duration, 59.7, "1 min 00 s"),
        (units.duration, 75.2, "1 min 15 s"),
        (units.duration, 7260, "2 h 01 min"),
        (units.score, 0.98133, "0.981"),
        (units.score, None, "–"),
        (units.interval, (-0.5, 1.0), "[-0.500, 1.000]"),
        (units.interval, None, ""),
    ],
)
def test_numbers_read_well(function, value, text):
    assert function(value) == text


def test_shorten_keeps_both_ends():
    assert units.shorten("short", 5) == "short"
    assert units.shorten("abcdefghij", 5) == "ab…ij"
    assert len(units.shorten("x" * 300, 24)) == 24
