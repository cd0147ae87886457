"""The verdict says better, worse, noise or unknown for the right reasons."""

from __future__ import annotations

import pytest
from search_records import race_won_by_a_hybrid, race_won_by_a_parent, set_scores

from manticore.experiments.intervals import mean_interval
from manticore.report import spending
from manticore.report.cautions import warnings
from manticore.report.matches import Standing, comparisons
from manticore.report.results import parse_results
from manticore.report.verdict import verdict


def _set(record, model, budget, mean, interval):
    for row in record["compare"]["rows"]:
        if (row["model"], row["budget"]) == (model, budget):
            row.update(mean=mean, interval=interval)


def test_better_with_the_numbers_of_the_best_parent(record):
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.NOISE
    assert judged.label == "better with the same fine-tuning; within noise at the same total"
    assert judged.sentence == (
        "mamba → gpt beats the best parent (mamba) by 0.099 with the same fine-tuning (accuracy 0.981 against 0.882), "
        # parents with everything the hybrid cost overlap with it
        "but is within noise of the best parent (mamba) at the same total (accuracy 0.981 against 0.985). "
        "The search pays only where its answer is used more than once. "
        "Its price at inference, beside mamba: 1.13 M parameters (0.95×), 2.37 MFLOP per token (0.95×), "
        "2 KiB of cache per token (mamba: none), 40 KiB of state (0.5×)."
    )


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [([0.85, 0.92], Standing.BETTER), ([0.85, 0.97], Standing.NOISE), ([0.999, 1.0], Standing.WORSE)],
)
def test_outcome_follows_the_intervals(record, interval, outcome):
    for budget in (0, 1):
        _set(record, "mamba", budget, sum(interval) / 2, interval)
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
    assert judged.outcome is Standing.MIXED
    assert judged.label == (
        "ahead with one seed, not proven with the same fine-tuning; behind with one seed at the same total"
    )
    # Student's t for two seeds is 12.71: 0.099333 / 12.71 = 0.0078
    assert judged.sentence.startswith(
        "With one seed mamba → gpt scored 0.981 against 0.882 of the best parent (mamba), 0.099 better with the same "
        "fine-tuning; and 0.981 against 0.985 of the best parent (mamba), 0.004 worse at the same total (accuracy). "
        "How far seeds differ was not measured. A second seed would give 95 % intervals: at a gap of 0.099 they stay "
        "apart if each model's two scores lie within 0.0078 of each other; 3 seeds would need far less. The search "
        "pays only"
    )
    assert any("Only 1 seed " in text for text in warnings(results))


@pytest.mark.parametrize("missing", ["compare", "hybrid", "parents", "scores"])
def test_unknown_without_both_sides(record, missing):
    rows = record["compare"]["rows"]
    if missing == "compare":
        del record["compare"]
    elif missing == "hybrid":
        record["compare"]["rows"] = [r for r in rows if r["model"] in ("mamba", "gpt")]
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
    assert verdict(parse_results(record)).sentence.startswith("mamba → gpt beats")
    record["compare"]["rows"][0]["seeds"][0]["flops"] *= 0.8
    assert verdict(parse_results(record)).sentence.startswith(
        "With 79% to 99% of the budget in training FLOPs each, mamba → gpt beats the best parent (mamba) by 0.099 with "
        "the budget “fine-tuning alone”"
    )


@pytest.mark.parametrize(
    ("gap", "outcome", "label"),
    [(1.6, Standing.SEEN_BETTER, "ahead with one seed"), (-1.6, Standing.SEEN_WORSE, "behind with one seed")],
)
def test_a_large_gap_with_one_seed_is_told_and_so_is_what_a_second_would_add(record, gap, outcome, label):
    record["task"].update(primary_metric="loss", higher_is_better=False)
    for row in record["compare"]["rows"]:
        mean = {"hybrid": 4.0 - gap, "mamba": 4.0, "gpt": 4.5}.get(row["model"], 9.0)
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
    _set(record, "mamba", 1, 0.8, [0.75, 0.85])
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.BETTER
    assert judged.sentence.endswith("As downloaded, without any training, mamba scores 0.500.")
    compare["untrained"][1]["metrics"] = {"accuracy": 0.999}
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.WORSE, "worse, against a parent as downloaded")
    assert judged.sentence.endswith("gpt scores 0.999, which mamba → gpt does not reach.")
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


def test_a_path_of_one_parent_is_called_that_parent():
    judged = verdict(parse_results(race_won_by_a_parent()))
    assert (judged.outcome, judged.label) == (Standing.PARENT, "a parent alone is as good")
    assert judged.sentence.startswith(
        "mamba alone is as good: take it (accuracy 0.882 with the same fine-tuning, 0.985 at the same total). "
        "The ensemble loses to the best parent (mamba) by 0.315"
    )
    assert "hybrid" not in judged.sentence


