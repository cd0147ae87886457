"""Loading and checking components says nothing that a person could not use, and lets everything else through."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_families import tiny_model
from manticore.components.quiet import quiet_loading

COMBINE = """
import sys
import manticore
from transformers.utils import logging
hybrid = manticore.combine(sys.argv[1:], num_blocks=2)
print(logging.is_progress_bar_enabled())
"""


def test_combine_is_silent_in_a_new_process(tmp_path: Path) -> None:
    for family in ("gpt_neo", "mamba"):
        tiny_model(family).save_pretrained(tmp_path / family)
    names = [str(tmp_path / family) for family in ("gpt_neo", "mamba")]
    finished = subprocess.run(
        [sys.executable, "-c", COMBINE, *names], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "True\n", "")


def test_other_warnings_pass(caplog: pytest.LogCaptureFixture) -> None:
    kernels = logging.getLogger("transformers.integrations.hub_kernels")
    # the command line's tests in the same process make transformers quieter
    caplog.set_level(logging.WARNING, logger=kernels.name)
    kernels.addHandler(caplog.handler)
    try:
        with quiet_loading():
            kernels.warning("`scan` is falling back to its reference PyTorch implementation because of this")
            kernels.warning("the kernel is broken")
        kernels.warning("`scan` is falling back to its reference PyTorch implementation because of that")
    finally:
        kernels.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    assert "the kernel is broken" in said
    assert [text for text in said if text.endswith("this")] == []
    assert [text for text in said if text.endswith("that")] != []


@pytest.fixture
def switches() -> Iterator[None]:
    """Both switches of this process, which other tests may have thrown, come back."""
    bars, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    yield
    (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
    (enable_progress_bars if downloads else disable_progress_bars)()


def look_and_fail(inside: list[bool]) -> None:
    with quiet_loading():
        inside += [transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()]
        raise KeyError


@pytest.mark.parametrize("downloads", [True, False])
def test_bars_are_as_before_also_after_an_error(downloads: bool, switches: None) -> None:
    transformers_logging.enable_progress_bar()
    (enable_progress_bars if downloads else disable_progress_bars)()
    inside: list[bool] = []
    with pytest.raises(KeyError):
        look_and_fail(inside)
    assert inside == [False, downloads]
    assert transformers_logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled() == (not downloads)
