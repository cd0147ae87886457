"""Makes registered things by name, with options that their parameters' annotations allow.

A range is said once, where the option is: ``rank: Count = 16``, with the types of :mod:`manticore.option_types`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from importlib import import_module
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from manticore import registry
from manticore.errors import ManticoreError, in_brief
from manticore.option_types import Wanted, literals, marks, plain
from manticore.registry import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

_MADE = {
    "layer": "manticore.stacks.mixer:Mixer",
    "mixing": "manticore.hybrid.mixing:Mixing",
    "output": "manticore.hybrid.outputs:Output",
    "projector": "manticore.projectors.projector:Projector",
    "task": "manticore.tasks.task:Task",
}
"""Kind → what its things make."""


def make(
    kind: str,
    name: str,
    *arguments: Any,
    options: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """What the thing registered as ``name`` makes: a layer, mixing, projector or task.

    Args:
        kind: one of these.
        name: its name.
        arguments: what all things of the kind are given.
        options: its own, which are its keyword-only arguments.
        given: further keywords, handed over where it has them; no options.

    Raises:
        ManticoreError: no such name or option, or a plug-in that makes something else.
    """
    builder, options, given = registry.resolve(kind, name), options or {}, given or {}
    with registry.blaming(kind, name):
        parameters = inspect.signature(builder).parameters
    how = {each.name: each.kind for each in parameters.values() if each.name not in given}
    known = [option for option in how if how[option] is inspect.Parameter.KEYWORD_ONLY]
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None and inspect.Parameter.VAR_KEYWORD not in how.values():
        hint = did_you_mean(unknown, known)
        fix = f" Fix: its options are {', '.join(known)}" if hint.endswith("?") else ""
        raise ManticoreError(f"{kind} {name!r}: unknown option {unknown!r}{hint}{fix}")
    refuse_misfits(f"{kind} {name!r}", builder, {**dict(zip(parameters, arguments)), **options})
    with registry.blaming(kind, name):
        made = builder(*arguments, **{each: value for each, value in given.items() if each in parameters}, **options)
    module, expected = _MADE[kind].split(":")
    if not isinstance(made, getattr(import_module(module), expected)):
        raise ManticoreError(
            f"{kind} {name!r}: {registry.entries(kind)[name].summary} makes a {type(made).__name__} (expected a "
            f"{module}.{expected}). Fix: mend it"
        )
    return made


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def checked(where: str) -> Callable[[F], F]:
    """Have a function refuse arguments that their annotations do not allow.

    Args:
        where: what messages begin with; ``{name}`` in it is the function's argument of that name.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            refuse_misfits(where.format(**given), function, given)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def sharing(shared: Callable[..., Any]) -> Callable[[F], F]:
    """Give a function the keyword options of another one of its module too, with their help; it gets them as a dict.

    An option of its own of the same name goes first.
    """

    def decorate(function: F) -> F:
        own, more = inspect.signature(function), inspect.signature(shared).parameters
        options = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [name for name in more if name not in own.parameters]
        signature = own.replace(parameters=[*options, *(more[name] for name in added)])

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return function(**given.arguments)

        call.__signature__ = signature  # type: ignore[attr-defined]
        helped = [line for line in (shared.__doc__ or "").splitlines() if line.partition(":")[0].strip() in added]
        call.__doc__ = "\n".join([(function.__doc__ or "").rstrip(), *helped])
        return call  # type: ignore[return-value]

    return decorate


def refuse_misfits(where: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse values that the annotations of a function's parameters, or of a configuration's fields, do not allow.

    Raises:
        ManticoreError: the first of them.
    """
    annotations = _annotations(function)
    for name in [name for name in values if name in annotations]:
        if (expected := misfit(annotations[name], values[name])) is not None:
            if isinstance(expected, Told):
                way, text = expected.found[0]
                raise ManticoreError(f"{where}: {'.'.join(map(str, (name, *way)))}: {text}")
            fix = "" if "Fix" in expected or expected.endswith("?") else f". Fix: change {name}"
            raise ManticoreError(f"{where}: {name} is {in_brief(repr(values[name]))} (expected {expected}{fix}")


class Told(str):
    """What is wrong with an option that holds others, where it is no single value that could be expected."""

    def __new__(cls, found: Sequence[tuple[tuple[str | int, ...], str]]) -> Told:
        """From ways into the option, each with a sentence about what is there."""
        told = super().__new__(cls, found[0][1])
        told.found = found
        return told

    found: Sequence[tuple[tuple[str | int, ...], str]]


def misfit(annotation: Any, value: Any) -> str | None:
    """What an annotation expects and how to mend it, ``"a whole number). Fix: give 1 or more"``; None where it fits.

    What stands in brackets until then is the caller's; a :class:`Told` stands alone.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return None
    try:
        adapter.validate_python(plain(value))
    except ValidationError as error:
        found = error.errors()[0].get("ctx", {}).get("found")
        if found is not None:
            return Told(found)
        wanted = _wanted(annotation)
        if wanted is not None:
            return f"{wanted.expected}). Fix: {wanted.fix}"
        if error.errors()[0]["type"] == "literal_error":
            choices = literals(annotation) or [str(each) for each in get_args(annotation)]
            near = did_you_mean(value, choices) if isinstance(value, str) else ""
            return f"one of {', '.join(choices)}){near if near.endswith('?') else '. Fix: choose one of them'}"
        return f"{_WORDS.get(annotation, shown(annotation))})"
    return None


def shown(annotation: Any) -> str:
    """A type as a reader is told it, without its range: ``"int | None"``."""
    if hasattr(annotation, "__metadata__"):
        return shown(annotation.__origin__)
    if isinstance(annotation, type):
        return annotation.__name__.replace("NoneType", "None")
    if get_origin(annotation) is dict:
        return "mapping"
    if getattr(annotation, "__origin__", None) is Literal:
        return str(annotation).removeprefix("typing.")
    return " | ".join(shown(part) for part in get_args(annotation)) or str(annotation)


def _wanted(annotation: Any) -> Wanted | None:
    return next((mark for mark in marks(annotation) if isinstance(mark, Wanted)), None)


@cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter → its annotation, of those that can be read."""
    if isinstance(function, type) and hasattr(function, "__dataclass_fields__"):
        written, names = dict(function.__annotations__), vars(sys.modules[function.__module__])
    else:
        code = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
        parameters = inspect.signature(code).parameters.values()
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        written = {each.name: each.annotation for each in parameters if each.kind not in several}
        # not by the name of its module, which need not be among those that were imported
        names = getattr(inspect.unwrap(code), "__globals__", {})
    found = {}
    for name, annotation in written.items():
        # what is imported for type checkers alone cannot be judged
        with suppress(NameError):
            found[name] = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    return found


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) is Literal or annotation in (int, float, str, bool, type(None)):
        return True
    return get_origin(annotation) in (Union, UnionType) and all(map(_is_scalar, get_args(annotation)))


@cache
def _adapter(annotation: Any) -> TypeAdapter | None:
    # data sets, streams and models are for the function itself to look at
    if _wanted(annotation) is None and not _is_scalar(annotation):
        return None
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:
        return None
