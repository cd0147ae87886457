"""Types of options: their ranges, the names they may be, and the marks that errors and help texts are made from.

Tasks, layers, projectors and plug-ins annotate their own options with them. Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WrapValidator
from pydantic_core import PydanticCustomError

from manticore import registry


class Named:
    """Marks a field as the name of a registered thing, for checks and for help texts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, name: str) -> str:
        if (refused := registry.refusal(self.kind, name)) is not None:
            raise wrong(refused)
        return name


class Wanted(NamedTuple):
    """Marks a type with what an error of a Python function says: ``lr is 0 (expected …). Fix: …``."""

    expected: str
    fix: str


class InPython(NamedTuple):
    """Marks a field that takes more in Python than in text: what is not text is handed on as it is."""

    annotation: str
    """What it takes there, for signatures and stubs."""
    loaded: bool = True
    """Whether that may be something in memory, which no check of these settings looks at."""
    also: tuple[str, ...] = ()
    """Texts that it takes there only."""


def wrong(text: str, at: str | None = None) -> PydanticCustomError:
    """An error with a text of its own.

    Args:
        text: one line.
        at: the field that it is about, where the whole of the settings is checked.
    """
    return PydanticCustomError("wrong", "{text}", {"text": text} if at is None else {"text": text, "at": at})


def marks(annotation: Any) -> Iterator[Any]:
    """What a type is marked with, from the outside in."""
    yield from reversed(getattr(annotation, "__metadata__", ()))
    for part in get_args(annotation):
        yield from marks(part)


def literals(annotation: Any) -> list[str]:
    """The texts a ``Literal`` annotation allows, also inside a union."""
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else literals(argument)
    return found


def _named(kind: str) -> Any:
    marker = Named(kind)
    return Annotated[str, AfterValidator(marker), marker]


def _scalar(value: Any) -> Any:
    # a union of the types would report once for each of them
    if value is not None and not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("scalar_type", "no single value")
    return value


def _nested(value: Any) -> Any:
    for inner in value.values() if isinstance(value, Mapping) else [value]:
        _nested(inner) if isinstance(inner, Mapping) else _scalar(inner)
    return value


def _exact(value: Any, check: Callable[[Any], float]) -> float:
    """A whole number stays one: a float would round a budget of 10¹⁶ FLOPs, and pay for a step fewer."""
    checked = check(value)
    return value if isinstance(value, int) else checked


def _rising(values: list[int]) -> list[int]:
    if values[0] != 0 or any(stop <= start for start, stop in pairwise(values)):
        raise wrong(
            f"{values} are no boundaries: the first segment starts at layer 0, and each has a layer or more. "
            "Fix: rising layer indices from 0 on, such as [0, 2, 3, 6]"
        )
    return values


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise wrong(f"{values} holds one twice. Fix: give different ones")
    return values


LARGEST_SHARE = 1e3
SMALLEST_BUDGET = 1e6
"""Budgets up to the one are shares of a fine-tuning, from the other on FLOPs: nobody means what lies between."""


def _ensembles(value: Any) -> Any:
    """One output stands for a list of it. On the command line, lists are all that there is: ``[False]`` is False."""
    given = value if isinstance(value, list) else [value]
    if len(given) == 1 and isinstance(given[0], bool):
        return given[0]
    if not all(isinstance(each, str) for each in given):
        raise wrong(f"{value!s:.60} is no name of an output. Fix: for instance bayes, or true or false")
    return _distinct([Named("output")(each) for each in given])


def _budgets(values: list[float]) -> list[float]:
    for value in values:
        if LARGEST_SHARE < value < SMALLEST_BUDGET:
            raise wrong(
                f"{value:g} is neither a share of the fine-tuning budget (0 to {LARGEST_SHARE:,.0f}) nor FLOPs "
                f"({SMALLEST_BUDGET:,.0f} or more). Fix: for instance 0.25, or 2e12"
            )
    return sorted(_distinct(values))


