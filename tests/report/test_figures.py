"""Figures: which ones a run gets, that they are the same every time, and well-formed with any name."""

from __future__ import annotations

from xml.dom import minidom

import matplotlib as mpl
import pytest
from run_records import HOSTILE_NAMES, build_record
from search_records import race_won_by_a_hybrid

from manticore.report.figures import FIGURE_NAMES, draw_figures
from manticore.report.palette import component_colour, model_colour, text_on, tint
from manticore.report.results import parse_results
from manticore.report.svg import inline


def _texts(svg):
    return ["".join(n.data for n in t.childNodes) for t in minidom.parseString(svg).getElementsByTagName("text")]


LEARNED = tuple(name for name in FIGURE_NAMES if name not in ("candidates", "text", "writing"))
"""What a search that learns mixture weights gets."""


def test_complete_run_gets_every_figure():
    assert tuple(draw_figures(parse_results(build_record()))) == LEARNED
    of_paths = draw_figures(parse_results(race_won_by_a_hybrid()))
    assert tuple(of_paths) == tuple(name for name in FIGURE_NAMES if name not in ("mixture_weights", "text", "writing"))
    # no entropy, no loss of a supernet
    shown = {text for drawing in of_paths.values() for text in _texts(drawing.svg)}
    assert not {"search: loss", "search: entropy of the mixture weights", "supernet"} & shown
    assert "Discretization" not in of_paths["gap"].title


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), set()),
        (("components",), set()),
        (("components", "combine"), {"blocks"}),
        (("components", "combine", "align"), {"blocks", "alignment"}),
        (("components", "search"), {"blocks", "mixture_weights", "curves"}),
        (("discretize",), {"blocks", "gap"}),
        (("compare",), {"comparison"}),
    ],
)
def test_partial_runs_get_the_figures_they_have_data_for(parts, expected):
    record = build_record()
    partial = {"schema_version": 1, **{part: record[part] for part in parts}}
    assert set(draw_figures(parse_results(partial))) == expected


def test_empty_tables_are_left_out():
    record = build_record()
    record["search"].update(history=[])
    record["finetune"]["history"] = []
    record["align"]["translations"] = []
    for row in record["compare"]["rows"]:
        row["mean"] = None
    record["discretize"] = {"path": [0, 1]}
    assert set(draw_figures(parse_results(record))) == {"blocks"}


def test_same_numbers_same_bytes_whatever_the_settings():
    results = parse_results(build_record())
    first = {name: drawing.svg for name, drawing in draw_figures(results).items()}
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "path"}):
        assert {name: drawing.svg for name, drawing in draw_figures(results).items()} == first
    assert mpl.rcParams["svg.hashsalt"] is None
    assert "<dc:date>" not in "".join(first.values())


@pytest.mark.parametrize(("components", "blocks", "steps"), [(2, 1, 1), (3, 12, 300), (4, 5, 2), (2, 2, 2000)])
def test_any_shape_is_drawn(components, blocks, steps):
    drawings = draw_figures(parse_results(build_record(components, blocks, steps)))
    assert set(drawings) == set(LEARNED)
    for drawing in drawings.values():
        minidom.parseString(drawing.svg)
        assert len(drawing.svg) < 400_000


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_stay_text(name):
    record = build_record()
    for component in record["components"]:
        component["name"] = name
    for row in record["compare"]["rows"]:
        row["model"] = name if row["model"] == "gpt" else row["model"]
    record["compare"]["budgets"][0]["name"] = name
    record["task"]["primary_metric"] = name
    results = parse_results(record)
    drawings = draw_figures(results)
    for drawing in drawings.values():
        page_form = inline(drawing.svg, drawing.name, results.component_names[0])
        for text in (drawing.svg, page_form):
            document = minidom.parseString(text)
            assert not document.getElementsByTagName("script")
            assert not document.getElementsByTagName("img")
    shown = _texts(drawings["blocks"].svg)
    if len(name) < 17:
        assert results.component_names[0] in [text.strip() for text in shown]


