"""Numbers as text."""

from __future__ import annotations

import pytest

from manticore import quantities


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (quantities.count, 0, "0"),
        (quantities.count, 999, "999"),
        (quantities.count, 999_600, "1 M"),
        (quantities.count, 1_234_567, "1.23 M"),
        (quantities.count, None, "–"),
        (quantities.flops, 2.5e12, "2.5 TFLOP"),
        (quantities.flops, 12, "12 FLOP"),
        (quantities.memory, 0, "0 B"),
        (quantities.memory, 1023, "1023 B"),
        (quantities.memory, 81_920, "80 KiB"),
        (quantities.duration, 0.04, "0.0 s"),
        (quantities.duration, 59.7, "1 min 00 s"),
        (quantities.duration, 75.2, "1 min 15 s"),
        (quantities.duration, 7260, "2 h 01 min"),
        (quantities.score, 0.98133, "0.981"),
        (quantities.score, None, "–"),
        (quantities.interval, (-0.5, 1.0), "[-0.500, 1.000]"),
        (quantities.interval, None, ""),
    ],
)
def test_numbers_read_well(function, value, text):
    assert function(value) == text


def test_shorten_keeps_both_ends():
    assert quantities.shorten("short", 5) == "short"
    assert quantities.shorten("abcdefghij", 5) == "ab…ij"
    assert len(quantities.shorten("x" * 300, 24)) == 24
