"""Comparisons over budgets: who leads where, in words that are no kinder than the numbers; the picture; the edges."""

from __future__ import annotations

import io
from xml.dom import minidom

import pytest
from rich.console import Console
from run_records import HOSTILE_NAMES, over_budgets

from manticore.report import render_comparison
from manticore.report.cautions import warnings
from manticore.report.figures import draw_figures
from manticore.report.html import write_report
from manticore.report.matches import Standing
from manticore.report.results import parse_results
from manticore.report.verdict import verdict
from manticore.stages.compare import Row, SeedRun

BAYES = "ensemble (bayes)"


def near(*means: float) -> list[list[float]]:
    """Three seeds each, close together."""
    return [[mean - 0.001, mean, mean + 0.001] for mean in means]


def over(**changes):
    scores = {
        "mamba": near(5.4, 4.8, 3.9),
        "gpt": near(5.6, 5.2, 4.6),
        BAYES: near(4.3, 4.3, 4.2),
        "hybrid": near(5.8, 4.9, 4.1),
    }
    return over_budgets({**scores, **changes})


def test_a_crossing_is_named_by_flops_and_share():
    judged = verdict(parse_results(over()))
    # .5 ahead at a quarter, .3 behind at the end: five eighths of the way
    share = 0.25 + 0.5 / 0.8 * 0.75
    assert judged.sentence.startswith(
        f"The ensemble (bayes) leads until about 1.44 TFLOP ({share:.2g} of the fine-tuning budget), from there on "
        "mamba (loss: the ensemble (bayes) 4.300, mamba 5.400 before any training; "
    )
    # the best of what is no parent at each end
    assert "; mamba → gpt 4.100, mamba 3.900 at 1 × fine-tuning). " in judged.sentence
    assert (judged.outcome, judged.label) == (Standing.MIXED, "better at one budget, worse at another")


def test_a_lead_at_every_budget_is_one_and_a_loss_at_every_budget_is_one():
    ahead = verdict(parse_results(over(**{BAYES: near(4.3, 4.2, 3.8)})))
    assert ahead.sentence.startswith("The ensemble (bayes) leads at every budget (loss: ")
    assert ahead.outcome is Standing.BETTER
    # the price stands beside the parent that is best with all of the fine-tuning, not the one that was before it
    changed = verdict(parse_results(over(**{BAYES: near(4.3, 4.2, 3.8), "gpt": near(5.2, 5.2, 4.6)})))
    assert "at inference, beside mamba: " in changed.sentence
    assert "beside gpt" not in changed.sentence
    behind = verdict(parse_results(over(**{BAYES: near(5.5, 5.0, 4.0)})))
    assert behind.sentence.startswith("mamba leads at every budget (loss: ")
    assert behind.outcome is Standing.WORSE


def test_a_lead_inside_the_intervals_is_a_tie():
    wide = [[4.0, 4.8, 5.6]]
    judged = verdict(parse_results(over(mamba=near(5.4) + wide + near(3.9))))
    assert judged.sentence.startswith(
        "The ensemble (bayes) leads up to “untrained”, from “0.25 × fine-tuning” on the ensemble (bayes) and mamba are "
        "level, from “1 × fine-tuning” on mamba leads (loss: "
    )
    assert "until about" not in judged.sentence


def test_with_one_seed_a_lead_is_what_was_seen():
    one = {"mamba": [[5.4], [4.8], [3.9]], BAYES: [[4.3], [4.3], [4.2]]}
    judged = verdict(parse_results(over_budgets(one)))
    assert "from there on mamba (one seed: how far seeds differ was not measured)" in judged.sentence
    assert judged.outcome is Standing.MIXED


def test_what_counts_everything_has_a_sentence_of_its_own():
    scores = {
        "mamba": near(5.4, 4.8, 3.9, 5.0, 4.4, 3.7),
        "hybrid": near(5.8, 4.7, 3.8, 5.8, 4.7, 3.8),
    }
    judged = verdict(parse_results(over_budgets(scores, spent=1e12)))
    first, second = judged.sentence.split("). ")[:2]
    assert first.startswith("mamba leads until about ")
    assert "from there on mamba → gpt (loss" in first
    assert second.startswith("mamba leads at every budget (loss: mamba → gpt 5.800, mamba 5.000 at the same total (")
    assert "The search pays only where its answer is used more than once." in judged.sentence