def test_values_that_are_missing_leave_gaps_not_errors():
    record = build_record()
    record["search"]["history"][7].update(weights=None, loss=None, entropy=float("nan"))
    record["search"]["history"][8]["weights"][0] = [None, None]
    record["align"]["translations"][0].update(r2=None, r2_heldout=-40.0)
    record["discretize"].update(loss_after=None, metric_before=None)
    record["compare"]["rows"][0].update(mean=None, interval=[None, None])
    drawings = draw_figures(parse_results(record))
    assert set(drawings) == set(LEARNED)
    assert "-40.00" in _texts(drawings["alignment"].svg)
    assert "no finite score" in _texts(drawings["comparison"].svg)


def test_block_picture_shows_layers_and_hand_overs():
    texts = _texts(draw_figures(parse_results(build_record()))["blocks"].svg)
    assert {"mamba", "gpt", "embed.", "head", "block 0", "block 1", "layers 0–1", "layers 2–4"} <= set(texts)
    undecided = build_record()
    undecided["discretize"]["path"] = undecided["search"]["path"] = []
    assert not {"embed.", "head"} & set(_texts(draw_figures(parse_results(undecided))["blocks"].svg))


def test_identifiers_of_two_figures_do_not_meet():
    drawings = draw_figures(parse_results(build_record()))
    elements = [e for d in drawings.values() for e in _elements(inline(d.svg, d.name, "x"))]
    ids = [e.getAttribute("id") for e in elements if e.hasAttribute("id")]
    assert len(ids) == len(set(ids))
    used = [e.getAttribute("xlink:href")[1:] for e in elements if e.hasAttribute("xlink:href")]
    used += [e.getAttribute("clip-path")[5:-1] for e in elements if e.hasAttribute("clip-path")]
    assert used
    assert set(used) <= set(ids)


def _elements(svg):
    return minidom.parseString(svg).getElementsByTagName("*")


def test_a_component_has_one_colour_everywhere():
    results = parse_results(build_record(3))
    colours = [model_colour(results, name) for name in results.component_names]
    assert colours == [component_colour(k) for k in range(3)]
    assert len({*colours, model_colour(results, "hybrid"), model_colour(results, "ensemble")}) == 5
    drawings = draw_figures(results)
    for name in ("blocks", "mixture_weights", "comparison"):
        assert component_colour(1) in drawings[name].svg
    assert tint("#0072b2", 0) == "#ffffff"
    assert tint("#0072b2", 1) == "#0072b2"
    assert text_on("#0072b2") == "#ffffff"
    assert text_on("#e69f00") != "#ffffff"


def test_weights_along_a_text_are_drawn_over_it():
    """Every token stands there, whatever it holds, on the colours of its weights; broken weights break nothing."""
    record = build_record()
    tokens = ["def", " <script>", "⏎", "$x$", "x" * 300, "\u202e", ""] * 9
    weights = [[t / len(tokens), 1 - t / len(tokens)] for t in range(len(tokens))]
    record["combine"] |= {"output": "bayes", "texts": [{"tokens": tokens, "weights": weights}] * 2}
    drawing = draw_figures(parse_results(record))["text"]
    shown = _texts(drawing.svg)
    assert sum(text.startswith("def") for text in shown) == shown.count(" <script>") == 18
    assert shown.count("⏎") == shown.count("$x$") == 18
    assert tint(component_colour(1), 0.4) in drawing.svg
    minidom.parseString(inline(drawing.svg, "text", "label"))
    record["combine"]["texts"] = [{"tokens": ["a"], "weights": [[float("nan"), 1.0]]}, {"tokens": [], "weights": []}]
    assert "text" in draw_figures(parse_results(record))
    record["combine"]["texts"] = []
    assert "text" not in draw_figures(parse_results(record))