def test_another_parent_that_is_better_than_the_one_found_is_named(record):
    record["discretize"]["path"] = record["search"]["path"] = [1, 1]
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.PARENT, "another parent is better")
    assert judged.sentence.startswith(
        "mamba alone is better than what the search found, gpt alone: take mamba (accuracy 0.985 against 0.311 at the "
        "same total)."
    )
    # an interval that overlaps is no reason to
    _set(record, "gpt", 1, 0.97, [0.95, 0.99])
    assert verdict(parse_results(record)).sentence.startswith("gpt alone is as good: take it")


def test_an_ensemble_that_wins_beside_a_parents_path_is_told_with_its_price():
    record = race_won_by_a_parent()
    for budget in (0, 1):
        set_scores(record, "ensemble", budget, [0.9991, 0.9992, 0.9993])
        set_scores(record, "mamba", budget, [0.90, 0.91, 0.92])
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.BETTER, "the ensemble: better")
    assert judged.sentence.startswith("The ensemble beats the best parent (mamba) by 0.089 with the same fine-tuning")
    assert "The path found keeps mamba throughout." in judged.sentence
    assert "Its price at inference, beside mamba: 2.23 M parameters (1.9×)" in judged.sentence


@pytest.mark.parametrize("model", ["ensemble", "supernet (soft)"])
def test_the_best_of_all_that_is_no_parent_is_named_and_the_path_too(record, model):
    for budget in (0, 1):
        _set(record, model, budget, 0.9991, [0.999, 0.9992])
    judged = verdict(parse_results(record))
    who = {"ensemble": "the ensemble", "supernet (soft)": "the soft supernet"}[model]
    assert judged.sentence.startswith(f"T{who[1:]} beats the best parent (mamba) by 0.117 with the same fine-tuning")
    assert f"The price of {who} at inference, beside mamba: 2." in judged.sentence
    # at the larger budget it has no row here, so the path is the best there
    assert "mamba → gpt is within noise of the best parent (mamba) at the same total" in judged.sentence
    assert (
        "The discrete hybrid: mamba → gpt beats the best parent (mamba) by 0.099 with the same fine-t"
        in judged.sentence
    )
    assert "The price of mamba → gpt at inference, beside mamba: 1.13 M parameters" in judged.sentence
    record["compare"]["rows"].append(
        {**record["compare"]["rows"][-1], "model": model, "mean": 0.9999, "interval": None}
    )
    assert " The discrete hybrid: mamba → gpt beats the best parent" in verdict(parse_results(record)).sentence


def test_a_win_without_its_price_says_so(record):
    for row in record["compare"]["rows"]:
        for name in ("parameters", "flops_per_token", "cache_bytes_per_token", "state_bytes"):
            row.pop(name)
    assert verdict(parse_results(record)).sentence.endswith("Its price at inference is not in the record.")


def test_with_three_seeds_a_win_in_both_columns_is_one():
    judged = verdict(parse_results(race_won_by_a_hybrid()))
    assert (judged.outcome, judged.label) == (Standing.BETTER, "better")
    assert "beats the best parent (mamba) by 0.210 at the same total" in judged.sentence
    assert "pays only" not in judged.sentence


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            race_won_by_a_hybrid,
            "it cannot be said whether mamba → gpt beats its parents. On held-out data it was 0.643 ahead of the best "
            "parent (mamba) after 7/12 of a unit of training (accuracy 0.965 against 0.322).",
        ),
        (
            race_won_by_a_parent,
            "mamba alone is as good as any path that the search looked at: take it. On held-out data its accuracy was "
            "0.907 after 8/12 of a unit of training.",
        ),
    ],
)
def test_before_a_comparison_the_search_says_what_it_saw(make, says):
    record = make()
    del record["compare"]
    judged = verdict(parse_results(record))
    assert judged.sentence.endswith(says)
    assert judged.outcome in (Standing.UNKNOWN, Standing.PARENT)


def test_weights_that_ended_at_a_parent_without_a_comparison_prove_nothing(record):
    record["discretize"]["path"] = record["search"]["path"] = [0, 0]
    del record["compare"]
    judged = verdict(parse_results(record))
    assert judged.outcome is Standing.UNKNOWN
    assert judged.sentence.startswith("Every block keeps mamba: what was found is that parent")


def test_no_gap_with_one_seed_is_no_win(record):
    for row in record["compare"]["rows"]:
        row.update(seeds=row["seeds"][:1], interval=None, mean=0.5)
    judged = verdict(parse_results(record))
    assert (judged.outcome, judged.label) == (Standing.SEEN_LEVEL, "level with one seed")
    assert "How far seeds differ was not measured" in judged.sentence
