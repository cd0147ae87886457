import math

import pytest

from manticore.tasks.mad.score import Run, mean_score, model_scores, rank_correlation, setting_score


def run(setting="a/baseline", selection=0.5, score=None, lr=1e-3, weight_decay=0.0, model="m"):
    score = selection if score is None else score
    return Run(model, setting.split("/")[0], setting, lr, weight_decay, selection, score)


def test_a_setting_has_the_score_of_the_run_that_selection_prefers():
    runs = [run(selection=0.7, score=0.9, lr=1e-4), run(selection=0.8, score=0.6, lr=5e-4), run(selection=0.1)]
    best = setting_score("a/baseline", runs)
    assert (best.score, best.lr, best.runs, best.failed) == (0.6, 5e-4, 3, 0)


def test_runs_that_failed_are_left_out_and_counted():
    best = setting_score("s", [run(selection=math.nan), run(selection=math.inf), run(selection=0.2)])
    assert (best.score, best.runs, best.failed) == (0.2, 1, 2)
    assert setting_score("s", [run(selection=math.nan)]).score is None
    assert setting_score("s", []).score is None


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_runs_the_smallest_rate_and_decay_win_in_any_order(order):
    runs = [run(lr=lr, weight_decay=decay) for lr in (1e-4, 5e-4) for decay in (0.0, 0.1)][::order]
    best = setting_score("s", runs)
    assert (best.lr, best.weight_decay) == (1e-4, 0.0)


def test_means_are_over_settings_then_over_tasks_without_weights():
    runs = [
        run("a/baseline", 1.0),
        run("a/baseline", 0.4, lr=1e-4),
        run("a/x=1", 0.5),
        run("a/x=2", 0.0),
        run("b/baseline", 0.3),
        run("c/baseline", math.nan),
        run("b/baseline", 0.9, model="other"),
    ]
    first, second = model_scores(runs)
    assert first.model == "m"
    assert first.tasks["a"].score == pytest.approx(0.5)
    assert first.score == pytest.approx(0.4)
    assert first.num_scored_tasks == 2
    assert first.tasks["c"].score is None
    assert second.score == 0.9
    assert model_scores([]) == []
    assert mean_score([None, None]) is None


def test_published_task_scores_give_the_published_mean():
    # transformer of the benchmark: compression, fuzzy, recall, memorization, noisy, copying
    assert mean_score([0.516, 0.298, 0.941, 0.852, 0.868, 0.996]) == pytest.approx(0.745, abs=5e-4)


def test_rank_correlation():
    assert rank_correlation({"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 20, "c": 30, "d": 0}) == pytest.approx(1)
    assert rank_correlation({"a": 3, "b": 2, "c": 1}, {"a": 10, "b": 20, "c": 30}) == pytest.approx(-1)
    assert rank_correlation({"a": 1, "b": 1, "c": 2, "d": 3}, {"a": 1, "b": 2, "c": 3, "d": 4}) == pytest.approx(
        0.9486833, abs=1e-6
    )
    assert math.isnan(rank_correlation({"a": 1, "b": 1}, {"a": 1, "b": 2}))
    assert math.isnan(rank_correlation({"a": 1}, {"a": 1}))
