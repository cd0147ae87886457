"""report.html: self-contained, well-formed, escaped, and with the numbers of results.json."""

from __future__ import annotations

import json
import re

import pytest
from html_pages import Page, assert_loads_nothing
from run_records import HOSTILE_NAMES, build_record, write_record, written
from search_records import race_won_by_a_hybrid

from manticore.errors import ManticoreError
from manticore.report import write_report
from manticore.report.figures import FIGURE_NAMES, draw_figures
from manticore.report.results import parse_results


def _page(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_writes_the_page_and_its_figures(run_folder):
    assert write_report(str(run_folder)) == run_folder / "report.html"
    assert sorted(p.name for p in (run_folder / "figures").iterdir()) == sorted(
        f"{n}.svg" for n in FIGURE_NAMES if n not in ("candidates", "text", "writing")
    )
    assert not [p for p in run_folder.rglob("*") if p.name.startswith(".")]


def test_every_figure_that_a_run_has_is_on_its_page(tmp_path):
    of_text = build_record()
    written(of_text, 128, 512)
    piece = {"tokens": ["def", " f"], "weights": [[0.5, 0.5], [0.9, 0.1]]}
    of_text["combine"] |= {"output": "bayes", "texts": [piece]}
    drawn = set()
    for name, record in {"of text": of_text, "of paths": race_won_by_a_hybrid()}.items():
        folder = write_record(tmp_path / name, record)
        words = _page(folder).words()
        drawings = draw_figures(parse_results(record))
        drawn |= drawings.keys()
        assert not [each.title for each in drawings.values() if each.title not in words]
        assert {path.stem for path in (folder / "figures").iterdir()} == drawings.keys()
    assert drawn == set(FIGURE_NAMES)


def test_page_has_the_numbers_of_the_record(run_folder, record):
    page = _page(run_folder)
    for row in record["compare"]["rows"]:
        cells = page.row(row["model"])
        low, high = row["interval"]
        assert cells[1 + row["budget"]] == f"{row['mean']:.3f} [{low:.3f}, {high:.3f}]"
    assert page.row("mamba")[3:] == ["1.19 M", "2.5 MFLOP", "0 B", "80 KiB"]
    # The hybrid has no run with the larger budget: that budget is what it cost in all.
    assert page.row("hybrid")[2] == page.row("hybrid")[1]
    assert page.row("ensemble")[2] == "–"
    assert page.row("search")[1:] == ["300", "–", "2.4 TFLOP", "1 min 02 s"]
    assert page.row("all")[1:] == ["–", "–", "4.4 TFLOP", "1 min 47 s"]
    words = page.words()
    assert "mamba → gpt beats the best parent (mamba) by 0.099 with the same fine-tuning" in words
    assert "5.150 before, 4.160 after" in words
    assert "Kept: mamba layers 0–1 → gpt layers 2–4, and 1 projector." in words
    for number in ("1.210", "2.384", "0.071"):
        assert number in words
    assert 'AutoModelForCausalLM.from_pretrained("model")' in words


def test_page_loads_nothing_from_elsewhere(run_folder):
    assert_loads_nothing(write_report(run_folder).read_text(encoding="utf-8"))


def test_dark_and_print_are_provided_for(run_folder):
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html


@pytest.fixture(scope="module")
def clean_tags(tmp_path_factory):
    folder = write_record(tmp_path_factory.mktemp("clean"), build_record())
    return {tag for tag, _ in _page(folder).elements}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_every_text_of_the_record_is_escaped(tmp_path, clean_tags, name):
    def poison(value, key=""):
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return name if isinstance(value, str) else value

    record = poison(build_record())
    folder = write_record(tmp_path / "run", record)
    (folder / "environment.json").write_text(json.dumps({name: {"packages": [name, {name: name}]}}))
    page = _page(folder)
    allowed = clean_tags | {"details", "summary", "ul", "li"}
    assert {tag for tag, _ in page.elements} <= allowed
    assert all(not key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert "49" not in re.findall(r"\d+", page.row("component")[0])
    for figure in (folder / "figures").iterdir():
        assert "<script" not in figure.read_text(encoding="utf-8")


def _strip(record, *parts):
    for part in parts:
        del record[part]
    return record


@pytest.mark.parametrize(
    "record",
    [
        {"schema_version": 1},
        _strip(build_record(), "search", "discretize", "finetune", "compare", "model"),
        _strip(build_record(3, 4), "discretize", "finetune", "compare", "model") | {"status": "interrupted"},
        _strip(build_record(steps=0), "components"),
        _strip(build_record(), "task", "combine"),
        build_record(3, 12, 300),
    ],
    ids=["nothing", "align only", "interrupted search", "no history", "no task", "large"],
)
def test_partial_records_give_a_page(tmp_path, record):
    page = _page(write_record(tmp_path / "run", record))
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert ("cannot be said" in page.words()) == ("compare" not in record)
    if record.get("status") == "interrupted":
        assert "The run is interrupted" in page.words()


def test_one_seed_and_lost_scores_are_shown_as_such(tmp_path, record):
    for row in record["compare"]["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None)
    record["compare"]["rows"][1]["mean"] = float("nan")
    page = _page(write_record(tmp_path / "run", record))
    assert page.row("mamba")[1] == "0.882 one seed"
    assert page.row("gpt")[1].startswith("–")
    assert "gpt, budget 1: no finite score." in page.words()


def test_environment_and_a_dirty_tree_are_told(run_folder):
    assert "Environment" not in _page(run_folder).words()
    environment = {"python": "3.11", "git": {"revision": "abc123", "dirty": True}, "packages": {"torch": "2.13.0"}}
    (run_folder / "environment.json").write_text(json.dumps(environment))
    (run_folder / "lineage.json").write_text("{broken")
    page = _page(run_folder)
    assert page.row("packages.torch")[1] == "2.13.0"
    assert page.row("git.revision")[1] == "abc123"
    assert "not committed" in page.words()
    assert "lineage.json cannot be read" in page.words()


def test_tokenizer_is_loaded_where_the_model_has_one(run_folder):
    assert "AutoTokenizer" not in _page(run_folder).words()
    (run_folder / "model").mkdir()
    (run_folder / "model" / "tokenizer_config.json").write_text("{}")
    assert 'AutoTokenizer.from_pretrained("model")' in _page(run_folder).words()


def test_code_to_load_takes_no_code_from_the_record(tmp_path, record):
    record["model"] = {"path": 'm"); import os  # ', "loads_with": "os.system"}
    words = _page(write_record(tmp_path / "run", record)).words()
    assert 'AutoModelForCausalLM.from_pretrained("m\\"); import os # ")' in words
    assert "os.system" not in words


def test_a_second_report_replaces_the_first(tmp_path, record):
    folder = write_record(tmp_path / "run", record)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    write_record(folder, _strip(record, "align"))
    write_report(folder)
    assert not (folder / "figures" / "alignment.svg").exists()


def test_a_failed_report_leaves_the_old_one(run_folder):
    old = write_report(run_folder).read_bytes()
    (run_folder / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(ManticoreError, match="schema_version"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == old


def test_a_folder_that_cannot_be_written_is_one_clear_line(run_folder):
    (run_folder / "figures").write_text("in the way")
    with pytest.raises(ManticoreError, match=r"the report cannot be written .* Fix: "):
        write_report(run_folder)
