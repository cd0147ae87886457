"""What Python functions take beside what text can hold."""

import numpy as np
import pytest

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
