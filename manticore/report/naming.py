"""How the report calls paths, models and budgets; what is one parent throughout is never called a hybrid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from manticore import quantities
from manticore.experiments.rows import HYBRID, SUPERNET, is_ensemble
from manticore.report.results import Results

_EVERYTHING = "everything the hybrid cost"
"""What the larger budget was called in older records."""


def alone(results: Results) -> str | None:
    """The parent that every block keeps, by name; None where several are kept, a fresh one, or nothing is known."""
    kept = set(results.path) if not set(results.path) <= set(results.fresh) else set()
    return quantities.shorten(results.component_names[kept.pop()], 40) if len(kept) == 1 else None


def path_words(results: Results, path: Sequence[int]) -> str:
    """A path by the names of its components, an arrow for each hand-over: ``mamba → gpt ×2 → mamba``."""
    runs = [(k, len(list(blocks))) for k, blocks in itertools.groupby(path)]
    names = results.component_names
    words = [
        quantities.shorten(names[k], 24) + (f" ×{length}" if length > 1 and len(runs) > 1 else "") for k, length in runs
    ]
    return quantities.shorten(" → ".join(words), 90)


def model_name(results: Results, model: str) -> str:
    """A row's name in tables and figures."""
    parent = alone(results)
    return model if model != HYBRID or parent is None else f"{parent}, as found"


def subject(results: Results, model: str) -> str:
    """A row's name in a sentence: a discrete hybrid is its path."""
    if model == HYBRID:
        found = path_words(results, results.path) if results.path else "the hybrid"
        return found if alone(results) is None else model_name(results, model)
    if is_ensemble(model):
        return f"the {model}"
    return "the soft supernet" if model == SUPERNET else quantities.shorten(model, 40)


def budget_name(results: Results, budget: int) -> str:
    """The heading of a budget; empty where the record has none."""
    budgets = results.compare.budgets if results.compare else ()
    name = budgets[budget].name if budget < len(budgets) else ""
    return "everything it cost" if name == _EVERYTHING and alone(results) else name


def budget_words(results: Results, budget: int, *, equal: bool = True) -> str:
    """A budget in a sentence.

    Args:
        results: with the comparison.
        budget: index of it.
        equal: whether the rows spoken of came near enough to it to call them the same.
    """
    name, compare = budget_name(results, budget), results.compare
    if equal and not name:
        return "at equal compute"
    if equal and name.startswith("fine-tuning"):
        return "with the same fine-tuning"
    if compare and budget == compare.kinds[0][0] and compare.budgets[budget].flops == 0:
        return "before any training"
    if equal and compare and compare.over_budgets:
        return f"at the same total ({name})" if compare.budgets[budget].is_everything else f"at {name}"
    if equal and name.startswith("everything"):
        return "at the same total"
    return f"with the budget “{quantities.shorten(name, 60)}”" if name else "off the budget"
