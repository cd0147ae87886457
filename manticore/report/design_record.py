"""Typed reading of ``study.json``, the record of an architecture search, and all that its page knows.

It is believed only where its parts fit together: a page of designs that nobody trained would show something wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.experiments.motifs import links_of
from manticore.file_names import STUDY
from manticore.quantities import shorten
from manticore.reading import read_object
from manticore.report.typed_reading import TypedReader, printable
from manticore.search.designs.scores import Goal

_FIX = "run manticore design again, which takes up what is finished"
_MOST_LAYERS = 1024
_LONGEST_NAME = 26


@dataclass(frozen=True)
class Layer:
    """One entry of a design's layers."""

    name: str
    options: dict[str, Any]
    sharing: dict[str, Any]

    @classmethod
    def from_json(cls, reader: TypedReader, value: Any, at: str) -> Layer:
        """From a name, a name with options, or these with what is shared.

        Raises:
            ManticoreError: anything else.
        """
        parts = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
        kinds = (str, dict, dict)
        if not isinstance(parts, list) or not 1 <= len(parts) <= 3 or not all(map(isinstance, parts, kinds)):
            raise reader.wrong(at, value, "a name, its options and what it shares")
        name, options, sharing = [*parts, {}, {}][:3]
        known: dict[str, Any] = {"weights_of": int, "features_of": int, "features": tuple[str, ...]}
        shared = {key: reader.read(known[key], item, f"{at}.{key}") for key, item in sharing.items() if key in known}
        return cls(printable(name), options, shared)

    @property
    def label(self) -> str:
        """The class that it is counted as: its name, and the code of an operator that has no name of its own."""
        code = self.options.get("code")
        return f"{self.name} {printable(code)}" if isinstance(code, str) else self.name


