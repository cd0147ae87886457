"""The options of a registered thing, read from its source so that nothing heavy is imported.

The keyword arguments of the function (of ``__init__`` for a class) are the options: name, annotation, default.
Their help is their entry in the docstring's ``Args:``. So a task or a projector states its options once.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from manticore import option_types, registry, settings
from manticore.errors import in_brief
from manticore.making import misfit, shown
from manticore.printing import without_passwords


@dataclass(frozen=True)
class Option:
    """One keyword argument of a registered function or class."""

    name: str
    annotation: str
    """As written in the source, without ranges; empty if there is none."""
    type: Any
    """The same with its range, as an object; None where there is none, or that would import something."""
    default: str
    """As written in the source; a constant's name is replaced by its value."""
    help: str
    """From the docstring; empty if it says nothing."""


def options_of(kind: str, name: str) -> dict[str, Option] | None:
    """Option name → option; None where anything is accepted (``**options``) or the source is not to be had."""
    target = registry.entries(kind)[name].target
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
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
    return _has_argument("task", task, "tokenizer")


def mixtures(task: str, given: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Of a task's options, those that name the sources of a mixture, and do it well: option → source → what it is."""
    return {
        name: given[name] for name, option in _mixing(task) if given.get(name) and not expected(option, given[name])
    }


def mixes(task: str) -> bool:
    """Whether a task can be a mixture of several texts."""
    return bool(_mixing(task))


def _mixing(task: str) -> list[tuple[str, Option]]:
    kinds = (option_types.Sources, option_types.Sources | None)
    return [(name, option) for name, option in (options_of("task", task) or {}).items() if option.type in kinds]


def trains_candidates(method: str) -> bool:
    """Whether a search trains candidates and looks at their curves; the others learn mixture weights."""
    return _has_argument("search", method, "curves")


def foreign_options(search: settings.Search) -> dict[str, str]:
    """Options that are given, though the search's method does not have them, each with a sentence that says so."""
    own = options_of("search", search.method)
    lacks = settings.LEARNING_OPTIONS if trains_candidates(search.method) else settings.RACING_OPTIONS
    found = {}
    for name, field in settings.Search.model_fields.items():
        value, option = getattr(search, name), settings.METHOD_OPTIONS.get(name)
        # a tensor to start from is not compared with a text
        given = value is not None and (not isinstance(value, str | int | float | dict) or value != field.default)
        if given and (name in lacks or (option is not None and own is not None and option not in own)):
            got = in_brief(without_passwords(str(value)))
            found[name] = f"method {search.method!r} has no {name} (got {got}). Fix: leave it out"
    return found


def _has_argument(kind: str, name: str, argument: str) -> bool:
    target = registry.entries(kind)[name].target
    if not isinstance(target, str):
        return argument in inspect.signature(target).parameters
    module, _, attribute = target.partition(":")
    for node in ast.parse(_source(module) or "").body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return any(each.arg == argument for each in (*node.args.args, *node.args.kwonlyargs))
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
    arguments, options = function.args, {}
    shared = next((each for each in function.decorator_list if _name(each) == "sharing"), None)
    if isinstance(shared, ast.Call):
        options = _read(module, _name(shared.args[0])) or {}
    elif arguments.kwarg is not None:
        return None
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        written = argument.annotation and ast.unparse(argument.annotation)
        type_ = argument.annotation and _type(_WrittenOut(module).visit(argument.annotation))
        options[argument.arg] = Option(
            argument.arg,
            (written or "") if type_ is None else shown(type_),
            type_,
            ast.unparse(_value(default, module)) if default is not None else "required",
            _help(argument.arg, doc),
        )
    own = [argument.arg for argument in arguments.kwonlyargs]
    return {name: options[name] for name in dict.fromkeys([*own, *options])}


def _name(expression: ast.expr) -> str:
    """The name that an expression is, or that it calls."""
    called = expression.func if isinstance(expression, ast.Call) else expression
    return called.id if isinstance(called, ast.Name) else ""


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
                    return _value(ast.Name(name.name), _parsed(found))
    return default


@lru_cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _source(module: str) -> str | None:
    """The source of a module, which is not imported; None where there is none."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    for part in inner:
        if spec is not None:
            # importlib.util would import the packages above, and a plug-in may import torch there
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8")


def _help(name: str, doc: str) -> str:
    """The text after ``name:`` in a docstring, up to the next entry or blank line."""
    match = re.search(rf"^([ \t]*){re.escape(name)}(?: \([^)\n]*\))?:[ \t]*(.*(?:\n\1[ \t]+\S.*)*)", doc, re.MULTILINE)
    return " ".join(match.group(2).split()) if match else ""


def expected(option: Option, value: Any) -> str | None:
    """What the option's annotation asks for, if the value is not that; None if it fits or cannot be judged."""
    return None if option.type is None else misfit(option.type, value)


def _type(annotation: ast.expr) -> Any:
    """The type that an annotation with its names written out stands for; None where that takes an import."""
    try:
        return eval(ast.unparse(annotation), dict(vars(option_types)))
    except (NameError, AttributeError, TypeError):
        return None


class _WrittenOut(ast.NodeTransformer):
    """Puts what names stand for in their place."""

    def __init__(self, module: ast.Module) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _value(node, self.module)
