"""A study of designs for a terminal: the best with the baselines among them, the verdict, what to be careful of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from manticore import quantities
from manticore.report.design_cautions import cautions
from manticore.report.design_record import Study, as_study
from manticore.report.design_tables import failures, invalid_offspring, measures_of, table
from manticore.report.design_verdict import verdict
from manticore.report.measure_words import name
from manticore.report.terminal import TONES

_MOST_DESIGNS = 8
_MOST_MEASURES = 4
"""On a terminal of 80 columns."""


def render_study(study: Study | Mapping[str, Any]) -> Group:
    """The best designs and the baselines, the verdict, cautions, and why candidates failed.

    Args:
        study: from :func:`~manticore.report.design_record.read_study`, or the mapping that ``study.json`` holds.

    Raises:
        ManticoreError: a mapping whose parts do not fit together.
    """
    study = as_study(study)
    judged = verdict(study)
    parts: list[RenderableType] = [_designs(study)] if study.ranked or study.rivals else []
    parts.append(Text(judged.sentence, style=TONES[judged.standing]))
    parts += [Text(f"warning: {caution}", style="yellow") for caution in cautions(study)]
    parts += [Text(f"failed: {reason} ({number:,}, {example})") for reason, number, example in failures(study)[:3]]
    parts += [Text(said) for said in [invalid_offspring(study)] if said]
    return Group(*parts)


def _designs(study: Study) -> Table:
    rows = table(study, _MOST_DESIGNS)
    goals = [goal.measure for goal in study.goals]
    found = Table(title=Text(f"designs of the front, by {name(goals[0])}" if len(goals) > 1 else "the best designs"))
    found.add_column("rank", justify="right")
    found.add_column("design", overflow="fold")
    shown = measures_of(study)[: max(_MOST_MEASURES, len(goals))]
    for measure in shown:
        # Names come from outside: Text shows them as they are, a plain str would be read as rich markup.
        found.add_column(Text(name(measure)), justify="right", overflow="fold")
    for row in rows:
        title = Text(quantities.shorten(row.name, 60))
        if row.is_baseline:
            title.append("\nbaseline", style="dim")
        if row.note:
            title.append(f"\n{row.note}", style="yellow")
        cells = [Text(cell[0]) for cell in row.cells[: len(shown)]]
        found.add_row(row.rank, title, *cells, style="bold" if row.entry is study.best else None)
    return found
