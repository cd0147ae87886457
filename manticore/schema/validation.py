"""Pydantic's findings as one-line problems that say what was expected and what was probably meant."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from manticore.option_types import literals
from manticore.registry import did_you_mean
from manticore.schema.problems import Path, shown

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "scalar_type": "text, a number, true, false or null",
}


def findings(model: type[BaseModel], values: Any) -> tuple[BaseModel | None, list[tuple[Path, str]]]:
    """Validate ``values``: the model, or None and what is wrong as (path, text) pairs."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, [(place(details), _text(model, details)) for details in error.errors(include_url=False)]


def place(details: ErrorDetails) -> Path:
    """Where an error is; that of a check of whole settings is where it says."""
    at = details.get("ctx", {}).get("at")
    return details["loc"] if at is None else (*details["loc"], at)


def _text(model: type[BaseModel], details: ErrorDetails) -> str:
    kind, path, value = details["type"], details["loc"], details["input"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(path[-1]), _keys(model, path[:-1]))}"
    if kind == "missing":
        return f"missing. Fix: add {path[-1]!r}{_hint(model, path)}"
    if "text" in context:
        return str(context["text"])
    if kind in _EXPECTED:
        return _got(value, _EXPECTED[kind])
    if kind == "literal_error":
        choices = _choices(model, path)
        return f"not a choice (got {shown(value)}){did_you_mean(str(value), choices)}"
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        sign, bound = {
            "greater_than_equal": (">=", "ge"),
            "greater_than": (">", "gt"),
            "less_than_equal": ("<=", "le"),
            "less_than": ("<", "lt"),
        }[kind]
        return _got(value, f"{sign} {context[bound]:g}")
    if kind == "too_short":
        return _got(value, f"at least {context['min_length']} entries", f"{context['actual_length']}")
    if kind == "string_too_short":
        return _got(value, "text that is not empty")
    if kind == "string_pattern_mismatch":
        return _got(value, "letters, digits, '_', '-' and '.', beginning with a letter or digit")
    return f"{details['msg']} (got {shown(value)})"


def _got(value: Any, expected: str, got: str | None = None) -> str:
    return f"wrong value (got {got or shown(value)}, expected {expected})"


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that describes the mapping at ``path``; None where there is none."""
    for part in path:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return None
        nested = _nested(model.model_fields[part].annotation)
        if nested is None:
            return None
        model = nested
    return model


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _nested(argument)) is not None:
            return found
    return None


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    found = model_at(model, path)
    return list(found.model_fields) if found else []


def _hint(model: type[BaseModel], path: Path) -> str:
    parent = model_at(model, path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent else None
    return f": {field.description}" if field and field.description else ""


def _choices(model: type[BaseModel], path: Path) -> list[str]:
    parent = model_at(model, path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent else None
    return literals(field.annotation) if field else []
