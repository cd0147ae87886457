"""Scores of float32 weights beside those of the saved ones, where rounding has changed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from manticore import quantities
from manticore.report.results import Results


def rounding_notes(results: Results) -> list[str]:
    """A sentence for every model whose scores changed when its weights took the type that they are saved in."""
    found = []
    if results.finetune is not None and results.finetune.metrics_float32:
        scores = _both(results.finetune.metrics, results.finetune.metrics_float32)
        found.append(f"The saved weights are rounded, and scored as they are saved; in float32: {scores}.")
    for row in results.compare.rows if results.compare else ():
        runs = [(run.metrics, run.metrics_float32, run.seed) for run in row.seeds if run.metrics_float32]
        if runs:
            seeds = "; ".join(f"seed {seed}: {_both(saved, single)}" for saved, single, seed in runs)
            name = quantities.shorten(row.model, 60)
            found.append(f"{name}, budget {row.budget + 1}, is scored as it would be saved; in float32, {seeds}.")
    return found


def _both(saved: Mapping[str, float | None], single: Mapping[str, float | None]) -> str:
    return ", ".join(_changed(saved, single))


def _changed(saved: Mapping[str, float | None], single: Mapping[str, float | None]) -> Iterator[str]:
    for name, score in single.items():
        rounded = saved.get(name)
        if score is not None and rounded is not None and score != rounded:
            yield f"{name} {score:.4f} (saved: {rounded:.4f})"
