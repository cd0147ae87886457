"""Results of a job of many independent runs, kept one line each, so that a killed job repeats none that is done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError, in_brief
from manticore.paths import refuse_links_out
from manticore.reading import damaged


class UnitLog:
    """A JSONL file: the job's settings on the first line, then one line per finished run.

    Args:
        path: the file; None keeps results in memory only.
        settings: everything that the results depend on, apart from their keys; JSON values.
        resume: whether results found in the file count.
        stage: the caller's name in error messages.

    Raises:
        ManticoreError: the file has results and `resume` is off, or they were made with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, resume: bool, stage: str) -> None:
        self._path = path
        self._results: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        settings = json.loads(json.dumps(settings))
        refuse_links_out(path.parent)
        lines = _whole_lines(path)
        if lines:
            if not resume:
                raise ManticoreError(
                    f"{stage}: {path} holds results of an earlier run. "
                    "Fix: resume it (resume=True) or choose another out"
                )
            before = lines[0]["settings"]
            for name in sorted({*before, *settings}):
                if before.get(name) != settings.get(name):
                    raise ManticoreError(
                        f"{stage}: {path} was started with {name}={before.get(name)!r} "
                        f"(got {settings.get(name)!r}). Fix: resume with the same settings or choose another out"
                    )
            self._results = {line["unit"]: line["result"] for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        # drops a line that was cut short
        aside = path.with_name(path.name + ".tmp")
        kept = [{"settings": settings}, *({"unit": u, "result": r} for u, r in self._results.items())]
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(aside, path)

    def get(self, unit: str) -> dict[str, Any] | None:
        """The result of a finished run."""
        return self._results.get(unit)

    def add(self, unit: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a finished run's result; returns it as it will be read back."""
        line = json.dumps({"unit": unit, "result": result})
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._results[unit] = json.loads(line)["result"]
        return self._results[unit]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    fix = "choose another out"
    try:
        if not path.is_file():
            raise damaged(path, "not a regular file", fix)
        text = path.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, in_brief(error, 100), fix) from error
    for number, line in enumerate(lines):
        keys = ("unit", "result") if number else ("settings",)
        if not isinstance(line, dict) or any(key not in line for key in keys):
            raise damaged(path, f"line {number + 1} lacks {keys[0]}", fix)
    return lines