@dataclass(frozen=True)
class Trained:
    """A design of the search or a baseline: what it is and what it has scored."""

    layers: tuple[Layer, ...] = ()
    measures: dict[str, float | None] = field(default_factory=dict)
    repeats: tuple[dict[str, float | None], ...] = ()
    """What each training gave, one mapping per seed."""
    curve: tuple[tuple[float | None, ...], ...] = ()
    """Pairs of tokens and held-out loss."""
    flops: float | None = None
    """Of its training."""
    seconds: float | None = None
    failed: str = ""
    """Why it has no scores."""
    stopped: int | None = None
    """The tokens after which it was stopped early."""
    taken_over: bool = False
    """Whether another study has trained it."""
    folder: str = ""
    """Where it was saved, inside the study's folder."""

    @property
    def entries(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Its layers for :mod:`~manticore.experiments.motifs`, by their labels."""
        return [(layer.label, layer.options, layer.sharing) for layer in self.layers]

    @property
    def points(self) -> list[tuple[float, float]]:
        """The learning curve, without what diverged."""
        return [(pair[0], pair[1]) for pair in self.curve if pair[0] is not None and pair[1] is not None]

    @property
    def tokens(self) -> float | None:
        """How many it was trained on."""
        return max((tokens for tokens, _ in self.points), default=None)

    def is_scored(self, goals: Sequence[Goal]) -> bool:
        """Whether it was trained to the end and has every measure that it is judged by."""
        return not self.failed and self.stopped is None and all(self.measures.get(g.measure) is not None for g in goals)

    def point(self, goals: Sequence[Goal]) -> tuple[float, ...]:
        """One number per goal, the smaller the better; only of what :meth:`is_scored`."""
        values = [(self.measures[goal.measure] or 0.0, goal.maximise) for goal in goals]
        return tuple(-value if maximise else value for value, maximise in values)


@dataclass(frozen=True)
class Trial(Trained):
    design: str = ""
    generation: int | None = None
    batch: int | None = None
    parents: tuple[str, ...] = ()
    made: int = 0
    """Children that were bred until it was found,"""
    invalid: int = 0
    """those of them that were no legal designs,"""
    duplicates: int = 0
    """and those that were known."""


@dataclass(frozen=True)
class Baseline(Trained):
    name: str = ""


@dataclass(frozen=True)
class Objective:
    measure: str = ""
    maximise: bool = False


@dataclass(frozen=True)
class Study:
    name: str = ""
    space: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    objectives: tuple[Objective, ...] = ()
    max: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    trials: tuple[Trial, ...] = ()
    generations: tuple[tuple[str, ...], ...] = ()
    """Populations, or batches, as spelled designs."""
    front: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    flops: float | None = None
    """Of all its own trainings, baselines included."""
    unfinished: bool = False

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        return tuple(Goal(each.measure, each.maximise) for each in self.objectives)

    @cached_property
    def by_design(self) -> dict[str, Trial]:
        return {trial.design: trial for trial in self.trials}

    @cached_property
    def scored(self) -> list[Trial]:
        """The designs that were trained to the end and have all measures that they are judged by.

        Shorter lists that incremental methods grow designs from are none.
        """
        whole = self.space.get("layers") if self.space.get("grown_by") else 0
        least = whole if isinstance(whole, int) else 0
        return [trial for trial in self.trials if trial.is_scored(self.goals) and len(trial.layers) >= least]

    @cached_property
    def ranked(self) -> list[Trial]:
        """Those of them that keep the limits, the best by the first objective first, equal ones by the next."""
        return sorted(filter(self.allows, self.scored), key=lambda trial: trial.point(self.goals))

    @cached_property
    def spent(self) -> float | None:
        """FLOPs of the search's own trainings; those of everything where the trials do not say."""
        known = [trial.flops for trial in self.trials if trial.flops is not None]
        return sum(known) if known else self.flops

    @cached_property
    def rivals(self) -> list[Baseline]:
        """The baselines of which the same is true."""
        return [baseline for baseline in self.baselines if baseline.is_scored(self.goals)]

    @cached_property
    def best(self) -> Trial | None:
        """Of the front, the best by the first objective."""
        front = [self.by_design[name] for name in self.front]
        return min((t for t in front if t.is_scored(self.goals)), key=lambda t: t.point(self.goals), default=None)

    def called(self, trial: Trial) -> str:
        """A design in a sentence: its own name, or its rank where that is long."""
        if len(trial.design) <= _LONGEST_NAME:
            return trial.design
        return f"design {self.ranked.index(trial) + 1} ({shorten(trial.design, _LONGEST_NAME)})"

    def allows(self, entry: Trained) -> bool:
        """Whether something keeps all limits; what was not measured does not."""
        most = [(entry.measures.get(name), -1, limit) for name, limit in self.max.items()]
        least = [(entry.measures.get(name), 1, limit) for name, limit in self.least.items()]
        return all(value is not None and side * value >= side * limit for value, side, limit in most + least)

    @cached_property
    def batches(self) -> list[list[Trial]]:
        """The generations, or batches, in order; where the record lists none, as the trials themselves say."""
        if self.generations:
            return [[self.by_design[name] for name in names] for names in self.generations]
        found: dict[int, list[Trial]] = {}
        for place, trial in enumerate(self.trials):
            own = trial.generation if trial.generation is not None else trial.batch
            found.setdefault(place if own is None else own, []).append(trial)
        return [found[place] for place in sorted(found)]


def read_study(folder: str | Path) -> Study:
    """Read ``study.json`` in the folder of a study.

    Raises:
        ManticoreError: no such file, not JSON, no trials, or parts that do not fit together.
    """
    path = Path(folder) / STUDY
    raw = read_object(path, _FIX)
    if raw is None:
        raise ManticoreError(f"{path}: no such file. Fix: give the folder of a study that manticore design has written")
    return parse_study(raw, where=str(path))


def parse_study(raw: Mapping[str, Any], *, where: str = STUDY) -> Study:
    """The same from a mapping already in memory; keys that are not known are ignored.

    Raises:
        ManticoreError: no trials, a value of a wrong kind, or parts that do not fit together.
    """
    reader = TypedReader(where, _FIX)
    study: Study = reader.read(Study, raw)
    for at, got, expected in _misfits(study):
        raise reader.wrong(at, got, expected)
    return study


def as_study(study: Study | Mapping[str, Any]) -> Study:
    """``study`` itself, or parsed where it is still a plain mapping."""
    return study if isinstance(study, Study) else parse_study(study)


def _misfits(study: Study) -> Iterator[tuple[str, object, str]]:
    """What does not fit together: the place, what stands there, what should."""
    if not study.objectives or not all(each.measure for each in study.objectives):
        yield "objectives", [each.measure for each in study.objectives], "at least one measure, each with a name"
    if not study.trials:
        yield "trials", 0, "at least one trial: the study has not begun"
    if len(study.by_design) < len(study.trials):
        yield "trials", f"{len(study.trials)} trials", f"each design once, of {len(study.by_design)}"
    for place, names in enumerate(study.generations):
        for name in names:
            if name not in study.by_design:
                yield f"generations[{place}]", name, "designs of the trials"
    for name in study.front:
        front = study.by_design.get(name)
        if front is None or front.failed or any(front.measures.get(goal.measure) is None for goal in study.goals):
            yield "front", name, "designs of the trials that have scores"
    for part, entries in (("trials", study.trials), ("baselines", study.baselines)):
        for place, entry in enumerate(entries):
            yield from _unsound(entry, f"{part}[{place}]")


def _unsound(entry: Trained, at: str) -> Iterator[tuple[str, object, str]]:
    if not 1 <= len(entry.layers) <= _MOST_LAYERS:
        yield f"{at}.layers", len(entry.layers), f"1 to {_MOST_LAYERS} layers"
    for link in links_of(entry.entries):
        if not 0 <= link.below < link.above:
            yield f"{at}.layers[{link.above}]", link.below, "a lower layer to share with"
    for pair in entry.curve:
        if len(pair) != 2:
            yield f"{at}.curve", pair, "pairs of tokens and loss"
