"""A value that cannot be is refused by `check`, with its line, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from manticore.errors import ManticoreError
from manticore.schema.document import read_value
from manticore.schema.loading import load_recipe
from manticore.settings import Align, Combine, Comparing, Finetune, Pretrain, Search, Settings
from manticore.stages import prerequisites
from manticore.stages.prerequisites import missing_prerequisites

RECIPE = """\
name: mini
pretrain:
  - {{name: a, family: gpt_neo, layers: 4, width: 64{entry}}}
components:
  - {{name: a, source: a}}
  - {{name: b, source: org/b}}
task: {{name: mad/in-context-recall}}
{section}
"""


def refused(tmp_path: Path, *, entry: str = "", section: str = "seed: 0") -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.format(entry=entry, section=section))
    with pytest.raises(ManticoreError) as caught:
        load_recipe(str(file), needs=missing_prerequisites)
    return str(caught.value).replace(f"{tmp_path}/", "")


KINDS = {
    "pretrain": Pretrain, "combine": Combine, "align": Align, "search": Search, "finetune": Finetune,
    "compare": Comparing,
}  # fmt: skip
NUMBERS = [
    (section, name)
    for section, kind in KINDS.items()
    for name, field in kind.model_fields.items()
    if "int" in str(field.annotation) or "float" in str(field.annotation)
]
NONSENSE = (".inf", "-.inf", ".nan", "1e400", "-1", "1" + "0" * 300, "1:30", "0100", "1_000", "yes", "'4'")


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_no_number_takes_nonsense(section: str, name: str, tmp_path: Path) -> None:
    kind = KINDS[section]
    many = "list" in str(kind.model_fields[name].annotation)
    for value in NONSENSE:
        if isinstance(kind.model_fields[name].default, dict):
            continue
        written = f"[{value}, {value}]" if many else value
        line = 3 if section == "pretrain" else 8
        if section == "pretrain":
            found = _with_entry(tmp_path, name, written)
        else:
            found = refused(tmp_path, section=f"{section}: {{{name}: {written}}}")
        assert found.startswith(f"mine.yaml:{line}: {section}"), (value, found)
        assert name in found.splitlines()[0]


def _with_entry(tmp_path: Path, name: str, written: str) -> str:
    if name in ("layers", "width"):
        file = tmp_path / "mine.yaml"
        before = {"layers": "layers: 4", "width": "width: 64"}[name]
        file.write_text(RECIPE.format(entry="", section="").replace(before, f"{name}: {written}"))
        with pytest.raises(ManticoreError) as caught:
            load_recipe(str(file), needs=missing_prerequisites)
        return str(caught.value).replace(f"{tmp_path}/", "")
    return refused(tmp_path, entry=f", {name}: {written}")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("finetune: {warmup_steps: 301}", "finetune.warmup_steps: longer than the training (got 301, steps is 300)"),
        (
            "finetune: {steps: 20, warmup_steps: 21}",
            "finetune.warmup_steps: longer than the training (got 21, steps is",
        ),
        (
            "search: {method: darts, steps: 120, warmup_steps: 121}",
            "search.warmup_steps: longer than the training (got 121, steps is 120)",
        ),
        (
            "search: {method: darts, steps: 5, mixture_warmup_steps: 6}",
            "search.mixture_warmup_steps: longer than the training",
        ),
        ("finetune: {batch_size: 100000000}", "finetune.batch_size: wrong value (got 100000000, expected <= "),
        ("combine: {num_blocks: 100000}", "combine.num_blocks: wrong value (got 100000, expected <= 10000)"),
    ],
)
def test_what_cannot_be_trained_is_named_with_its_line(section: str, expected: str, tmp_path: Path) -> None:
    assert refused(tmp_path, section=section).startswith(f"mine.yaml:8: {expected}")


@pytest.mark.parametrize("entry", [", batch_size: 16000000, length: 1024", ", length: 16000000"])
def test_batches_that_this_machine_cannot_hold_are_refused(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prerequisites, "machine_memory", lambda: 16 * 2**30)
    found = refused(tmp_path, entry=entry)
    assert found.startswith("mine.yaml:3: pretrain[0].batch_size: training takes ")
    assert "this machine has 16 GiB. Fix: " in found


def test_layers_that_this_machine_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "machine_memory", lambda: 16 * 2**30)
    found = _with_entry(tmp_path, "width", "100000")
    assert found.startswith("mine.yaml:3: pretrain[0].layers: training takes 598 GiB at the least")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("0100", "0100"), ("-012", "-012"), ("1_000", "1_000"), ("yes", "yes"), ("off", "off"),
        ("0b11", "0b11"), ("2026-01-01", "2026-01-01"), ("=", "="), ("<<", "<<"), ("00.5", "00.5"),
        ("0", 0), ("-3", -3), ("+3", 3), ("0x1F", 31), ("0o17", 15), ("1e-3", 0.001), ("1.", 1.0), ("-.5", -0.5),
        ("true", True), ("FALSE", False), ("~", None), ("null", None), ("", None), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


def test_python_refuses_what_a_recipe_refuses() -> None:
    import manticore

    for options, said in (
        ({"lr": float("inf")}, r"finetune: lr is inf \(expected a positive number\)"),
        ({"budget_flops": float("inf")}, r"finetune: budget_flops is inf"),
        ({"steps": 10**300}, r"finetune: steps is 1000"),
        ({"batch_size": True}, r"finetune: batch_size is True \(expected a whole number\)"),
        ({"steps": 3, "warmup_steps": 4}, r"finetune: warmup_steps: longer than the training \(got 4, steps is 3\)"),
    ):
        with pytest.raises(manticore.ManticoreError, match=said):
            manticore.finetune(None, "text", **options)


def test_settings_are_never_changed() -> None:
    assert all(kind.model_config["frozen"] for kind in Settings.__subclasses__())