if TYPE_CHECKING:
    # a type checker cannot look into the function, and takes a variable for a type in some orders of modules only
    Mixing: TypeAlias = str
    Output: TypeAlias = str
    Projector: TypeAlias = str
    SearchMethod: TypeAlias = str
    DesignMethod: TypeAlias = str
    SpaceName: TypeAlias = str
    TaskName: TypeAlias = str
    Scalar: TypeAlias = bool | int | float | str | None
    TaskOption: TypeAlias = Scalar | Mapping[str, Any]
else:
    Mixing = _named("mixing")
    Output = _named("output")
    Projector = _named("projector")
    SearchMethod = _named("search")
    DesignMethod = _named("design")
    SpaceName = _named("space")
    TaskName = _named("task")
    Scalar = Annotated[Any, AfterValidator(_scalar)]
    TaskOption = Annotated[Any, AfterValidator(_nested)]

# What no training takes is a slip of the pen, and would fail late: as a size, out of memory; as a rate, in infinity.
Count = Annotated[int, Field(ge=1, le=2**53), Wanted("a whole number", "give 1 or more")]
Amount = Annotated[int, Field(ge=0, le=2**53), Wanted("a whole number", "give 0 or more")]
Pair = Annotated[int, Field(ge=2, le=2**53), Wanted("a whole number", "give 2 or more")]
Size = Annotated[int, Field(ge=1, le=2**24), Wanted("a whole number", f"give 1 to {2**24:,}")]
Depth = Annotated[int, Field(ge=1, le=10_000), Wanted("a whole number", "give 1 to 10,000")]
Positive = Annotated[
    float, Field(gt=0, le=3.4e38, allow_inf_nan=False), Wanted("a positive number", "for instance 1e-3")
]
NotNegative = Annotated[
    float, Field(ge=0, le=3.4e38, allow_inf_nan=False), Wanted("0 or a positive number", "for instance 0.01")
]
Flops = Annotated[Positive, WrapValidator(_exact), Wanted("a positive number", "for instance 1e12")]
Decay = Annotated[float, Field(ge=0, lt=1)]
Forgetting = Annotated[
    float, Field(ge=0, lt=1, allow_inf_nan=False), Wanted("a share", "give 0 (nothing is forgotten) to below 1")
]
Share = Annotated[float, Field(gt=0, lt=1), Wanted("above 0, below 1", "for instance 0.1")]
Drop = Annotated[
    float, Field(gt=0, lt=1), Wanted("above 0, below 1 / components", "for instance 0.01, or leave it out")
]
Edges = Annotated[
    list[Amount],
    Field(min_length=2),
    AfterValidator(_rising),
    Wanted("rising layer indices from 0 on", "for instance [0, 2, 3, 6]: layers 0 and 1, layer 2, layers 3 to 5"),
]
"""Where the segments of a component start, and its number of layers."""
_NAME = r"^[A-Za-z0-9][\w.-]*$"
Name = Annotated[str, Field(pattern=_NAME)]
Text = Annotated[str, Field(min_length=1)]
Options = dict[str, Scalar]
TaskOptions = dict[str, TaskOption]
"""Those of a task, which may be mappings of such."""
Seed = Annotated[int, Field(ge=0, lt=2**32), Wanted("a whole number", "give 0 or more")]
Seeds = Annotated[
    list[Seed],
    Field(min_length=1),
    AfterValidator(_distinct),
    Wanted("whole numbers, one or more", "for instance 0, 1 and 2"),
]
Rates = Annotated[
    list[Positive],
    Field(min_length=1),
    AfterValidator(_distinct),
    Wanted("positive numbers, one or more", "for instance 1e-3"),
]
Budgets = Annotated[
    list[Annotated[NotNegative, WrapValidator(_exact)]],
    Field(min_length=1, max_length=64),
    AfterValidator(_budgets),
    Wanted("shares of the fine-tuning budget, or FLOPs, one to 64", "for instance 0, 0.25 and 1"),
]
LONGEST_PROMPT, MOST_LENGTHS = 2**20, 12
"""Tokens after which a model can be asked to write, and after how many different lengths at once."""
PromptLengths = Annotated[
    list[Annotated[int, Field(ge=2, le=LONGEST_PROMPT)]],
    Field(min_length=1, max_length=MOST_LENGTHS),
    AfterValidator(lambda lengths: sorted(_distinct(lengths))),
    Wanted(f"one to {MOST_LENGTHS} whole numbers from 2 to {LONGEST_PROMPT:,}", "for instance 128 and 512"),
]
Ensembles = Annotated[
    list[Output] | bool,
    BeforeValidator(_ensembles),
    Wanted("outputs, or true or false", "for instance bayes"),
]
Trainable = Literal["all", "frozen", "projectors", "mixers", "lora"]
Schedule = Literal["constant", "linear", "cosine"]
Sampling = Literal["uniform", "weighted", "layouts"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]
Bos = Literal["auto", "always", "never"]
"""Whether every sequence begins with the tokenizer's BOS token; ``"auto"``: where it adds one on encoding."""
COSTS = ("cache_bytes", "state_bytes", "parameters", "flops_per_token", "decode_ms", "prefill_ms")
"""What a search can be given limits of."""
_PERCENTAGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*", re.ASCII)


