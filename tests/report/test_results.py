"""Reading results.json: complete, partial, odd and broken records."""

from __future__ import annotations

import json

import pytest
from run_records import build_record

from manticore.errors import ManticoreError
from manticore.report.results import parse_results, read_results
from manticore.report.typed_reading import printable


def test_complete_record_keeps_its_numbers(run_folder, record):
    results = read_results(run_folder)
    assert results == read_results(run_folder / "results.json") == parse_results(record)
    assert results.component_names == ["mamba", "gpt"]
    assert results.path == (0, 1)
    assert results.combine.boundaries == tuple(tuple(row) for row in record["combine"]["boundaries"])
    assert [s.loss for s in results.search.history] == [s["loss"] for s in record["search"]["history"]]
    assert results.compare.row("hybrid", 0).bounds == tuple(record["compare"]["rows"][4]["interval"])


def test_every_part_may_be_missing(record):
    assert parse_results({"schema_version": 1}).num_blocks == 0
    for part in list(record):
        if part != "schema_version":
            parse_results({key: value for key, value in record.items() if key != part})
            parse_results({**record, part: None})


def test_numbers_that_are_not_finite_read_as_none(tmp_path, record):
    record["compare"]["rows"][0]["mean"] = float("nan")
    record["finetune"]["metrics"]["accuracy"] = float("inf")
    record["search"]["history"][0]["weights"][0][0] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(record))
    results = read_results(tmp_path)
    assert results.compare.rows[0].mean is None
    assert results.finetune.metrics["accuracy"] is None
    assert results.search.history[0].weights[0][0] is None


def test_without_components_their_number_comes_from_the_tables():
    results = parse_results({"schema_version": 1, "search": {"weights": [[0.2, 0.3, 0.5]]}})
    assert (results.num_components, results.num_blocks) == (3, 1)
    assert results.component_names == ["component 0", "component 1", "component 2"]


def test_weights_fall_back_to_the_last_logged_ones(record):
    record["search"]["weights"] = None
    results = parse_results(record)
    assert results.weights == results.search.history[-1].weights


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(schema_version=2), "schema_version"),
        (lambda r: r.pop("schema_version"), "schema_version"),
        (lambda r: r.update(schema_version=True), "schema_version"),
        (lambda r: r.update(components="gpt"), "components"),
        (lambda r: r["components"][0].update(layers="three\nlines"), "components[0].layers"),
        (lambda r: r["components"][0].update(layers=2.5), "components[0].layers"),
        (lambda r: r["task"].update(higher_is_better="yes"), "task.higher_is_better"),
        (lambda r: r["search"].update(flops=10**400), "search.flops"),
        (lambda r: r["search"].update(path=[0, 7]), "search.path"),
        (lambda r: r["search"].update(weights=[[1.0, 0.0]]), "search.weights"),
        (lambda r: r["search"]["history"][3].update(weights=[[1.0], [1.0]]), "search.history.weights"),
        (lambda r: r["discretize"].update(path=[0, 1, 0]), "path"),
        (lambda r: r["combine"].update(boundaries=[[0, 3], [0, 2, 5]]), "combine.boundaries"),
        (lambda r: r["compare"]["rows"][0].update(budget=5), "compare.rows.budget"),
        (lambda r: r["compare"]["rows"][0]["seeds"][0]["metrics"].update({"a\nb": "x"}), "a b"),
    ],
)
def test_wrong_records_are_refused_in_one_line(record, change, says):
    change(record)
    with pytest.raises(ManticoreError) as caught:
        parse_results(record, where="run/results.json")
    message = str(caught.value)
    assert message.startswith("run/results.json: ")
    assert says in message
    assert "Fix: " in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"null", b"[" * 100_000])
def test_files_that_are_no_record_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ManticoreError, match=r"results\.json"):
        read_results(tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ManticoreError, match="no such file"):
        read_results(tmp_path)


def test_unprintable_characters_are_replaced():
    assert printable("a\x00b\x1bc\u202ed\ud800e\nf") == "a�b�c�d�e f"
    assert parse_results({"schema_version": 1, "name": "é 中 🜁"}).name == "é 中 🜁"


def test_larger_shapes_are_read():
    results = parse_results(build_record(3, 12, 300))
    assert (results.num_components, results.num_blocks) == (3, 12)
    assert len(results.search.history) == 300
