"""What editors and mypy are shown of the public functions: every option, with its type and default."""

import ast
import inspect

import public_stub
import pytest

import manticore
from manticore import settings, twin_settings
from manticore.keywords import takes
from manticore.schema import sections

TAKING = {
    "align": settings.Align,
    "combine": settings.Combine,
    "compare": settings.Compare,
    "evaluate": settings.Evaluate,
    "finetune": settings.Finetune,
    "pretrain": settings.Pretrain,
    "search": settings.Search,
    "twin": twin_settings.Twin,
}
BY_HAND = 10
"""The most parameters of a public function that are written in its own file."""


def test_the_stub_is_fresh():
    assert public_stub.FILE.read_text(encoding="utf-8") == public_stub.stub(), "python tests/builders/public_stub.py"


@pytest.mark.parametrize("name", TAKING)
def test_help_shows_every_option_with_its_default_and_its_text(name):
    function, kind = getattr(manticore, name), TAKING[name]
    shown = inspect.signature(function).parameters
    for option, field in kind.model_fields.items():
        assert f"\n    {option}: " in function.__doc__
        default = field.default or None
        assert field.is_required() or default == (
            list(shown[option].default) if isinstance(shown[option].default, tuple) else shown[option].default or None
        )
    assert len(inspect.signature(inspect.unwrap(function)).parameters) <= BY_HAND


def test_the_stub_has_every_public_name_and_option():
    tree = ast.parse(public_stub.FILE.read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    names = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(manticore.__all__) == functions.keys() | (names - {None})
    for name, kind in TAKING.items():
        shown = [argument.arg for argument in (*functions[name].args, *functions[name].kwonlyargs)]
        assert set(kind.model_fields) <= set(shown)


def test_an_unknown_keyword_is_named_as_python_names_it():
    with pytest.raises(TypeError, match=r"^finetune\(\) got an unexpected keyword argument 'stepz'$"):
        manticore.finetune(None, "text", stepz=3)


def test_options_that_are_missing_are_named_as_python_names_them():
    @takes(sections.Pretrain)
    def pretrain(settings):
        return settings

    with pytest.raises(
        TypeError, match=r"^pretrain\(\) missing 2 required keyword-only arguments: 'layers' and 'width'"
    ):
        pretrain(name="a", family="gpt_neo")


def test_settings_of_another_kind_are_refused():
    with pytest.raises(
        manticore.ManticoreError, match=r"finetune: settings is a Search \(expected manticore.settings.F"
    ):
        manticore.finetune(None, "text", settings.Search())


def test_keywords_change_single_options_of_settings():
    given = settings.Finetune(steps=3, adam_betas=[0.8, 0.9])
    from manticore.keywords import merged

    found = merged(settings.Finetune, given, {"lr": 1, "report_to": "tensorboard", "adam_betas": (0.7, 0.9)}, stage="x")
    assert (found.steps, found.lr, found.report_to, found.adam_betas) == (3, 1.0, ["tensorboard"], [0.7, 0.9])
    assert merged(settings.Finetune, given, {}, stage="x") is given
