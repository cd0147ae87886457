"""What a cell of the table of scores says, the same on the page, in the terminal and in the model card."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from manticore import quantities
from manticore.report import spending
from manticore.report.naming import budget_name
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord, Row

BY_BYTES = "bits_per_byte"


def below(row: Row, task: TaskInfo) -> list[str]:
    """What stands below a score: its interval, a rate at the edge, for text bits per byte, and each source's own."""
    found = []
    if row.bounds is not None:
        found.append(quantities.interval(row.bounds))
    elif len(row.seeds) == 1:
        found.append("one seed")
    if row.edge is not None:
        found.append(f"{row.edge[0]} rate tried")
    return found + _of_text(row.mean_of, [name for seed in row.seeds for name in seed.metrics], task)


def as_downloaded(compare: CompareRecord, model: str, task: TaskInfo) -> list[str]:
    """The score of a model before any training, and what stands below it; an n-dash where there is none."""
    found = [quantities.score(compare.before(model, task.primary_metric))]
    names = [name for scored in compare.untrained for name in scored.metrics]
    return found + _of_text(lambda metric: compare.before(model, metric), names, task)


def _of_text(score: Callable[[str], float | None], names: Iterable[str], task: TaskInfo) -> list[str]:
    """How many bits a byte costs, and of a mixture the loss of each source, with its bits per byte."""
    found, bits = [], score(BY_BYTES)
    if bits is not None and task.primary_metric != BY_BYTES:
        found.append(f"{quantities.score(bits)} bits per byte")
    for source in dict.fromkeys(name.partition(":")[2] for name in names if ":" in name):
        loss, bits = score(f"loss:{source}"), score(f"{BY_BYTES}:{source}")
        by_bytes = "" if bits is None else f", {quantities.score(bits)} bits"
        if loss is not None:
            found.append(f"{source} {quantities.score(loss)}{by_bytes}")
    return found


def has_downloaded(compare: CompareRecord) -> bool:
    """Whether any model was scored before training, and no budget says the same of all."""
    if any(budget.flops == 0 for budget in compare.budgets):
        return False
    return any(found.metrics for found in compare.untrained)


def notes(results: Results) -> list[str]:
    """Sentences below the table: what it cannot be read without, and which scores are not there."""
    compare, task = results.compare, results.task or TaskInfo()
    if compare is None:
        return []
    found = list(compare.notes)
    reasons = list(dict.fromkeys(entry.left_out for entry in compare.untrained if entry.left_out))
    found += [f"Not scored as downloaded: {reason}." for reason in reasons]
    if said := scored(task):
        found.append(f"Scores are of {said}.")
    return found


def scored(task: TaskInfo) -> str:
    """How many examples of the test split scores are of; empty where the record does not say."""
    whole = task.examples.get("test")
    if task.scored is None or whole is None:
        return ""
    return f"{task.scored:,} of the {whole:,} test examples" if task.scored < whole else f"all {whole:,} test examples"


def equal_compute(results: Results) -> str:
    """The sentence on what the rows of each budget cost; empty where there is no comparison."""
    compare = results.compare
    if compare is None:
        return ""
    if compare.over_budgets:
        words = spending.spread(compare, compare.rows)
        return f"Every model had the same budgets and used, in whole steps, {words}." if words else ""
    said = [
        f"{words} (“{quantities.shorten(budget_name(results, budget), 60)}”)" if len(compare.budgets) > 1 else words
        for budget in range(len(compare.budgets))
        if (words := spending.spread(compare, [row for row in compare.rows if row.budget == budget]))
    ]
    return f"Every model had the same budget and used, in whole steps, {'; '.join(said)}." if said else ""
