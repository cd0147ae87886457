"""The model card: readable front matter, escaped Markdown, an honest licence."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard
from run_records import HOSTILE_NAMES, build_record

from manticore.errors import ManticoreError
from manticore.report import write_model_card
from manticore.report.card import escape_markdown
from manticore.report.licences import strictest
from manticore.report.results import parse_results


def test_card_names_parents_and_scores(tmp_path, record):
    record["components"][0]["source"] = "state-spaces/mamba-130m-hf"
    path = write_model_card(tmp_path, record)
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    # The second parent is a folder on this machine: nobody else can open it.
    assert card.data.base_model == ["state-spaces/mamba-130m-hf"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].metric_value == record["compare"]["rows"][4]["mean"]
    assert "| **hybrid** | 0.981" in card.text
    assert "](blocks.png)" in card.text
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")
    assert "AutoModelForCausalLM.from_pretrained" in card.text


def test_parsed_and_plain_results_give_the_same_card(tmp_path, record):
    first = write_model_card(tmp_path, record).read_bytes()
    assert write_model_card(tmp_path, parse_results(record)).read_bytes() == first


@pytest.mark.parametrize("keep", [(), ("components",), ("components", "combine", "search")])
def test_partial_results_give_a_card(tmp_path, record, keep):
    partial = {"schema_version": 1, **{part: record[part] for part in keep}}
    card = ModelCard.load(write_model_card(tmp_path, partial))
    assert card.data.library_name == "transformers"
    assert "cannot be said" in card.text


def test_a_soft_hybrid_says_how_its_prediction_comes_about(tmp_path, record):
    said = "each weighed by how likely it has found the text so far"
    assert said not in ModelCard.load(write_model_card(tmp_path, record)).text
    soft = {part: record[part] for part in ("components", "combine")}
    soft["combine"] = {**soft["combine"], "output": "bayes", "forgetting": 0.01}
    text = " ".join(ModelCard.load(write_model_card(tmp_path, {"schema_version": 1, **soft})).text.split())
    assert f"{said}, of which the share 0.01 is forgotten per token (Bayesian interpolation)." in text
    assert "projectors translate" in text
    soft["combine"] |= {"mixing": "routed", "drop_below": 0.01, "drop_after": 32}
    text = " ".join(ModelCard.load(write_model_card(tmp_path, {"schema_version": 1, **soft})).text.split())
    assert "One whose weight is below 0.01 after 32 tokens or more reads no further." in text
    assert "none reads what another has made of the text" in text
    assert "projectors translate" not in text


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_cannot_leave_their_cell(tmp_path, name):
    record = build_record()
    for component in record["components"]:
        component.update(name=name, family=name, source=name, license=name)
        component["revision"] = name
    record.update(name=name)
    record["task"].update(name=name, primary_metric=name, options={name: name}, examples={name: 3}, length=64)
    record["align"]["text"] = record["search"]["method"] = name
    card = ModelCard.load(write_model_card(tmp_path, record))
    assert "<script" not in card.text
    assert "<img" not in card.text
    assert not re.search(r"(?<!\\)\]\(http", card.text)
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    assert len(headings) == 6
    width = 0
    for row in card.text.splitlines():
        cells = re.split(r"(?<!\\)\|", row) if row.startswith("|") else []
        # as many as the row above, which is the table's own
        assert not cells or width in (0, len(cells))
        width = len(cells)


def test_markdown_marks_are_shown_not_used():
    assert escape_markdown("a|b_c*d`e[f](g)") == "a\\|b\\_c\\*d\\`e\\[f\\](g)"
    assert escape_markdown("<b>&") == "&lt;b&gt;&amp;"
    assert escape_markdown("- x") == "\\- x"
    assert escape_markdown("gpt-neo (soft), 0.5") == "gpt-neo (soft), 0.5"


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit", "apache-2.0"], "apache-2.0"),
        (["Apache-2.0", "gpl-3.0", "mit"], "gpl-3.0"),
        (["openrail", "openrail"], "openrail"),
        (["openrail", "mit"], "other"),
        (["mit", None], "other"),
        (["mit", " "], "other"),
        ([], "other"),
    ],
)
def test_licence_is_the_strictest_that_is_known(licences, expected):
    licence, sentence = strictest(licences)
    assert licence == expected
    assert sentence.endswith(".")


def test_card_needs_the_model_to_be_there(tmp_path, record):
    with pytest.raises(ManticoreError, match="no such folder"):
        write_model_card(tmp_path / "absent", record)
