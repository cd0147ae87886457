"""The options of a registered thing, read from its source so that nothing heavy is imported.

The keyword arguments of the function (of ``__init__`` for a class) are the options: name, annotation, default.
Their help is their entry in the docstring's ``Args:``. So a task or a projector states its options once.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore import registry


@dataclass(frozen=True)
class Option:
    """One keyword argument of a registered function or class."""

    name: str
    annotation: str
    """As written in the source; empty if there is none."""
    default: str
    """As written in the source; a constant's name is replaced by its value."""
    help: str
    """From the docstring; empty if it says nothing."""


def options_of(kind: str, name: str) -> dict[str, Option] | None:
    """Option name → option; None where anything is accepted (``**options``) or the source is not to be had."""
    target = registry.entries(kind)[name].target
    if isinstance(target, str):
        module, attribute = target.split(":")
        source = _source(module)
        if source is None:
            return None
    else:
        attribute = target.__name__
        try:
            source = inspect.getsource(inspect.getmodule(target) or target)
        except (OSError, TypeError):
            return None
    return _read(ast.parse(source), attribute)


def reads_tokenizer(task: str) -> bool:
    """Whether a task reads text with a tokenizer; the others bring their own vocabulary."""
    target = registry.entries("task")[task].target
    if not isinstance(target, str):
        return "tokenizer" in inspect.signature(target).parameters
    module, attribute = target.split(":")
    for node in ast.parse(_source(module) or "").body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return any(argument.arg == "tokenizer" for argument in (*node.args.args, *node.args.kwonlyargs))
    return False


def _read(tree: ast.Module, attribute: str) -> dict[str, Option] | None:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return _arguments(node, ast.get_docstring(node) or "", tree)
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
            if "__init__" in methods:
                init = methods["__init__"]
                doc = (ast.get_docstring(node) or "") + "\n" + (ast.get_docstring(init) or "")
                return _arguments(init, doc, tree)
            for base in node.bases:
                if isinstance(base, ast.Name) and (found := _read(tree, base.id)) is not None:
                    return found
    return None


def _arguments(function: ast.FunctionDef, doc: str, module: ast.Module) -> dict[str, Option] | None:
    arguments = function.args
    if arguments.kwarg is not None:
        return None
    return {
        argument.arg: Option(
            argument.arg,
            ast.unparse(_value(argument.annotation, module)) if argument.annotation else "",
            ast.unparse(_value(default, module)) if default is not None else "required",
            _help(argument.arg, doc),
        )
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    }


def _value(default: ast.expr, module: ast.Module) -> ast.expr:
    """What a name stands for: a constant or a type of the module, or of the one that it is imported from."""
    if not isinstance(default, ast.Name):
        return default
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == default.id for target in targets):
                return _value(node.value, module)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                if (name.asname or name.name) == default.id and (found := _source(node.module)) is not None:
                    return _value(ast.Name(name.name), ast.parse(found))
    return default


def _source(module: str) -> str | None:
    """The source of a module, which is not imported; None where there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).read_text(encoding="utf-8")


def _help(name: str, doc: str) -> str:
    """The text after ``name:`` in a docstring, up to the next entry or blank line."""
    match = re.search(rf"^([ \t]*){re.escape(name)}(?: \([^)\n]*\))?:[ \t]*(.*(?:\n\1[ \t]+\S.*)*)", doc, re.MULTILINE)
    return " ".join(match.group(2).split()) if match else ""


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}


def expected_type(option: Option, value: Any) -> str | None:
    """What the option's annotation asks for, if the value is not that; None if it fits or cannot be judged."""
    if option.annotation.startswith("Literal["):
        choices = ast.literal_eval(option.annotation.removeprefix("Literal"))
        return None if value in choices else f"one of {', '.join(choices)}"
    parts = [part.strip() for part in option.annotation.split("|")]
    if not all(part in _TYPES for part in parts):
        return None
    allowed = {type_ for part in parts for type_ in _TYPES[part]}
    return None if type(value) in allowed else option.annotation
