"""Command-line options out of the recipe schema: the same names, help texts, defaults and checks."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from yaml import YAMLError

from manticore import registry
from manticore.errors import ManticoreError, SeveralErrors
from manticore.option_types import Named, literals
from manticore.schema.document import read_value
from manticore.schema.validation import findings
from manticore.settings import Settings

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file or hub id of a model or a hybrid.")]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder to write; must not exist yet.", metavar="DIR")]
Task = Annotated[str, typer.Option("--task", "-t", help="Name of the task; see `manticore ls tasks`.")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        help="Option of the task, repeatable; see `manticore show TASK`.",
        metavar="KEY=VALUE",
    ),
]
Seed = Annotated[int, typer.Option(help="Every random stream is derived from it.", min=0)]


def takes(kind: type[Settings]) -> Callable[[Callable], Callable]:
    """Give a verb one option per field of ``kind``; it receives them, checked, as ``settings``."""
    fields = kind.model_fields

    def decorate(verb: Callable) -> Callable:
        own = [
            parameter
            for parameter in inspect.signature(verb, eval_str=True).parameters.values()
            if parameter.name != "settings"
        ]

        def command(**values: Any) -> Any:
            given = {name: values.pop(name) for name in fields}
            return verb(settings=_checked(kind, given), **values)

        options = [_option(name, field) for name, field in fields.items()]
        # A signature of its own, and no __wrapped__: typer reads both.
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The command-line option of one field. Unset is None, so that defaults live in the schema alone."""
    flag = _flag(name, field)
    kind, metavar = _kind(field)
    help_text = field.description or ""
    for marker in field.metadata:
        if isinstance(marker, Named):
            help_text += f" One of: {', '.join(registry.entries(marker.kind))}."
    if choices := literals(field.annotation) if kind is str else []:
        help_text += f" One of: {', '.join(choices)}."
    declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    default = field.get_default()
    if field.is_required():
        help_text += " Required."
    elif default not in (None, {}):
        help_text += f" Default: {_shown(default)}."
    info = typer.Option(declaration, help=help_text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(list[str] if kind is dict else str if kind is list else kind) | None, info],
    )


def _flag(name: str, field: FieldInfo) -> str:
    """``projector_options`` is given one at a time, as ``--projector-option``."""
    kind, _ = _kind(field)
    return f"--{name.removesuffix('s') if kind is dict else name}".replace("_", "-")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _kind(field: FieldInfo) -> tuple[type, str | None]:
    """The plain type behind a field's annotation, and what to call its value in the help."""
    annotation: Any = field.annotation
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        elif origin is Literal:
            return str, "NAME"
        elif origin is list:
            return list, "A,B,…"
        elif origin is dict:
            return dict, "KEY=VALUE"
        else:
            return annotation, None


def _checked(settings: type[Settings], given: dict[str, Any]) -> dict[str, Any]:
    """The settings after their checks; unset ones get their defaults."""
    fields, values = settings.model_fields, {}
    for name, value in given.items():
        if value is None:
            continue
        kind, _ = _kind(fields[name])
        flag = _flag(name, fields[name])
        if kind is dict:
            values[name] = pairs(value, flag)
        else:
            values[name] = _value(f"[{value}]", flag) if kind is list else value
    model, found = findings(settings, values)
    if model is None:
        lines = []
        for path, text in found:
            if path:
                flag = _flag(str(path[0]), fields[str(path[0])])
                text = f"{flag}: {text.replace(f'add {path[0]!r}', f'add {flag}')}"
            lines.append(text)
        raise SeveralErrors(lines)
    return {name: getattr(model, name) for name in fields}


def pairs(texts: list[str], flag: str, example: str = "seq_len=64") -> dict[str, Any]:
    """``["rank=8"]`` → ``{"rank": 8}``.

    Raises:
        ManticoreError: a text that is no ``key=value``.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ManticoreError(f"{flag}: wrong value (got {text!r}, expected KEY=VALUE). Fix: write {example}")
        found[key] = _value(value, flag)
    return found


def _value(text: str, flag: str) -> Any:
    try:
        return read_value(text)
    except (YAMLError, ValueError) as error:
        raise ManticoreError(f"{flag}: cannot be read (got {text!r}). Fix: quote it") from error