def test_a_larger_model_is_shown_for_scale_and_is_neither_parent_nor_winner():
    record = over(**{BAYES: near(4.3, 4.2, 3.8), "larger: giant": near(5.9, 4.9, 3.1)})
    names = ["mamba", "gpt", "larger: giant"]
    record["compare"]["untrained"] = [{"model": name, "metrics": {"loss": 0.1}, "left_out": ""} for name in names]
    judged = verdict(parse_results(record))
    # that parents as downloaded were better is told of parents alone
    assert judged.sentence.startswith("The ensemble (bayes) leads at every budget")
    assert (
        " For scale, larger: giant (13 M parameters, 0.81×) scores 3.100 at 1 × fine-tuning, ahead of the ensemble "
        "(bayes) (3.800)." in judged.sentence
    )


def test_models_of_any_name_are_told_apart_by_what_they_were_given_as():
    record = over_budgets({"small": near(4.0, 3.9, 3.8), "big": near(4.5, 4.4, 4.3)})
    record["compare"]["untrained"] = [{"model": "big", "metrics": {"loss": 4.5}, "left_out": ""}]
    assert verdict(parse_results(record)).sentence.startswith("small leads at every budget (loss: small 4.000, big 4.5")


@pytest.mark.parametrize("shares", [(0, 0.25, 1), (0.5, 1), (0, 0.01, 0.1, 1, 30)])
def test_the_picture_has_a_line_for_each_model(shares):
    scores = {name: near(*[4.0 - k] * len(shares)) for k, name in enumerate(("mamba", BAYES, "hybrid"))}
    drawing = draw_figures(parse_results(over_budgets(scores, shares)))["comparison"]
    assert drawing.title == "Scores over budgets"
    texts = [
        "".join(n.data for n in t.childNodes) for t in minidom.parseString(drawing.svg).getElementsByTagName("text")
    ]
    assert {"mamba", BAYES, "hybrid", "fine-tuning alone"} <= set(texts)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_stay_text_in_the_picture_and_the_page(name, tmp_path):
    record = over_budgets({name: near(5.4, 4.8, 3.9), BAYES: near(4.3, 4.3, 4.2)})
    (tmp_path / "results.json").write_text(__import__("json").dumps(record))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    minidom.parse(str(tmp_path / "figures" / "comparison.svg"))


def test_a_missing_score_leaves_a_gap():
    record = over()
    record["compare"]["rows"][1].update(mean=None, interval=None)
    assert "comparison" in draw_figures(parse_results(record))
    # without mamba at a quarter, gpt is the best parent there
    assert verdict(parse_results(record)).outcome is Standing.MIXED


def printed(record, width=80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_comparison(record))
    return console.file.getvalue()


def test_many_budgets_are_cut_into_tables_that_fit():
    shares = (0, 0.1, 0.25, 0.5, 1)
    record = over_budgets({"mamba": near(5, 4, 3, 2, 1), BAYES: near(5, 4, 3, 2, 1)}, shares)
    text = printed(record)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("0.1 ×", "untrained", "1 × fine-tuning"):
        assert words in text
    assert text.count("│ mamba ") == 3


def test_the_best_rate_at_the_edge_is_a_mark_in_the_table_and_a_warning():
    record = over()
    assert not [said for said in warnings(parse_results(record)) if "rate" in said]
    for row in record["compare"]["rows"]:
        if row["model"] == "mamba" and row["budget"] == 2:
            for seed in row["seeds"]:
                seed["lr"] = 3e-3
    assert "mamba: the best learning rate at 1 of 2 budgets is the highest that was tried (0.003), so" in " ".join(
        warnings(parse_results(record))
    )
    assert printed(record, 160).count("highest rate tried") == 1


@pytest.mark.parametrize(
    ("rates", "used", "edge"),
    [
        ((1e-3, 3e-3), 1e-3, ("lowest", 1e-3)),
        ((1e-3, 3e-3), 3e-3, ("highest", 3e-3)),
        ((3e-3, 1e-3, 1e-2), 3e-3, None),
        # nothing to be at the edge of
        ((1e-3,), 1e-3, None),
        # of older records
        ((), 1e-3, None),
        ((1e-3, 3e-3), None, None),
    ],
)
def test_the_edge_is_where_no_rate_was_tried_beyond(rates, used, edge):
    assert Row(rates=rates, seeds=(SeedRun(lr=used),)).edge == edge
