"""Settings as keyword arguments: ``finetune(model, task, steps=40)`` as well as ``finetune(model, task, settings)``.

A function takes checked settings and a few arguments of its own; :func:`takes` gives it a keyword for every option,
with its default, in its signature and with its help in its docstring.
"""

from __future__ import annotations

import inspect
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from manticore.errors import ManticoreError, SeveralErrors
from manticore.option_types import InPython, Named, Wanted, literals, marks, plain
from manticore.registry import did_you_mean, resolve
from manticore.settings import Settings

R = TypeVar("R")
S = TypeVar("S", bound=Settings)

_WIDTH = 116


def takes(kind: type[Settings], *, by_position: tuple[str, ...] = ()) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a function that is handed its settings as ``settings`` a keyword for every option.

    Args:
        kind: of the settings.
        by_position: options that may stand by position too, before ``settings``.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        stage = function.__name__
        shown, accepted = _signatures(function, kind, by_position)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            try:
                given = dict(accepted.bind(*args, **kwargs).arguments)
            except TypeError as error:
                raise TypeError(f"{stage}() {error}") from None
            options = {name: given.pop(name) for name in kind.model_fields if name in given}
            settings = merged(kind, given.pop("settings", None), options, stage=stage)
            return function(**given, settings=settings)

        call.__signature__ = shown  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in shown.parameters.values()}
        call.__doc__ = _documented(inspect.getdoc(function) or "", kind)
        return call

    return decorate


def merged(kind: type[S], settings: S | None, options: Mapping[str, Any], *, stage: str) -> S:
    """Settings with some options changed, checked.

    Args:
        kind: of the settings.
        settings: what holds where no option is given; None: the defaults.
        options: name → value.
        stage: the function that error messages begin with.

    Raises:
        ManticoreError: settings of another kind, or values that are out of range.
        TypeError: an option is missing that has no default.
    """
    declared = kind.model_fields
    if settings is not None:
        if not isinstance(settings, kind):
            raise ManticoreError(
                f"{stage}: settings is a {type(settings).__name__} (expected manticore.settings.{kind.__name__}). "
                f"Fix: from manticore.settings import {kind.__name__}"
            )
        if not options:
            return settings
        kind = type(settings)
        options = {**{name: getattr(settings, name) for name in settings.model_fields_set}, **options}
    values: dict[str, Any] = {}
    loaded: dict[str, Any] = {}
    for name, value in options.items():
        field = kind.model_fields[name]
        # a recipe's section holds text alone, the function takes more
        wide = marker(declared.get(name, field), InPython)
        if wide is not None and wide.loaded and (not isinstance(value, str) or value in wide.also):
            loaded[name] = value
        elif value is None and isinstance(field.default, dict):
            values[name] = {}
        else:
            values[name] = plain(value)
    with told_as_ours(kind, options, stage):
        found = kind.model_validate(values)
    return found.model_copy(update=loaded)


@contextmanager
def told_as_ours(kind: type[Settings], options: Mapping[str, Any], stage: str | None = None) -> Iterator[None]:
    """Tell pydantic's findings about ``options`` in lines of ours; of settings made by hand where no stage asks."""
    try:
        yield
    except ValidationError as error:
        found_wrong = error.errors(include_url=False)
        missing = [repr(details["loc"][0]) for details in found_wrong if details["type"] == "missing"]
        if missing:
            noun = "argument" if len(missing) == 1 else "arguments"
            call = f"{stage or kind.__name__}() missing {len(missing)} required keyword-only {noun}"
            raise TypeError(f"{call}: {' and '.join(missing)}") from None
        lines = [_said(kind, options, details, stage or kind.__name__.lower()) for details in found_wrong]
        raise SeveralErrors(list(dict.fromkeys(lines))) from None


def marker(field: FieldInfo, kind: type[R]) -> R | None:
    """The outermost mark of a kind that a field's type has; None where it has none."""
    found = (*reversed(field.metadata), *marks(field.annotation))
    return next((mark for mark in found if isinstance(mark, kind)), None)


