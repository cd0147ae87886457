"""Fits over many runs: known exponents are found, and what a table cannot tell is said."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manticore
from manticore.errors import ManticoreError
from manticore.experiments.fits import IsoFlops, isoflops, rank_correlation, read_runs, state_optimal

SIZE, BUDGETS = 0.46, (1e9, 4e9, 1.6e10, 6.4e10)
SHARES = (0.35, 0.6, 1.0, 1.7, 2.9)
"""Sizes, in shares of the best one."""
STATE = -0.28


def runs(
    name: str = "striped",
    noise: float = 0.0,
    seed: int = 0,
    level: float = 2.0,
    state: float | None = None,
    **given: Any,
) -> list[dict[str, Any]]:
    """A table whose best size is ``3 C^.46``, whose training FLOPs are ``6 N D``, whose losses are parabolas."""
    draws = np.random.default_rng(seed)
    table = []
    for flops in given.get("budgets", BUDGETS):
        best = 3 * flops**SIZE
        for share in given.get("shares", SHARES):
            size = best * share
            loss = level - 0.1 * math.log(flops) / 20 + 0.08 * math.log(share) ** 2 + noise * draws.normal()
            row = {"architecture": name, "flops": flops, "parameters": size, "tokens": flops / (6 * size), "loss": loss}
            table.append(row if state is None else {**row, "state": state})
    return table


def test_the_exponents_of_a_table_without_noise_are_exact() -> None:
    table = isoflops(runs())
    found = table.exponents["striped"]
    assert (found.size.value, found.data.value) == (pytest.approx(SIZE), pytest.approx(1 - SIZE))
    assert found.best(1e12) == (pytest.approx(3 * 1e12**SIZE), pytest.approx(1e12 ** (1 - SIZE) / 18))
    assert found.size.interval == (pytest.approx(SIZE), pytest.approx(SIZE))
    assert found.budgets == pytest.approx(BUDGETS)
    for minimum, flops in zip(table.minima, BUDGETS):
        assert minimum.parameters is not None
        assert minimum.loss is not None
        assert minimum.parameters.value == pytest.approx(3 * flops**SIZE)
        assert minimum.loss.value == pytest.approx(2 - 0.005 * math.log(flops))
        assert minimum.edge is None
    assert table.best_loss("striped", 4e9) == pytest.approx(2 - 0.005 * math.log(4e9))
    assert table.best_loss("striped") == pytest.approx(2 - 0.005 * math.log(BUDGETS[-1]))
    assert table.notes == []
    json.dumps(table.to_dict(), allow_nan=False)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % of tables: among 60, fewer than 51 or intervals of no width would be another method."""
    found = [isoflops(runs(noise=0.01, seed=s), resamples=200, seed=s).exponents["striped"] for s in range(60)]
    for exponent, truth in (("size", SIZE), ("data", 1 - SIZE)):
        intervals = [getattr(each, exponent).interval for each in found]
        assert sum(low <= truth <= high for low, high in intervals) >= 51
    widths = [each.size.interval[1] - each.size.interval[0] for each in found]  # type: ignore[index]
    spread = np.std([each.size.value for each in found])
    assert 2 * spread < np.median(widths) < 8 * spread


def test_the_same_seed_gives_the_same_intervals_whatever_else_is_in_the_table() -> None:
    alone = isoflops(runs(noise=0.01), resamples=100)
    together = isoflops([*runs("other", noise=0.02, seed=1), *runs(noise=0.01)], resamples=100)
    assert together.exponents["striped"] == alone.exponents["striped"]
    assert isoflops(runs(noise=0.01), resamples=100, seed=1) != alone


def test_seeds_of_one_size_and_budgets_that_are_nearly_equal_are_one_curve() -> None:
    table = runs(noise=0.01) + runs(noise=0.01, seed=1)
    for index, row in enumerate(table):
        row["flops"] *= 1 + 0.03 * (index % 2)
    assert len(isoflops(table).minima) == len(BUDGETS)
    with pytest.raises(ManticoreError, match="has 2 sizes at"):
        isoflops(table, tolerance=0.0)


