"""Numbers as people read them: counts, FLOPs, bytes, seconds, scores. ``None`` is shown as an n-dash."""

from __future__ import annotations

import re

MISSING = "–"


def _scaled(value: float | None, base: float, prefixes: tuple[str, ...], unit: str) -> str:
    if value is None:
        return MISSING
    size, step = abs(value), 0
    while size >= base and step < len(prefixes) - 1:
        size /= base
        step += 1
    # 999.7 would print as "1000" at three digits; it belongs to the next prefix.
    if float(f"{size:.3g}") >= base and step < len(prefixes) - 1:
        size, step = size / base, step + 1
    digits = f"{size:.3g}" if size < 1000 else f"{size:.0f}"
    sign = "-" if value < 0 else ""
    return f"{sign}{digits} {prefixes[step]}{unit}".rstrip()


def count(value: float | None) -> str:
    """1234567 → ``1.23 M``."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"), "")


def flops(value: float | None) -> str:
    """2.5e12 → ``2.5 TFLOP``."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"), "FLOP")


def memory(value: float | None) -> str:
    """Bytes with binary prefixes: 2048 → ``2 KiB``."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), "")


def duration(seconds: float | None) -> str:
    """75.2 → ``1 min 15 s``."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def score(value: float | None) -> str:
    """A loss or a metric with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """A 95 % interval as ``[low, high]``; empty where there is none."""
    return "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def shorten(text: str, limit: int) -> str:
    """``text`` with an ellipsis in the middle where it is longer than ``limit``: both ends tell names apart."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def read_count(text: str) -> int | None:
    """``"350M"`` → 350,000,000, ``"1.5B"`` and ``"2e6"`` alike; None for what is no number of things."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([KMGBT]?)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    return round(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "T": 10**12}.get(match[2].upper(), 10**9))
