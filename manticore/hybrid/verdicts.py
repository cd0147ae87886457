"""Verdicts of checks that depend on configurations and versions alone: kept in the cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
import transformers

import manticore
from manticore.cache import Entry, cache_folder, content_key

logger = logging.getLogger(__name__)


class Verdict:
    """That something passed; what did not pass is checked again every time.

    Args:
        kind: of the check: a folder of the cache.
        about: what was checked, as JSON can hold it; the versions of what runs it are added.
    """

    def __init__(self, kind: str, about: Mapping[str, Any]) -> None:
        versions = {
            "manticore": manticore.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.entry = Entry(cache_folder(kind), content_key({"about": about, "versions": versions}), ".json")

    def is_known(self) -> bool:
        """Whether it passed before; a damaged entry does not count."""
        try:
            return self.entry.read() is not None
        except OSError:
            # what cannot be read saves no time
            return False

    def keep(self) -> None:
        """Remember that it passed, where that can be written."""
        try:
            with self.entry.aside() as aside:
                aside.write_text(json.dumps({"passed": True}), encoding="utf-8")
                self.entry.keep(aside)
        except OSError as error:
            logger.debug("a verdict is not remembered: %s", error)
