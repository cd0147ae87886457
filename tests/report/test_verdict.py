"""The verdict says better, worse, noise or unknown for the right reasons."""

from __future__ import annotations

import pytest

from manticore.experiments.intervals import mean_interval
from manticore.report import spending
from manticore.report.results import parse_results
from manticore.report.verdict import Standing, comparisons, verdict, warnings


def _set(record, model, budget, mean, interval):
    for row in record["compare"]["rows"]:
        if (row["model"], row["budget"]) == (model, budget):
            row.update(mean=mean, interval=interval)


def test_better_with_the_numbers_of_the_best_parent(record):
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.BETTER
    assert "beats its best parent, mamba" in judged.sentence
    assert "accuracy 0.981 against 0.882" in judged.sentence
    # Parents with everything the hybrid cost overlap with it.
    assert "but is within noise of its best parent, mamba" in judged.sentence
    assert judged.sentence.count(".") - judged.sentence.count("0.") == 1


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [([0.85, 0.92], Standing.BETTER), ([0.85, 0.97], Standing.NOISE), ([0.999, 1.0], Standing.WORSE)],
)
def test_outcome_follows_the_intervals(record, interval, outcome):
    _set(record, "mamba", 0, sum(interval) / 2, interval)
    assert verdict(parse_results(record)).outcome is outcome


def test_lower_is_better_for_a_loss(record):
    record["task"].update(primary_metric="loss", higher_is_better=False)
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.WORSE
    assert "gpt" in judged.sentence  # the parent with the lowest value


def test_one_seed_is_never_a_win(record):
    for row in record["compare"]["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None)
    results = parse_results(record)
    judged = verdict(results)
    assert judged.outcome is Standing.SEEN_BETTER
    assert judged.label == (
        "ahead with one seed, not proven (“fine-tuning alone”); behind with one seed (“everything the hybrid cost”)"
    )
    # Student's t for two seeds is 12.71: 0.099333 / 12.71 = 0.0078
    assert judged.sentence == (
        "With one seed the hybrid scored 0.981 against 0.882 of its best parent, mamba: 0.099 better, with the budget "
        "“fine-tuning alone”; and 0.981 against 0.985 of its best parent, mamba: 0.004 worse, with the budget "
        "“everything the hybrid cost” (accuracy, at equal compute). How far seeds differ was not measured. A second "
        "seed would give 95 % intervals: at a gap of 0.099 they stay apart if each model's two scores lie within "
        "0.0078 of each other; 3 seeds would need far less."
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
    assert judged.outcome is Standing.UNKNOWN
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
    # the words of the verdict are not kinder: gpt is no part of it, mamba is
    assert verdict(parse_results(record)).sentence.startswith("At equal compute")
    record["compare"]["rows"][0]["seeds"][0]["flops"] *= 0.8
    assert verdict(parse_results(record)).sentence.startswith(
        "With 79% to 99% of the budget in training FLOPs each, the hybrid beats"
    )


@pytest.mark.parametrize(
    ("gap", "outcome", "label"),
    [(1.6, Standing.SEEN_BETTER, "ahead with one seed"), (-1.6, Standing.SEEN_WORSE, "behind with one seed")],
)
def test_a_large_gap_with_one_seed_is_told_and_so_is_what_a_second_would_add(record, gap, outcome, label):
    record["task"].update(primary_metric="loss", higher_is_better=False)
    for row in record["compare"]["rows"]:
        mean = 4.0 - gap if row["model"] == "hybrid" else 4.0
        row.update(seeds=row["seeds"][:1], interval=None, mean=mean)
    judged = verdict(parse_results(record))
    assert judged.outcome is outcome
    assert judged.label.startswith(label)
    assert f"1.600 {'better' if gap > 0 else 'worse'}" in judged.sentence
    assert "stay apart if each model's two scores lie within 0.13 of each other" in judged.sentence
    # that is so: two scores that far apart for each model give intervals that just touch
    near, far = 0.12 / 2, 0.13 / 2
    for half, apart in ((near, True), (far, False)):
        ours, theirs = (mean_interval([mean - half, mean + half])[1] for mean in (2.4, 4.0))
        assert (ours[1] < theirs[0]) is apart


def test_a_parent_as_downloaded_that_is_better_takes_the_win_away(record):
    compare = record["compare"]
    compare["untrained"] = [{"model": "mamba", "metrics": {"accuracy": 0.5}, "left_out": ""}, {"model": "gpt"}]
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.BETTER
    assert judged.sentence.endswith("As downloaded, without any training, mamba scores 0.500.")
    compare["untrained"][1]["metrics"] = {"accuracy": 0.999}
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.WORSE, "worse, against a parent as downloaded")
    assert judged.sentence.endswith("gpt scores 0.999, which the hybrid does not reach.")
    compare["untrained"][1]["metrics"] = {"accuracy": record["compare"]["rows"][4]["mean"] - 0.001}
    assert verdict(parse_results(record)).outcome is Standing.NOISE
    for row in compare["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None)
    assert verdict(parse_results(record)).outcome is Standing.SEEN_BETTER
    compare["untrained"][1]["metrics"] = {"accuracy": 0.999}
    assert verdict(parse_results(record)).outcome is Standing.SEEN_WORSE


def test_whole_steps_are_named_as_the_reason_and_not_as_a_fault(record):
    row = record["compare"]["rows"][2]
    for seed in row["seeds"]:
        seed["flops"] = 0.79 * record["compare"]["budgets"][0]["flops"]
    row["step_flops"] = 0.21001 * record["compare"]["budgets"][0]["flops"]
    results = parse_results(record)
    (found,) = warnings(results)
    assert found.startswith("ensemble, budget 1: trained with 79.0% of the budget, for one step more would not have")
    marks = [spending.mark(results.compare, each) for each in results.compare.rows]
    assert marks == ["", "", "79% of the budget (whole steps)", "", "", "", ""]
    row["step_flops"] = 0.1 * record["compare"]["budgets"][0]["flops"]
    results = parse_results(record)
    assert spending.mark(results.compare, results.compare.rows[2]) == "79% of the budget"
    assert "not at equal compute" in warnings(results)[0]


def test_a_path_of_one_parent_is_called_that_parent(record):
    assert "is that parent" not in verdict(parse_results(record)).sentence
    record["discretize"]["path"] = [1, 1]
    assert verdict(parse_results(record)).sentence.endswith(
        "Every block keeps gpt: this hybrid is that parent, cut and joined again."
    )


def test_no_gap_with_one_seed_is_no_win(record):
    for row in record["compare"]["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None, mean=0.5)
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.SEEN_LEVEL, "level with one seed")
    assert "How far seeds differ was not measured" in judged.sentence