@pytest.mark.parametrize(
    ("shares", "edge"), [((0.1, 0.3, 0.8), "above the largest"), ((1.3, 2.0, 4.0), "below the smallest")]
)
def test_a_minimum_outside_of_the_sizes_is_said_and_is_in_no_exponent(shares: tuple[float, ...], edge: str) -> None:
    outside = runs(budgets=BUDGETS[:1], shares=shares)
    table = isoflops(outside + runs(budgets=BUDGETS[1:]))
    assert [m.edge for m in table.minima] == [edge, None, None, None]
    (note,) = table.notes
    assert note.startswith(f"striped at 1e+09 FLOPs: the minimum lies {edge} size trained (")
    assert table.exponents["striped"].budgets == pytest.approx(BUDGETS[1:])
    alone = isoflops(outside + runs(budgets=BUDGETS[1:2]))
    assert alone.exponents == {}
    assert alone.notes[-1] == "striped: no exponents, since fewer than two budgets have a minimum among sizes"


def test_losses_that_bend_downwards_have_no_minimum() -> None:
    bent = runs(budgets=BUDGETS[:1])
    for row in bent:
        row["loss"] = 4 - row["loss"]
    table = isoflops(bent)
    assert table.minima[0].edge == "nowhere"
    assert "do not bend upwards" in table.notes[0]
    assert (table.minima[0].parameters, table.minima[0].loss) == (None, None)
    json.dumps(table.to_dict(), allow_nan=False)
    with pytest.raises(ManticoreError, match="no curve of striped"):
        table.best_loss("striped")


def test_three_sizes_have_a_minimum_without_an_interval() -> None:
    table = isoflops(runs(shares=SHARES[1:4], noise=0.01))
    assert table.exponents["striped"].size.interval is None
    assert str(table.exponents["striped"].size).endswith("(no interval)")


def of_states(exponent: float = STATE, noise: float = 0.0, seed: int = 0) -> IsoFlops:
    """Six architectures whose perplexity is a power of their state."""
    draws = np.random.default_rng(seed)
    table: list[dict[str, Any]] = []
    for index in range(6):
        state = 1000.0 * 2**index
        table += runs(f"m{index}", level=4 + exponent * math.log(state) + noise * draws.normal(), state=state)
    return isoflops(table, resamples=50)


def test_what_state_buys_is_found() -> None:
    exact = state_optimal(of_states())
    assert exact.exponent.value == pytest.approx(STATE)
    assert list(exact.by_budget.values()) == pytest.approx([STATE] * len(BUDGETS))
    assert len(exact.points) == 6 * len(BUDGETS)
    assert exact.left_out == {}
    noisy = [state_optimal(of_states(noise=0.05, seed=s), resamples=300).exponent for s in range(8)]
    assert sum(low <= STATE <= high for low, high in [n.interval for n in noisy if n.interval]) >= 6
    json.dumps(exact.to_dict(), allow_nan=False)


def test_architectures_that_keep_no_state_or_have_no_minimum_are_left_out_and_said() -> None:
    table = [row for index in range(3) for row in runs(f"m{index}", state=10.0 * 3**index)]
    outside = runs("small", state=7.0, shares=(0.1, 0.3, 0.8))
    found = state_optimal(isoflops([*table, *runs("mlp", state=0.0), *runs("silent"), *outside], resamples=50))
    assert set(found.left_out) == {"mlp", "silent", "small"}
    assert found.left_out["small"].endswith("is above the largest")
    with pytest.raises(ManticoreError, match=r"no budget has 3 architectures of different state.*silent: it keeps no"):
        state_optimal(isoflops([*table[:40], *runs("silent")], resamples=50))


def test_rank_correlations_are_those_of_scipy_with_ties() -> None:
    from scipy.stats import kendalltau, spearmanr

    draws = np.random.default_rng(0)
    a, b = draws.integers(0, 6, 20), draws.normal(size=20)
    b += 0.5 * a
    for method, theirs in (("spearman", spearmanr(a, b)), ("kendall", kendalltau(a, b))):
        found = rank_correlation(a.tolist(), b, method, resamples=200)  # type: ignore[arg-type]
        assert found.correlation.value == pytest.approx(theirs.statistic)
        assert found.correlation.interval is not None
        low, high = found.correlation.interval
        assert -1 <= low < found.correlation.value < high <= 1
        assert found.p_value == pytest.approx(theirs.pvalue, abs=0.05)


