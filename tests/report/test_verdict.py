"""The verdict says better, worse, noise or unknown for the right reasons."""

from __future__ import annotations

import pytest

from manticore.report.results import parse_results
from manticore.report.verdict import Outcome, comparisons, verdict, warnings


def _set(record, model, budget, mean, interval):
    for row in record["compare"]["rows"]:
        if (row["model"], row["budget"]) == (model, budget):
            row.update(mean=mean, interval=interval)


def test_better_with_the_numbers_of_the_best_parent(record):
    judged = verdict(parse_results(record))
    assert judged.outcome is Outcome.BETTER
    assert "beats its best parent, mamba" in judged.sentence
    assert "accuracy 0.981 against 0.882" in judged.sentence
    # Parents with everything the hybrid cost overlap with it.
    assert "but is within noise of its best parent, mamba" in judged.sentence
    assert judged.sentence.count(".") - judged.sentence.count("0.") == 1


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [([0.85, 0.92], Outcome.BETTER), ([0.85, 0.97], Outcome.NOISE), ([0.999, 1.0], Outcome.WORSE)],
)
def test_outcome_follows_the_intervals(record, interval, outcome):
    _set(record, "mamba", 0, sum(interval) / 2, interval)
    assert verdict(parse_results(record)).outcome is outcome


def test_lower_is_better_for_a_loss(record):
    record["task"].update(primary_metric="loss", higher_is_better=False)
    judged = verdict(parse_results(record))
    assert judged.outcome is Outcome.WORSE
    assert "gpt" in judged.sentence  # the parent with the lowest value


def test_one_seed_is_never_a_win(record):
    for row in record["compare"]["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None)
    results = parse_results(record)
    assert verdict(results).outcome is Outcome.UNKNOWN
    assert verdict(results).sentence == (
        "With one seed the hybrid scored 0.981 against 0.882 of its best parent, mamba, with the budget "
        "“fine-tuning alone”, and 0.981 against 0.985 of its best parent, mamba, with the budget "
        "“everything the hybrid cost” (accuracy, at equal compute); 3 or more seeds are needed for an interval."
    )
    assert any("Only 1 seed " in text for text in warnings(results))


@pytest.mark.parametrize("missing", ["compare", "hybrid", "parents", "scores"])
def test_unknown_without_both_sides(record, missing):
    rows = record["compare"]["rows"]
    if missing == "compare":
        del record["compare"]
    elif missing == "hybrid":
        record["compare"]["rows"] = [r for r in rows if r["model"] != "hybrid"]
    elif missing == "parents":
        record["compare"]["rows"] = [r for r in rows if r["model"] in ("hybrid", "ensemble")]
    else:
        for row in rows:
            row["mean"] = None
    judged = verdict(parse_results(record))
    assert judged.outcome is Outcome.UNKNOWN
    assert "cannot be said" in judged.sentence


def test_ensemble_and_supernet_are_no_parents(record):
    _set(record, "supernet (soft)", 0, 0.9999, [0.999, 1.0])
    assert {match.parent.model for match in comparisons(parse_results(record))} == {"mamba"}


def test_warnings_name_what_is_not_at_equal_compute(record):
    assert warnings(parse_results(record)) == []
    record["status"] = "interrupted"
    record["compare"]["rows"][1]["seeds"][0]["flops"] *= 1.2  # not flagged by who wrote it
    record["compare"]["rows"][2]["mismatch"] = True
    record["compare"]["rows"][3]["mean"] = float("nan")
    found = warnings(parse_results(record))
    assert "interrupted" in found[0]
    assert any(text.startswith("gpt, budget 1: training FLOPs are 18.8% off") for text in found)
    assert any(text.startswith("ensemble, budget 1: training FLOPs are marked as off the budget") for text in found)
    assert any(text == "supernet (soft), budget 1: no finite score." for text in found)
    assert not any(text.startswith("mamba") for text in found)
