"""What a person sees of a search that trained candidates: on the page, in the terminal, on the model card."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from rich.console import Console
from run_records import HOSTILE_NAMES, build_record, write_record
from search_records import (
    EXAMPLES,
    UNIT,
    blockwise_with_a_failure,
    candidate,
    exhaustive,
    learned_with_one_hot,
    one_hot_paths_of_darts,
    race_won_by_a_hybrid,
    race_won_by_a_parent,
    set_scores,
    with_candidates,
)
from test_page import Page

from manticore.errors import ManticoreError
from manticore.report import render_comparison, render_summary, write_model_card, write_report
from manticore.report.candidate_curves import candidates_figure
from manticore.report.candidates import spent
from manticore.report.cautions import warnings
from manticore.report.figures import draw_figures
from manticore.report.naming import path_words
from manticore.report.palette import INK, component_colour
from manticore.report.results import parse_results
from manticore.report.svg import house_style, to_svg
from manticore.report.verdict import verdict


def page_of(folder: Path, record: dict[str, Any]) -> Page:
    return Page(write_report(write_record(folder, record)).read_text(encoding="utf-8"))


def of_search(record: dict[str, Any]) -> dict[str, Any]:
    """What stands after the search: fewer figures to draw."""
    return {part: record[part] for part in ("schema_version", "components", "task", "combine", "search")}


def terminal(record: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_comparison(record), render_summary(record))
    return console.file.getvalue()  # type: ignore[attr-defined]


def curves_of(record: dict[str, Any]) -> str:
    """The picture of the learning curves."""
    with house_style():
        figure = candidates_figure(parse_results(record))
        assert figure is not None
        return to_svg(figure)


def texts_of(svg: str) -> set[str]:
    return {"".join(n.data for n in t.childNodes) for t in minidom.parseString(svg).getElementsByTagName("text")}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([0, 1], "mamba → gpt"),
        ([0, 0], "mamba"),
        ([0, 1, 1, 0], "mamba → gpt ×2 → mamba"),
        ([1, 1, 1, 0], "gpt ×3 → mamba"),
    ],
)
def test_a_hand_over_is_an_arrow_and_no_two_paths_read_alike(path, words):
    assert path_words(parse_results(build_record(num_blocks=len(path))), path) == words


def test_all_sixteen_paths_read_apart():
    results = parse_results(exhaustive())
    assert len({path_words(results, each.path) for each in results.search.candidates}) == 16


def test_the_page_has_every_candidate_with_its_numbers_and_why(tmp_path):
    record = of_search(blockwise_with_a_failure())
    page = page_of(tmp_path, record)
    won = record["search"]["candidates"][4]
    cells = page.row("mamba → gpt ×2 → mamba")
    assert cells[1:] == [f"{won['points'][-1]['loss']:.3f}", f"{won['points'][-1]['metric']:.3f}", "0.50", "1.04 TFLOP",
                         "chosen"]  # fmt: skip
    assert page.row("gpt → mamba ×3")[-1] == ""
    assert page.row("mamba → gpt ×3")[-1] == "failed: diverged: finetune: the loss is nan at step 71"
    assert page.row("mamba → gpt → mamba → gpt")[1:] == ["–", "–", "0.00", "0 FLOP", "failed: out of memory"]
    words = page.words()
    assert "The search (auto) trained 7 of 16 paths" in words
    assert "chose mamba → gpt ×2 → mamba: best of 7 paths after 6/12 of a unit" in words
    assert "2 of 7 candidates failed (diverged: finetune: the loss is nan at step 71; out of memory)" in words


def test_what_was_spent_adds_up_and_is_told_in_units(tmp_path):
    record = race_won_by_a_hybrid()
    parts = {part.what: part for part in spent(parse_results(record))}
    assert parts["training of the path found"].flops == pytest.approx(7 / 12 * UNIT)
    assert parts["training of the others"].flops == pytest.approx(3 * 7 / 12 * UNIT)
    assert parts["all of the search"].flops == pytest.approx(record["search"]["flops"])
    assert [part.units for part in parts.values()] == ["0.58", "1.75", "0.09", "2.43"]
    del record["compare"], record["align"]
    page = page_of(tmp_path, record)
    assert page.row("training of the others")[1:] == ["1.75", "3.5 TFLOP"]
    # what fine-tuning goes on from is paid once
    assert page.row("of these in the search and in fine-tuning")[3:] == ["1.17 TFLOP", "14 s"]
    assert page.row("all")[3:] == ["5.69 TFLOP", "1 min 38 s"]
    # a path that was trained from the start, since another was given or the search had a cheaper task
    record["finetune"]["begun_flops"] = 0
    assert page_of(tmp_path, record).row("all")[3] == "6.85 TFLOP"


def test_training_that_paths_share_is_a_part_of_its_own():
    record = race_won_by_a_hybrid()
    record["search"]["flops"] += UNIT
    parts = {part.what: part.units for part in spent(parse_results(record))}
    assert parts["weights that all paths share"] == "1.00"
    assert parts["all of the search"] == "3.43"
    del record["search"]["unit_flops"]
    assert {part.units for part in spent(parse_results(record))} == {"–"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_cut_in_eighty_columns(name):
    text = terminal(EXAMPLES[name]())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    if name not in ("gradient", "one-hot"):
        assert "candidates, on held-out data" in text
        assert "It cost " in " ".join(text.split())


def test_a_parents_path_is_nowhere_called_a_hybrid(tmp_path):
    record = race_won_by_a_parent()
    # as older runs named it
    record["compare"]["budgets"][1]["name"] = "everything the hybrid cost"
    (tmp_path / "model").mkdir()
    page = page_of(tmp_path, record).words()
    card = write_model_card(tmp_path / "model", record).read_text(encoding="utf-8")
    for said in (page, card, terminal(record)):
        assert "mamba alone is as good: take it" in " ".join(said.split())
        assert "hybrid" not in said.replace("manticore-hybrids", "").lower()
    drawn = draw_figures(parse_results(record))
    assert "mamba, as found" in texts_of(drawn["comparison"].svg)
    assert not any("hybrid" in text for each in drawn.values() for text in texts_of(each.svg))


def test_a_parent_above_the_limits_is_not_recommended(tmp_path):
    record = race_won_by_a_parent()
    search = record["search"]
    for each, parameters in zip(search["candidates"], (1.0, 3.0, 1.5, 2.0), strict=True):
        each["costs"] = {"parameters": parameters}
    for budget in (0, 1):
        set_scores(record, "gpt", budget, [0.997, 0.998, 0.999])
        set_scores(record, "mamba", budget, [0.895, 0.9, 0.905])
    assert verdict(parse_results(record)).sentence.startswith("gpt alone is better than what the search found, mamba")
    search["limits"] = {"parameters": 2.0}
    assert verdict(parse_results(record)).sentence.startswith("mamba alone is as good as all that keeps the limits")


def test_the_card_of_a_parents_path_names_that_parent_alone(tmp_path):
    record = race_won_by_a_parent()
    for component, source in zip(record["components"], ("state-spaces/mamba-130m-hf", "EleutherAI/gpt-neo-125m")):
        component["source"] = source
    head = write_model_card(tmp_path, record).read_text(encoding="utf-8").split("---")[1]
    assert "state-spaces/mamba-130m-hf" in head
    assert "gpt-neo" not in head
    assert "base_model_relation: finetune" in head


def test_the_card_says_how_the_path_was_found(tmp_path):
    card = " ".join(write_model_card(tmp_path, race_won_by_a_hybrid()).read_text(encoding="utf-8").split())
    assert "The search (race) trained 4 of 4 paths, each by itself, scored them on held-out data" in card
    assert "It cost 2.43 units (0.58 training of the path found, 1.75 training of the others" in card
    learned = write_model_card(tmp_path, build_record()).read_text(encoding="utf-8")
    assert "How the path was found" not in learned


def test_a_search_that_learned_weights_shows_what_it_showed(tmp_path):
    page = page_of(tmp_path, build_record())
    words = page.words()
    assert "How the path was found" not in words
    assert "Mixture weights during the search" in words
    assert "search darts, simultaneous" in words
    assert "Discretization gap" in words


def test_one_hot_paths_stand_beside_the_one_of_the_largest_weights(tmp_path):
    record = one_hot_paths_of_darts()
    page = page_of(tmp_path, of_search(record))
    assert page.row("mamba")[1:] == ["1.400", "0.410", "0.120", "best, parent"]
    assert page.row("mamba → gpt")[1:] == ["1.500", "0.380", "", "largest mixture weights"]
    assert page.row("gpt")[1:] == ["1.900", "0.220", "0.140", "parent"]
    words = page.words()
    assert "One-hot paths of the supernet After darts had learned the mixture weights, 4 one-hot paths were" in words
    assert "256 held-out examples" in words
    said = "but mamba scores best on held-out data (accuracy 0.410 against 0.380)."
    assert said in words
    # nobody trained them, so there are no curves
    assert candidates_figure(parse_results(record)) is None
    assert "How the path was found" not in words
    shown = " ".join(terminal(record).split())
    assert said in shown
    assert "largest mixture weights" in shown


HELD_OUT = {(0, 0): (1.4, 0.41), (1, 1): (1.9, 0.22), (0, 1): (1.3, 0.45)}


@pytest.mark.parametrize(
    ("ends", "before", "said"),
    [
        # the largest weights are the best path's, as its loss says
        ({**HELD_OUT, (0, 0): (1.4, 0.45)}, None, None),
        (
            {**HELD_OUT, (0, 0): (1.2, 0.45)},
            None,
            "The largest mixture weights are those of mamba → gpt, but mamba scores best on held-out data "
            "(accuracy 0.450 against 0.450).",
        ),
        # 0.125 is chance; of 256 examples 0.04 more may be luck
        (
            {(0, 1): (2.0, 0.16), (0, 0): (2.1, 0.13)},
            None,
            "None of the 2 one-hot paths is better than chance (0.125).",
        ),
        ({(0, 1): (2.0, 0.17), (0, 0): (2.1, 0.13)}, None, None),
        (
            {(0, 1): (2.1, 0.11), (0, 0): (2.0, 0.12)},
            None,
            "The largest mixture weights are those of mamba → gpt, but mamba scores best on held-out data (accuracy "
            "0.120 against 0.110), and none of the 2 one-hot paths is better than chance (0.125).",
        ),
        (
            HELD_OUT,
            {(0, 0): (1.1, 0.44), (1, 1): (1.0, 0.52)},
            "None of the 3 one-hot paths is better than gpt was before the search (0.520).",
        ),
        (HELD_OUT, {(0, 0): (1.1, 0.44), (1, 1): (1.9, 0.3)}, None),
        ({}, None, None),
    ],
)
def test_weights_that_name_another_path_than_the_best_and_paths_that_are_all_wrong_are_told(ends, before, said):
    record = learned_with_one_hot(ends, before)
    assert warnings(parse_results(record)) == ([] if said is None else [said])


def test_losses_are_judged_as_losses(tmp_path):
    record = learned_with_one_hot({(0, 1): (3.9, 3.9), (0, 0): (4.0, 4.0)}, {(0, 0): (3.8, 3.8)})
    record["search"] |= {"metric": "loss", "higher_is_better": False}
    record["task"] |= {"primary_metric": "loss", "higher_is_better": False, "chance": 3.8}
    assert warnings(parse_results(record)) == ["None of the 2 one-hot paths is better than chance (3.800)."]
    record["task"]["chance"] = 7.0
    assert warnings(parse_results(record)) == [
        "None of the 2 one-hot paths is better than mamba was before the search (3.800)."
    ]
    # one column less
    assert page_of(tmp_path, of_search(record)).row("mamba → gpt")[1:] == ["3.900", "", "largest mixture weights, best"]


def test_many_paths_with_gaps_give_a_table_of_bounded_size_that_holds_the_one_found(tmp_path):
    record = learned_with_one_hot({(0, 1): (9.0, 0.0), (1, 0): (1.0, 0.9)})
    worst, best = record["search"]["shared"]
    worst["points"][0] = {"mark": 0, "steps": 3}
    broken = {**best, "points": [], "failed": "x" * 5000}
    record["search"]["shared"] = [worst, *([best] * 60), broken]
    page = page_of(tmp_path, of_search(record))
    assert page.row("mamba → gpt")[1:] == ["–", "–", "largest mixture weights"]
    assert "and 22 more in results.json" in page.words()
    assert "and 50 more in results.json" in terminal(record)
    record["search"]["shared"][0]["path"] = [0, 7]
    with pytest.raises(ManticoreError, match=r"search.shared.path"):
        parse_results(record)


def test_the_chosen_path_and_the_parents_stand_out_of_a_crowd():
    few = curves_of(race_won_by_a_hybrid())
    assert {"mamba → gpt (chosen)", "gpt → mamba", "mamba", "gpt"} <= texts_of(few)
    many = curves_of(exhaustive())
    assert "13 other paths" in texts_of(many)
    for colour in (INK, component_colour(0), component_colour(1)):
        assert f"stroke: {colour}" in many
    parent = curves_of(race_won_by_a_parent())
    assert "mamba (chosen)" in texts_of(parent)


def hundred() -> dict[str, Any]:
    """More candidates than can be shown, with everything that a file can hold."""
    record = exhaustive(3, 5)
    found = record["search"]["candidates"]
    assert len(found) == 243
    found[3]["points"][2] = {"mark": 3, "loss": float("nan"), "metric": None}
    found[4]["points"] = []
    found[5]["points"] *= 50
    found[6]["points"][-1]["loss"] = 1e299
    found[7]["points"] = [{"mark": 10**12, "metric": 0.5}]
    found[8].update(flops=None, failed="x" * 5000)
    found[9]["flops"] = float("inf")
    return record


def test_a_hundred_candidates_and_gaps_in_them_give_a_page_of_bounded_size(tmp_path):
    record = of_search(hundred())
    page = page_of(tmp_path, record)
    assert "and 203 more in results.json" in page.words()
    assert sum(len(row) == 6 and row[-1].strip() in ("chosen", "parent", "") for row in page.rows) == 40
    assert len(curves_of(record)) < 400_000
    assert "and 231 more in results.json" in terminal(record)


@pytest.mark.parametrize("change", ["points", "unit_flops", "reason", "metric", "trained_flops", "flops", "chosen"])
def test_what_is_missing_is_left_out(tmp_path, change):
    record = race_won_by_a_hybrid()
    for place in (record["search"], *record["search"]["candidates"]):
        place.pop(change, None)
    words = page_of(tmp_path, of_search(record)).words()
    assert "How the path was found" in words
    assert "None" not in words.replace("None of", "")
    assert "nan" not in words
    terminal(record)


@pytest.fixture(scope="module")
def clean_tags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    return {tag for tag, _ in page_of(folder, of_search(blockwise_with_a_failure())).elements}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_texts_of_candidates_are_escaped(tmp_path, clean_tags, name):
    record = blockwise_with_a_failure()
    record["search"] |= {"reason": name, "method": name, "metric": name}
    for each in record["search"]["candidates"]:
        each["failed"] = name
    for component in record["components"]:
        component["name"] = name
    page = page_of(tmp_path / "run", of_search(record))
    assert {tag for tag, _ in page.elements} <= clean_tags
    svg = (tmp_path / "run" / "figures" / "candidates.svg").read_text(encoding="utf-8")
    assert not minidom.parseString(svg).getElementsByTagName("script")
    (tmp_path / "model").mkdir()
    card = write_model_card(tmp_path / "model", of_search(record)).read_text(encoding="utf-8")
    assert "<script" not in card
    assert not re.search(r"(?<!\\)\]\(http", card)
    assert "\x1b" not in terminal(of_search(record))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found[0].update(path=[0]), "search.candidates.path"),
        (lambda found: found[0].update(path=[0, 2]), "2 indices below 2"),
        (lambda found: found[0].update(path=[0, -1]), "2 indices below 2"),
        (lambda found: found[0].update(chosen=True), "at most one that is chosen"),
        (lambda found: (found[0].update(chosen=True), found[2].update(chosen=False)), "to have path [0, 1]"),
        (lambda found: found[0]["points"][0].update(mark=-1), "search.candidates.points.mark"),
        (lambda found: found[0].update(points="x"), "search.candidates[0].points"),
        (lambda found: found[0].update(failed=3), "search.candidates[0].failed"),
    ],
)
def test_candidates_that_do_not_fit_are_refused_in_one_line(change, says):
    record = race_won_by_a_hybrid()
    change(record["search"]["candidates"])
    with pytest.raises(ManticoreError) as caught:
        parse_results(json.loads(json.dumps(record)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_block_chooses_among_checkpoints(tmp_path):
    found = [candidate([0], 0.9, 4, 6, chosen=True), candidate([1], 0.3, 4, 6)]
    record = with_candidates(found, "race", "0.9 nats ahead of the second after 6/12 of a unit", 1)
    del record["compare"], record["align"]
    words = page_of(tmp_path, record).words()
    assert "mamba alone is as good as any path that the search looked at: take it" in words
    assert "trained 2 of 2 paths" in words
