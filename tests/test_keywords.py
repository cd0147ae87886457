"""What Python functions take beside what text can hold."""

import numpy as np
import pytest
from pydantic import ValidationError

from manticore import ManticoreError, compare
from manticore.keywords import merged
from manticore.settings import Combine, Compare, Finetune


@pytest.mark.parametrize("value", [np.array([0.9, 0.95]), (np.float64(0.9), np.float64(0.95)), (0.9, 0.95)])
def test_numbers_of_numpy_count_as_numbers(value):
    assert merged(Finetune, None, {"adam_betas": value}, stage="finetune").adam_betas == [0.9, 0.95]


def test_arrays_and_truth_values_of_numpy_count_as_pythons():
    settings = merged(Compare, None, {"seeds": np.arange(2), "ensemble": np.bool_(False)}, stage="compare")
    assert settings.seeds == [0, 1]
    assert settings.ensemble is False


def test_a_hybrid_can_be_combined_in_float64_by_name():
    assert merged(Combine, None, {"dtype": "float64"}, stage="combine").dtype == "float64"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Finetune(stepz=3), "finetune: unknown option 'stepz'. Did you mean 'steps'?"),
        (lambda: Finetune(steps=0), "finetune: steps is 0 (expected a whole number). Fix: give 1 or more"),
        (lambda: Combine(projector=None), "combine: projector is None (expected str). Fix: give one"),
        (
            lambda: Finetune(report_to=3),
            "finetune: report_to is 3 (expected str | Sequence[str] | None). Fix: ",
        ),
        (
            lambda: merged(Finetune, Finetune(steps=3), {"budget_flops": 10**12}, stage="finetune"),
            "finetune: steps and budget_flops are both given. Fix: give one of them, and None for the other",
        ),
        (lambda: compare({"a": 3}, "text"), "compare: 3 (expected models, folders or hub ids, in a list or by name). "),
        (
            lambda: compare("gpt", "text"),
            "compare: 'gpt' (expected models, folders or hub ids, in a list or by",
        ),
    ],
)
def test_wrong_options_end_in_one_line_of_ours_however_they_are_given(make, line):
    with pytest.raises(ManticoreError) as caught:
        make()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_settings_made_by_hand_and_checked_elsewhere_keep_the_places_of_their_errors():
    with pytest.raises(ValidationError, match="stepz"):
        Finetune.model_validate({"stepz": 3})
    assert Finetune(steps=3) == Finetune.model_validate({"steps": 3})
    assert merged(Finetune, Finetune(steps=3), {"budget_flops": 10**12, "steps": None}, stage="x").steps is None
