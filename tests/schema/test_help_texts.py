"""Every option has a help text, which signatures, verbs and `manticore show schema` show alike."""

from __future__ import annotations

from manticore.schema import sections
from manticore.settings import Settings


def _kinds(kind: type[Settings]) -> list[type[Settings]]:
    """It and its subclasses, without those that tests of plug-ins make."""
    ours = [below for below in kind.__subclasses__() if below.__module__.startswith("manticore.")]
    return [kind, *(each for below in ours for each in _kinds(below))]


def test_every_field_has_a_help_text() -> None:
    assert sections.Finetune in _kinds(Settings)
    for kind in _kinds(Settings):
        for name, field in kind.model_fields.items():
            described = field.description or name in ("combine", "align", "search", "discretize")
            assert described or name in ("finetune", "compare", "report"), f"{kind.__name__}.{name}"
