"""Options that several functions share: written once, shown by each."""

from __future__ import annotations

import ast
import inspect

import pytest

from manticore import registry
from manticore.schema.options import options_of

SHARING = [
    *(("task", name) for name in registry.entries("task") if name.startswith(("mad/", "lra/"))),
    *(("layer", name) for name in registry.entries("layer") if name.removeprefix("mh-") in ("attention", "sliding")),
]


@pytest.mark.parametrize(("kind", "name"), SHARING)
def test_shared_options_stand_in_the_signature_and_where_sources_are_read_with_help(kind: str, name: str) -> None:
    function, read = registry.resolve(kind, name), options_of(kind, name)
    assert read is not None
    parameters = inspect.signature(function).parameters
    shown = {each: p.default for each, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert {each: ast.literal_eval(found.default) for each, found in read.items()} == shown
    for option, found in read.items():
        assert found.help, option
        assert f"{option}: " in (function.__doc__ or "")


def test_an_option_of_its_own_goes_before_the_shared_one() -> None:
    function, read = registry.resolve("task", "mad/memorization"), options_of("task", "mad/memorization")
    assert inspect.signature(function).parameters["num_train_examples"].default == 256
    assert read is not None
    assert read["data_seed"].help.startswith("of the examples and of the facts")
    with pytest.raises(TypeError, match="unexpected keyword"):
        function(nothing=1)