def test_scores_by_name_are_matched_and_a_perfect_order_of_few_says_how_little_it_means() -> None:
    found = rank_correlation({"a": 1.0, "b": 2.0, "c": 3.0}, {"c": 0.1, "a": 0.3, "b": 0.2}, resamples=60)
    assert found.correlation.value == pytest.approx(-1)
    # two of the six orders of three are as far from none
    assert found.p_value == pytest.approx(2 / 6)
    assert found.pairs == 3


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1.0, 2.0], [1.0, 2.0], r"2 pairs \(expected 3 or more\)"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "3 and 2 scores"),
        ({"a": 1.0}, [1.0], "one score is by name"),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0}, "'b' has one of the scores"),
        ([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0], "score 2 is nan"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "all scores are 1, which ranks nothing"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(first: Any, second: Any, said: str) -> None:
    with pytest.raises(ManticoreError, match=said) as refused:
        rank_correlation(first, second)
    assert "\n" not in str(refused.value)


def test_without_scipy_ranks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ManticoreError, match=r"scipy, which ranks.*pip install 'manticore-hybrids\[design\]'"):
        rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    # parabolas do without
    assert isoflops(runs(), resamples=50).exponents


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": None}, "row 2: loss is missing"),
        ({"loss": float("inf")}, "row 2: loss is inf"),
        ({"parameters": 0}, r"row 2: parameters is 0 \(expected a number above 0\)"),
        ({"flops": "many"}, "row 2: flops is 'many'"),
        ({"tokens": True}, "row 2: tokens is True"),
        ({"state": -1}, "row 2: state is -1"),
        ({"architecture": ""}, "row 2: architecture is ''"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(change: dict[str, Any], said: str) -> None:
    table = runs()
    table[1] |= change
    with pytest.raises(ManticoreError, match=f"runs, {said}") as refused:
        isoflops(table)
    assert "\n" not in str(refused.value)


def test_tables_are_read_from_files(tmp_path: Path) -> None:
    table = [row | {"more": [1]} for row in runs()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "b.json").write_text(json.dumps(table))
    (tmp_path / "c.json").write_text(json.dumps({"runs": table}))
    assert read_runs(tmp_path / "a.jsonl") == read_runs(str(tmp_path / "b.json")) == read_runs(tmp_path / "c.json")
    assert read_runs(read_runs(table)) == read_runs(table)
    for name, text, said in (
        ("d.jsonl", '{"architecture"', "cannot be read"),
        ("e.json", "{}", "no list of runs"),
        ("f.json", "[]", "holds no run"),
        ("g.json", "[3]", "row 1: a int"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ManticoreError, match=said) as refused:
            read_runs(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(ManticoreError, match="cannot be read"):
        read_runs(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resamples": 5}, "resamples is 5"),
        ({"inside": 1.0}, "inside is 1"),
        ({"tolerance": -1.0}, r"tolerance is -1.0 \(expected from 0 to below 1\). Fix: 0.05"),
        ({"tolerance": "x"}, "tolerance is 'x'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ManticoreError, match=said):
        isoflops(runs(), **options)


def test_it_is_public() -> None:
    assert manticore.fits.isoflops is isoflops


@pytest.mark.parametrize("flops", [0, -1, "x", float("nan"), float("inf")])
def test_a_budget_that_is_none_has_no_best_size(flops: Any) -> None:
    table = isoflops(runs())
    (exponents, *_) = table.exponents.values()
    for ask in (exponents.best, lambda flops: table.best_loss(table.minima[0].architecture, flops)):
        with pytest.raises(ManticoreError, match=r"flops is .* \(expected a positive number\)"):
            ask(flops)


@pytest.mark.parametrize("source", [None, 3, {"runs": []}])
def test_what_is_no_table_is_refused_in_one_line(source: Any) -> None:
    with pytest.raises(ManticoreError, match=r"runs: a .* \(expected a file, or rows\)"):
        isoflops(source)