class Workload(NamedTuple):
    """What costs are those of."""

    tokens: int
    """Of each sequence."""
    batch: int
    """Sequences at once."""

    def __str__(self) -> str:
        return f"tokens={self.tokens},batch={self.batch}"

    @classmethod
    def read(cls, text: str) -> Workload:
        """From its text; without a batch it is one of 1.

        Raises:
            ValueError: it is none.
        """
        match = re.fullmatch(r"\s*tokens=([1-9]\d{0,7})(?:\s*,\s*batch=([1-9]\d{0,3}))?\s*", text)
        if match is None:
            raise ValueError(text)
        return cls(int(match[1]), int(match[2] or 1))


def share_of(limit: float | str) -> float | None:
    """What is left of a limit that is a percentage, .6 of ``"60%"``; None of a limit that is a number."""
    match = _PERCENTAGE.fullmatch(limit) if isinstance(limit, str) else None
    return None if match is None else float(match[1]) / 100


def limits_of(names: Collection[str], what: str, of_whom: str | None = None) -> BeforeValidator:
    """Checks a mapping of some names to the most, or the least, that they may be.

    Args:
        names: those that there are.
        what: messages call one of them.
        of_whom: whose percentages are limits too; None: nobody's.
    """
    expected, fix = "a positive number", ""
    if of_whom is not None:
        expected, fix = f"a positive number, or a percentage of what {of_whom} has", ", or {}=60%"

    def check(values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name not in names:
                raise wrong(f"no {what} is called {name!r}{registry.did_you_mean(name, list(names))}")
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
            if number is None and of_whom is not None:
                number = share_of(value)
            if number is None or not 0 < number < math.inf:
                raise wrong(f"{name} is {value!r} (expected {expected}). Fix: {name}=2e6{fix.format(name)}")
        return values

    return BeforeValidator(check)


def _workload(text: str) -> str:
    try:
        return str(Workload.read(text))
    except ValueError:
        raise wrong(f"{text!r} is none. Fix: tokens=4096,batch=1") from None


Limits = Annotated[
    dict[str, float | str],
    limits_of(COSTS, "cost", "the first component"),
    Wanted("a mapping", "for instance {'cache_bytes': 2e6}"),
]
WorkloadText = Annotated[str, AfterValidator(_workload), Wanted("text", "tokens=4096,batch=1")]

_SOURCES = "{code: {text: stdlib, share: 0.5}, english: {text: docstrings, share: 0.5}}"


def _source_problems(values: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with named sources: the way to it, and a sentence."""
    if not isinstance(values, Mapping) or not values:
        yield (), f"no sources by name. Fix: {_SOURCES}"
        return
    for name, source in values.items():
        if re.fullmatch(_NAME, str(name)) is None:
            yield (), f"the name {str(name)!r} (expected letters, digits, '_', '-' and '.'). Fix: {_SOURCES}"
        if not isinstance(source, Mapping):
            yield (str(name),), f"no text with its share. Fix: {name}: {{text: FILE, share: 0.5}}"
            continue
        for key in source:
            if key not in (known := ["text", "share", "text_column"]):
                yield (str(name), str(key)), f"unknown key {str(key)!r}{registry.did_you_mean(str(key), known)}"
        if source.get("text") in (None, ""):
            yield (str(name), "text"), "missing. Fix: give a text file, a folder, a datasets id, stdlib or docstrings"
        share, column = source.get("share"), source.get("text_column")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            yield (str(name), "share"), f"{share!r} is none (expected a number above 0, at most 1). Fix: share: 0.5"
        if column is not None and (not isinstance(column, str) or not column):
            yield (str(name), "text_column"), f"{column!r} (expected a name). Fix: name a column"


def _sources(values: Any) -> Any:
    found = list(_source_problems(values))
    if not found and abs((total := math.fsum(source["share"] for source in values.values())) - 1) > 1e-6:
        shares = ", ".join(f"{name} {source['share'] / total:.6g}" for name, source in values.items())
        found = [((), f"the shares sum to {total:.6g} (expected 1). Fix: {shares}")]
    if found:
        raise PydanticCustomError("wrong", "{text}", {"text": found[0][1], "found": found})
    return values


Sources = Annotated[dict[str, Any], BeforeValidator(_sources), Wanted("sources by name", _SOURCES)]
"""Named texts with the share that each has of the tokens."""
_PRIMITIVES = "[mh-attention, [mamba, {state_size: 16}]], or the same with letters: {M: swiglu}"


def _primitive_problems(values: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with layers that lists are made of: the way to it, and a sentence."""
    listed = enumerate(values) if isinstance(values, list) else ()
    given: Any = list(values.items() if isinstance(values, Mapping) else listed)
    if not given:
        yield (), f"{values!r:.60} are no primitives. Fix: {_PRIMITIVES}"
    for key, entry in given:
        name, options = (*entry, {})[:2] if isinstance(entry, list) and 0 < len(entry) < 3 else (entry, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            expected = "expected a name, or a pair of a name and its options"
            yield (key,), f"{entry!r:.60} is no primitive ({expected}). Fix: {_PRIMITIVES}"
        elif (refused := registry.refusal("layer", name)) is not None:
            yield (key,), refused


def _primitives(values: Any) -> Any:
    if found := list(_primitive_problems(values)):
        raise PydanticCustomError("wrong", "{text}", {"text": found[0][1], "found": found})
    return values


Primitives = Annotated[list | dict[str, Any], BeforeValidator(_primitives), Wanted("layers", _PRIMITIVES)]
"""Layers by name, each alone or in a pair with its options; or letters, each with such."""
TwinMixers = Literal["gated-delta-net", "mamba-2", "linear-attention", "sliding-attention"]
"""What can stand where a parent's attention stood; the first is the default."""
LayerIndices = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1),
    Wanted("indices of layers, at least one", "for instance 3,7,11"),
]
Trackers = Annotated[
    list[Text],
    BeforeValidator(lambda names: [names] if isinstance(names, str) else names),
    InPython("str | Sequence[str] | None", loaded=False),
]


def plain(value: Any) -> Any:
    """A value as YAML would hold it: sequences and arrays as lists, mappings as such, what is numpy's as Python's."""
    if isinstance(value, bool | str | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        # arrays, and what is neither a number nor a bool of Python's: numpy.bool_
        return value.tolist()
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
