"""Measures of designs as people read them: their names, units and how they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manticore import quantities
from manticore.design_settings import OF_MAD
from manticore.search.designs.scores import Goal


@dataclass(frozen=True)
class Words:
    note: str
    """What it is, in a few words."""
    said: Callable[[float | None], str]
    """A value with its unit."""
    exact: bool = False
    """Whether it is counted: no seed moves it."""
    price: str = ""
    """What a design costs by it, for a sentence; empty where it is no price."""

    @property
    def trained(self) -> bool:
        """Whether it is a score, which another seed of the training gives another value of."""
        return not self.exact and not self.price


def _milliseconds(value: float | None) -> str:
    return quantities.MISSING if value is None else f"{value:.3g} ms"


def _number(value: float | None) -> str:
    return quantities.MISSING if value is None else f"{value:.4g}"


_WORDS = {
    "loss": Words("held-out nats per token", quantities.score),
    "bits_per_byte": Words("held-out", quantities.score),
    "mad": Words("mean over the tasks", quantities.score),
    "parameters": Words("without embeddings", quantities.count, exact=True, price="parameters"),
    "flops": Words("forward, per token", quantities.flops, exact=True, price="compute per token"),
    "cache_bytes": Words("with states", quantities.memory, exact=True, price="cache"),
    "state_bytes": Words("of fixed size", quantities.memory, exact=True, price="state"),
    "prefill_ms": Words("measured", _milliseconds, price="prefill time"),
    "decode_ms": Words("measured, per token", _milliseconds, price="decode time"),
    "peak_bytes": Words("in reading", quantities.memory, exact=True, price="peak memory"),
}
_OF_A_TASK = Words("of the task", quantities.score)
_UNKNOWN = Words("", _number)


def words(measure: str) -> Words:
    """Of any measure, also of one that another package has added."""
    return _OF_A_TASK if measure.startswith(OF_MAD) else _WORDS.get(measure, _UNKNOWN)


def said(measure: str, value: float | None) -> str:
    """A value with its unit."""
    return words(measure).said(value)


def name(measure: str) -> str:
    """``cache_bytes`` → ``cache bytes``: what can be broken over lines."""
    return quantities.shorten(measure.replace("_", " "), 40)


def direction(goal: Goal) -> str:
    """``higher is better`` or ``lower is better``."""
    return f"{'higher' if goal.maximise else 'lower'} is better"


def in_order(measures: list[str]) -> list[str]:
    """The measures that are known by name first, in their order, then the others as they come."""
    known = [measure for measure in _WORDS if measure in measures]
    return known + [measure for measure in measures if measure not in _WORDS]
