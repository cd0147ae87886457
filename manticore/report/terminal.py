"""The comparison and the verdict for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from manticore import quantities
from manticore.experiments.rows import HYBRID
from manticore.report import candidates, cells, shared_scores, spending, writing
from manticore.report.cautions import warnings
from manticore.report.matches import Standing, score_row
from manticore.report.naming import budget_name, model_name, path_words
from manticore.report.results import Results, as_results
from manticore.report.verdict import verdict
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord, Row

TONES = {
    Standing.BETTER: "green",
    Standing.WORSE: "red",
    Standing.NOISE: "yellow",
    Standing.SEEN_BETTER: "yellow",
    Standing.SEEN_WORSE: "red",
    Standing.SEEN_LEVEL: "yellow",
    Standing.MIXED: "yellow",
    Standing.PARENT: "yellow",
    Standing.UNKNOWN: "dim",
}
_MOST_CANDIDATES = 12
_MOST_BUDGETS = 3
"""In one table, on a terminal of 80 columns."""


def render_comparison(results: Results | Mapping[str, Any]) -> Group:
    """Scores of every model at every budget, then what each costs to run; nothing before the comparison.

    Two tables, so that headings and names are whole on a terminal of 80 columns.
    """
    results = as_results(results)
    task, compare = results.task or TaskInfo(), results.compare
    if compare is None or not compare.rows:
        return Group()
    better = "higher" if task.higher_is_better else "lower"
    title, before = (
        f"{task.name or 'comparison'}: {task.primary_metric} ({better} is better)",
        cells.has_downloaded(compare),
    )
    # one table of a kind of budgets, or two where they are many
    parts = [kind[i : i + _MOST_BUDGETS] for kind in compare.kinds for i in range(0, len(kind), _MOST_BUDGETS)]
    if not compare.over_budgets:
        parts = [[budget for kind in compare.kinds for budget in kind]]
    scores = [_scores(results, compare, title, part, before=before and part is parts[0]) for part in parts]
    costs = Table(title=Text("what each costs to run"))
    costs.add_column("model", overflow="fold")
    for title in ("parameters", "compute per token", "cache per token", "state"):
        costs.add_column(title, justify="right", overflow="fold")
    for model in compare.models:
        first = _rows(compare, model, range(len(compare.budgets) or 1))[0]
        costs.add_row(
            Text(model_name(results, model)),
            quantities.count(first.parameters),
            quantities.flops(first.flops_per_token),
            quantities.memory(first.cache_bytes_per_token),
            quantities.memory(first.state_bytes),
            style=_style(model),
        )
    return Group(*scores, *map(Text, cells.notes(results)), costs, *_written(results))


def _written(results: Results) -> list[RenderableType]:
    """What the models write, in short; nothing where that was not asked for."""
    headings, rows = writing.short_table(results)
    said = [Text(note) for note in writing.notes(results)]
    if not rows:
        return [*said]
    table = Table(title=Text(writing.TITLE.lower()))
    table.add_column(Text(headings[0]), overflow="fold")
    for title in headings[1:]:
        # only names have room to give
        table.add_column(Text(title.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    for name, when, *values in rows:
        table.add_row(_lines([name, when]), *map(Text, values))
    return [table, *said]


def _scores(results: Results, compare: CompareRecord, title: str, budgets: Sequence[int], *, before: bool) -> Table:
    """Scores of every model at some budgets.

    Args:
        results: with the comparison.
        compare: it.
        title: of the table.
        budgets: indices.
        before: also what models scored as downloaded.
    """
    task = results.task or TaskInfo()
    # Names come from outside: Text shows them as they are, a plain str would be read as rich markup.
    table = Table(title=Text(title))
    table.add_column("model", overflow="fold")
    if before:
        table.add_column(Text("as downloaded\nuntrained"), justify="right", overflow="fold")
    for budget in budgets:
        heading = Text(task.primary_metric)
        if compare.budgets:
            what = compare.budgets[budget]
            heading = Text(f"{budget_name(results, budget)}\n{quantities.flops(what.flops)}")
        table.add_column(heading, justify="right", overflow="fold")
    for model in compare.models:
        first = [_lines(cells.as_downloaded(compare, model, task))] if before else []
        scored = [_score(compare, score_row(compare, model, budget), task) for budget in budgets]
        table.add_row(Text(model_name(results, model)), *first, *scored, style=_style(model))
    return table


def _rows(compare: CompareRecord, model: str, budgets: Iterable[int]) -> list[Row]:
    return [row for budget in budgets if (row := score_row(compare, model, budget)) is not None]


def _style(model: str) -> str | None:
    return "bold" if model == HYBRID else None


def render_summary(results: Results | Mapping[str, Any]) -> Group:
    """The verdict, the chosen blocks, the candidates of the search, and what to be careful about."""
    results = as_results(results)
    judged = verdict(results)
    lines: list[RenderableType] = [Text(judged.sentence, style=TONES[judged.outcome])]
    if results.path:
        lines.append(Text(f"blocks: {path_words(results, results.path)}"))
    lines += [_candidates(results), _shared(results)]
    lines += [Text(f"{name}: {stage.summary}") for name, stage in results.stages.items()]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in warnings(results)]
    return Group(*lines)


def _candidates(results: Results) -> Group:
    """How a search found its path: the candidates, the choice and what it cost; nothing where it trained none."""
    search = results.search
    if search is None or not search.candidates:
        return Group()
    table = Table(title=Text("candidates, on held-out data"))
    table.add_column("path", overflow="fold")
    metric = candidates.metric_name(results)
    for title in ("loss", *([metric] if metric != "loss" else []), "units", "cost"):
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column("outcome", overflow="fold")
    shown = candidates.lines(results, _MOST_CANDIDATES)
    for line in shown:
        scores = [line.loss, line.metric] if metric != "loss" else [line.loss]
        cells_of = [line.name, *scores, line.trained, line.cost, line.standing]
        table.add_row(*map(Text, cells_of), style="bold" if line.chosen else None)
    more = _left_out(len(search.candidates) - len(shown))
    return Group(table, *more, *map(Text, candidates.how_found(results)))


def _shared(results: Results) -> Group:
    """The paths that were scored with weights that they share; nothing where none were."""
    search = results.search
    if search is None or not search.shared:
        return Group()
    table, metric = Table(title=Text(shared_scores.shared_title(results))), candidates.metric_name(results)
    shown = shared_scores.shared_lines(results, _MOST_CANDIDATES)
    rows: list[tuple[str, str, list[str]]] = [
        ("path", "left", [line.name for line in shown]),
        ("loss", "right", [line.loss for line in shown]),
        (metric, "right", [line.metric for line in shown] if metric != "loss" else []),
        ("before", "right", [line.before for line in shown] if any(line.before for line in shown) else []),
        ("outcome", "left", [line.standing for line in shown]),
    ]
    columns = [(title, side, values) for title, side, values in rows if values]
    for title, side, _ in columns:
        table.add_column(Text(title), justify=side, overflow="fold")  # type: ignore[arg-type]
    for line, *values in zip(shown, *(values for _, _, values in columns)):
        table.add_row(*map(Text, values), style="bold" if line.chosen else None)
    return Group(table, *_left_out(len(search.shared) - len(shown)), Text(shared_scores.how_scored(results)))


def _left_out(number: int) -> list[Text]:
    return [Text(f"and {number} more in results.json", style="dim")] if number else []


def _score(compare: CompareRecord, row: Row | None, task: TaskInfo) -> Text:
    if row is None:
        return Text(quantities.MISSING)
    text = _lines([quantities.score(row.mean), *cells.below(row, task)])
    if mark := spending.mark(compare, row):
        text.append(f"\n{mark}", style="yellow")
    return text


def _lines(lines: list[str]) -> Text:
    """A score, and faint below it what belongs to it."""
    text = Text(lines[0])
    for line in lines[1:]:
        text.append(f"\n{line}", style="dim")
    return text
