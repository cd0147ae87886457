"""Scores before rounding stand beside those of the saved weights, everywhere a score is read."""

from manticore.report.cautions import warnings
from manticore.report.results import as_results
from manticore.report.rounding import rounding_notes

SAVED, SINGLE = {"loss": 2.5, "accuracy": 0.5}, {"loss": 2.4875, "accuracy": 0.5}
RESULTS = {
    "schema_version": 1,
    "finetune": {"steps": 2, "metrics": SAVED, "metrics_float32": SINGLE},
    "compare": {
        "budgets": [{"name": "fine-tuning alone", "flops": 10}],
        "rows": [
            {"model": "a", "seeds": [{"seed": 3, "metrics": SAVED, "metrics_float32": SINGLE}]},
            {"model": "b", "seeds": [{"seed": 3, "metrics": SAVED, "metrics_float32": None}]},
        ],
    },
}
NOTES = [
    "The saved weights are rounded, and scored as they are saved; in float32: loss 2.4875 (saved: 2.5000).",
    "a, budget 1, is scored as it would be saved; in float32, seed 3: loss 2.4875 (saved: 2.5000).",
]


def test_only_what_rounding_has_changed_is_said():
    assert rounding_notes(as_results(RESULTS)) == NOTES
    assert rounding_notes(as_results({"schema_version": 1, "finetune": {"metrics": SAVED}})) == []


def test_report_terminal_and_card_say_it():
    # all three show these
    assert set(NOTES) <= set(warnings(as_results(RESULTS)))
