"""What the models of a comparison write, for the page, the terminal and the model card alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore import quantities
from manticore.experiments.rows import HYBRID
from manticore.report.naming import budget_name, model_name
from manticore.report.palette import model_colour
from manticore.report.results import Results
from manticore.stages.compare import CompareRecord
from manticore.stages.written import Speed, Writing

TITLE = "What they write"
_PROMPT, _WRITTEN = 160, 240
"""Characters shown of a prompt's end, and of what follows."""
_MOST_PROMPTS = 9


@dataclass(frozen=True)
class Line:
    """One model, before or after its training."""

    name: str
    when: str
    colour: str
    hybrid: bool
    exact: str
    of: str
    """How many answers were right, of how many."""
    recall: list[str]
    """One per length."""
    speed: list[list[str]]
    """One per length: tokens per second, and what stands below it."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a text, its end as it is there, and as each model writes it."""

    end: str
    expected: str
    written: list[tuple[str, str]]
    """A model's name, and its words."""


def written(compare: CompareRecord | None) -> list[Writing]:
    """The rows in which something is written."""
    return [row for row in (compare.writing if compare else ()) if row.generated.examples]


def lengths(rows: Sequence[Writing]) -> list[int]:
    """Tokens of the prompts that recall and speed are of."""
    found = {one.length for row in rows for one in row.generated.recall}
    return sorted(found | {one.context for row in rows for one in row.generated.speed})


def section(results: Results) -> dict[str, Any] | None:
    """The page's part; None where nothing is written."""
    rows = written(results.compare)
    if not rows:
        return None
    asked = lengths(rows)
    recalled = any(row.generated.recall for row in rows)
    return {
        "title": TITLE,
        "said": said(results),
        "lengths": [f"{length:,}" for length in asked],
        "recalled": recalled,
        "lines": [_line(results, row, asked) for row in rows],
        "prompts": _prompts(results, rows),
        "notes": notes(results),
    }


def said(results: Results) -> str:
    """What the numbers are of."""
    seeds = sorted({row.seed for row in written(results.compare) if row.seed is not None})
    seed = f" with seed {', '.join(map(str, seeds))}" if seeds else ""
    return (
        "Written greedily, nothing of the answer being read: the last answers of test examples, on text the ends of "
        "lines, every token of which must be right. Recall is of what stands in a prompt of that many tokens: a hidden "
        f"key on text. Once per model{seed}, so without intervals, and no part of the verdict."
    )


def notes(results: Results) -> list[str]:
    """Why there is nothing of some models; what was not even scored is said of the scores."""
    compare = results.compare or CompareRecord()
    scored = {entry.left_out for entry in compare.untrained}
    return [
        f"{_name(results, row)} ({_when(results, row)}) has written nothing: {row.left_out}"
        for row in compare.writing
        if row.left_out and row.left_out not in scored
    ]


def short_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The short form: exact match, recall at the least and the greatest length, speed there.

    Returns:
        Headings, and rows that begin with a model's name and its state, both under the first heading.
    """
    rows = written(results.compare)
    asked = lengths(rows)
    ends = list(dict.fromkeys([*asked[:1], *asked[-1:]]))
    recalled = ends if any(row.generated.recall for row in rows) else []
    headings = ["model", "exact match", *(f"recall at {length:,}" for length in recalled)]
    headings += [f"tokens/s after {length:,}" for length in ends]
    table = []
    for row in rows:
        line = _line(results, row, ends)
        speeds = [speed[0] for speed in line.speed]
        table.append([line.name, line.when, line.of, *line.recall[: len(recalled)], *speeds])
    return headings, table


def _name(results: Results, row: Writing) -> str:
    return quantities.shorten(model_name(results, row.model), 60)


def _when(results: Results, row: Writing) -> str:
    return "as downloaded" if row.budget is None else budget_name(results, row.budget) or "fine-tuned"


def _line(results: Results, row: Writing, asked: Sequence[int]) -> Line:
    found = row.generated
    shares = {one.length: one.share for one in found.recall}
    speeds = {one.context: one for one in found.speed}
    return Line(
        name=_name(results, row),
        when=quantities.shorten(_when(results, row), 60),
        colour=model_colour(results, row.model),
        hybrid=row.model == HYBRID,
        exact=quantities.score(found.exact_match),
        of=f"{round((found.exact_match or 0) * found.examples)} of {found.examples}",
        recall=[quantities.score(shares.get(length)) for length in asked],
        speed=[_speed(speeds.get(length)) for length in asked],
    )


def _speed(speed: Speed | None) -> list[str]:
    if speed is None:
        return [quantities.MISSING]
    rate, first = speed.tokens_per_second, speed.first_token_ms
    return [
        quantities.MISSING if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        *([] if first is None else [f"first {first:,.0f} ms" if first >= 10 else f"first {first:.2g} ms"]),
        *([] if speed.cache_bytes is None else [quantities.memory(speed.cache_bytes)]),
    ]


def _prompts(results: Results, rows: Sequence[Writing]) -> list[Prompt]:
    """The samples, those after the same words together."""
    together: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        who = f"{_name(results, row)}, {quantities.shorten(_when(results, row), 60)}"
        for sample in row.generated.samples:
            told = quantities.shorten(sample.written, _WRITTEN) or "nothing"
            together.setdefault((sample.prompt, sample.expected), []).append((who, told))
    return [
        Prompt(_end(prompt), quantities.shorten(expected, _WRITTEN), told)
        for (prompt, expected), told in list(together.items())[:_MOST_PROMPTS]
    ]


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT else f"…{prompt[-_PROMPT:]}"


def by_model(rows: Sequence[Writing]) -> Mapping[str, list[Writing]]:
    """The rows of each model, in order."""
    found: dict[str, list[Writing]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found
