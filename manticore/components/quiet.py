"""Keeps the libraries' bars and advice about kernels out of the way while this package loads and checks components.

The advice is about a forward pass that only the check makes: training and scoring exchange the scan of Mamba layers
for this package's own. Every other message of the libraries passes, and so do the bars of downloads, which take long.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

_KERNELS = logging.getLogger("transformers.integrations.hub_kernels")
_ADVICE = "is falling back to its reference PyTorch implementation"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars and its advice to install faster kernels; both are as before afterwards."""
    bars, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    _show(bars=False, downloads=downloads)
    _KERNELS.addFilter(_no_advice)
    try:
        yield
    finally:
        _KERNELS.removeFilter(_no_advice)
        _show(bars=bars, downloads=downloads)


def _show(*, bars: bool, downloads: bool) -> None:
    # transformers' switch throws the hub's as well
    if bars:
        transformers_logging.enable_progress_bar()
    else:
        transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    else:
        disable_progress_bars()


def _no_advice(record: logging.LogRecord) -> bool:
    return _ADVICE not in record.getMessage()
