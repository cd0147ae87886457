"""A stage is one file: what runs, plans and shows a recipe goes over the list; no other list of names is beside it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from manticore.keywords import merged
from manticore.report.results import Results, parse_results
from manticore.schema.recipe import Recipe
from manticore.settings import Align
from manticore.stages import STAGES, stages_of
from manticore.stages.align import AlignRecord
from manticore.stages.records import Record

OFF = {"align": None, "search": None, "compare": None}
RECIPE = {
    "name": "run",
    "components": [{"name": name, "source": name} for name in "ab"],
    "task": {"name": "text"},
}


def test_every_stage_has_a_section_of_its_name_and_says_what_it_will_do():
    entry = {"name": "a", "family": "gpt_neo", "layers": 4, "width": 8}
    recipe = Recipe.model_validate({**RECIPE, "pretrain": [entry], "distill": {}})
    assert stages_of(recipe) == list(STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    for stage in STAGES:
        assert stage.name in Recipe.model_fields
        assert stage.plan_line(recipe)
        assert stage.inputs(recipe)


def test_an_empty_section_leaves_its_stage_out():
    recipe = Recipe.model_validate({**RECIPE, **OFF, "discretize": {"path": [0, 1, 0, 1]}})
    assert [stage.name for stage in stages_of(recipe)] == ["combine", "discretize", "finetune"]


def test_a_record_has_no_name_that_nothing_reads_back():
    assert AlignRecord.written(text="stdlib", tokens=7) == {"text": "stdlib", "tokens": 7}
    with pytest.raises(TypeError, match="tokenz"):
        AlignRecord.written(tokenz=7)


def test_what_a_record_is_written_with_is_what_the_report_reads():
    results = parse_results({"schema_version": 1, "align": AlignRecord.written(text="stdlib", loss_after=2.5)})
    assert results.align == AlignRecord(text="stdlib", loss_after=2.5)
    hints = {field.name: field.type for field in dataclasses.fields(Results)}
    assert all(name in hints for name in ("align", "search", "discretize", "distill", "finetune", "compare", "combine"))
    assert issubclass(AlignRecord, Record)


def test_the_list_of_stages_needs_no_torch():
    code = "import sys, manticore.stages, manticore.stages.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_settings_of_a_recipe_take_what_the_function_takes():
    rows = object()
    found = merged(Align, Recipe.model_validate(RECIPE).align, {"text": rows}, stage="align")
    assert found.text is rows
