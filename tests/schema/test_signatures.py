"""A recipe says the same as the Python functions: names and defaults of a section are those of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

import manticore
from manticore import settings
from manticore.schema import sections
from manticore.training.pretrain import pretrain

ELSEWHERE = {"seed", "tokenizer", "out", "resume", "cpu", "progress"}
"""Arguments that do not belong to one stage, or that only Python has."""


@pytest.mark.parametrize(
    ("section", "function", "only_python", "only_recipe"),
    [
        pytest.param(
            sections.Pretrain,
            pretrain,
            {"out", "cache", "cpu", "progress", "family", "index"},
            {"name", "family"},
            id="pretrain",
        ),
        pytest.param(
            settings.Combine,
            manticore.combine,
            ELSEWHERE - {"tokenizer"} | {"vocab_size", "revisions", "check"},
            set(),
            id="combine",
        ),
        pytest.param(sections.Align, manticore.align, ELSEWHERE, {"text"}, id="align"),
        pytest.param(settings.Search, manticore.search, ELSEWHERE, set(), id="search"),
        pytest.param(sections.Finetune, manticore.finetune, ELSEWHERE, {"start"}, id="finetune"),
        pytest.param(settings.Compare, manticore.compare, ELSEWHERE | {"spent_flops"}, set(), id="compare"),
        pytest.param(settings.Discretize, manticore.discretize, set(), {"path"}, id="discretize"),
    ],
)
def test_a_section_has_the_arguments_and_defaults_of_its_function(
    section: type[settings.Settings], function: Callable, only_python: set[str], only_recipe: set[str]
) -> None:
    arguments = {
        name: argument.default
        for name, argument in inspect.signature(function).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and name not in only_python
    }
    fields = {name: field for name, field in section.model_fields.items() if name not in only_recipe}
    assert set(fields) == set(arguments)
    for name, field in fields.items():
        if field.is_required():
            assert arguments[name] is inspect.Parameter.empty, name
        else:
            # what is immutable in a signature is a list or an empty mapping in YAML
            default, theirs = field.default or None, arguments[name]
            theirs = list(theirs) if isinstance(theirs, tuple) else theirs
            assert default == (theirs or None), name


def test_every_field_has_a_help_text() -> None:
    for section in (*settings.Settings.__subclasses__(),):
        for name, field in section.model_fields.items():
            described = field.description or name in ("combine", "align", "search", "discretize")
            assert described or name in ("finetune", "compare", "report"), f"{section.__name__}.{name}"