def _said(kind: type[Settings], options: Mapping[str, Any], details: ErrorDetails, stage: str) -> str:
    """What is wrong with an option of a Python function, in one line."""
    context, path = details.get("ctx", {}), details["loc"]
    named = marker(kind.model_fields[str(path[0])], Named) if path and path[0] in kind.model_fields else None
    if named is not None and isinstance(options[str(path[0])], str):
        # says it in its own words, a package that may be missing too
        resolve(named.kind, options[str(path[0])])
    if "text" in context:
        at = path[0] if path else context.get("at")
        return ": ".join(str(part) for part in (stage, at, context["text"]) if part is not None)
    name = str(path[0])
    if name not in kind.model_fields:
        return f"{stage}: unknown option {name!r}{did_you_mean(name, list(kind.model_fields))}"
    field, value = kind.model_fields[name], options[name]
    if details["type"] == "literal_error":
        return f"{stage}: {name} is {value!r}{_choice(name, field, value)}"
    wanted = marker(field, Wanted)
    if wanted is None:
        return f"{stage}: {name} is {reprlib.repr(value)} (expected {shown_type(field)}). Fix: give one"
    return f"{stage}: {name} is {reprlib.repr(value)} (expected {wanted.expected}). Fix: {wanted.fix}"


def _choice(name: str, field: FieldInfo, value: Any) -> str:
    choices = literals(field.annotation)
    near = did_you_mean(str(value), choices)
    if near.startswith(". Did"):
        return near
    listed = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])] if choices[1:] else map(repr, choices))
    return f" (expected {listed}). Fix: {name}={choices[0]!r}"


def _signatures(
    function: Callable, kind: type[Settings], by_position: tuple[str, ...]
) -> tuple[inspect.Signature, inspect.Signature]:
    """The signature to show, and one that leaves open what settings may give."""
    own = list(inspect.signature(function).parameters.values())
    index = next(i for i, parameter in enumerate(own) if parameter.name == "settings")
    settings = own[index].replace(default=None, annotation=f"{kind.__name__} | None")
    names = {parameter.name for parameter in own}

    def together(required: Any) -> inspect.Signature:
        options = {
            name: inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if name in by_position else inspect.Parameter.KEYWORD_ONLY,
                default=required if field.is_required() else shown_default(field),
                annotation=shown_type(field),
            )
            for name, field in kind.model_fields.items()
            if name not in names
        }
        positional = [options.pop(name) for name in by_position]
        listed = [*own[:index], *positional, settings, *options.values(), *own[index + 1 :]]
        return inspect.Signature(listed, return_annotation=inspect.signature(function).return_annotation)

    return together(inspect.Parameter.empty), together(None)


def shown_default(field: FieldInfo) -> Any:
    """A field's default as a signature shows it: what can be changed stands there as a tuple, or as None."""
    default = field.get_default()
    if isinstance(default, list):
        return tuple(default)
    return None if default == {} else default


_PLAIN = {"NoneType": "None", "dict": "Mapping[str, Any]", "list": "Sequence"}


def shown_type(field: FieldInfo) -> str:
    """A field's type as a signature and a stub show it, without ranges."""
    wide = marker(field, InPython)
    if wide is not None:
        return wide.annotation
    text = _type(field.annotation)
    return f"{text} | None" if text.startswith("Mapping") and "None" not in text else text


def _type(annotation: Any) -> str:
    origin, parts = getattr(annotation, "__origin__", None), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(origin)
    if not parts:
        return _PLAIN.get(annotation.__name__, annotation.__name__)
    if origin is list:
        return f"Sequence[{_type(parts[0])}]"
    if origin is dict:
        return _PLAIN["dict"]
    if all(isinstance(part, str) for part in parts):
        return f"Literal[{', '.join(map(repr, parts))}]"
    return " | ".join(dict.fromkeys(map(_type, parts)))


def _documented(doc: str, kind: type[Settings]) -> str:
    """A docstring whose list of arguments goes on with the options."""
    head, args, rest = doc.partition("Args:\n")
    listed, blank, tail = rest.partition("\n\n")
    lines = [
        textwrap.fill(
            f"{name}: {' '.join((field.description or '').split())}",
            _WIDTH,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
        )
        for name, field in kind.model_fields.items()
        if f"\n    {name}:" not in f"\n{listed}"
    ]
    return "\n".join([head + args + listed, *lines]) + blank + tail
