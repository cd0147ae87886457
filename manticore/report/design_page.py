"""``report.html`` of a study of designs: what was found, beside which baselines, how the search went, and what is next.

Written from ``study.json`` alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from manticore import quantities
from manticore.paths import refuse_links_out
from manticore.report.design_cautions import cautions
from manticore.report.design_fronts import best_so_far_figure, curves_figure, front_figure, hypervolume_figure
from manticore.report.design_growth import Growth, best_group, growth, populations, unit
from manticore.report.design_populations import classes_figure, link_name, links_figure
from manticore.report.design_record import Study, Trained, read_study
from manticore.report.design_tables import MOST_ROWS, failures, invalid_offspring, measures_of, motif_rows, table
from manticore.report.design_verdict import verdict
from manticore.report.layer_picture import Look, looks, strip
from manticore.report.measure_words import direction, name, said, words
from manticore.report.pages import Drawing, render, write_with_figures
from manticore.report.palette import text_on
from manticore.report.svg import house_style, to_svg

_STRETCHED = 16
"""Layers from which on a list is stretched: copies of a long one would be few and coarse."""
_LONGEST = 44
"""Of a spelled design in a table."""
_FIGURES = {
    "front": (
        "The front",
        "Discs are designs that no other is as good as in every objective and better in one; numbers are those of the "
        "table, strips their layers from the bottom to the top. Grey: all other designs.",
    ),
    "best_so_far": (
        "The best so far",
        "Grey: every design in the order of the trials; numbers are those of the table, strips the layers of the best "
        "from the bottom to the top.",
    ),
    "hypervolume": ("Hypervolume", ""),
    "classes": ("Who stands in the population", "Of all layers, the share of each class."),
    "links": (
        "What layers share",
        "Links per design, and how far apart the two layers are. A link of weights: the same map of another input; of "
        "features: the tensors themselves, computed once.",
    ),
    "learning_curves": ("Learning curves", "Held-out loss of the best designs and the baselines while they trained."),
}


def write_page(folder: str | Path) -> Path:
    """Read ``study.json`` in the folder of a study and write ``report.html`` and ``figures/*.svg`` beside it.

    Returns:
        The path of ``report.html``.

    Raises:
        ManticoreError: no readable ``study.json``, a link that leads elsewhere, or the files cannot be written.
    """
    folder = Path(folder)
    refuse_links_out(folder)
    study = read_study(folder)
    drawings = _drawings(study)
    return write_with_figures(folder, _render(study, drawings), drawings, _FIGURES)


def next_command(study: Study, folder: str = "") -> str:
    """What can be done with the best design that was saved; empty where none was.

    Args:
        study: with its trials.
        folder: the study's, where the command is not to be run inside it.
    """
    saved = _saved(study)
    if saved is None:
        return ""
    design = shlex.quote(f"{folder.rstrip('/')}/{saved.folder}" if folder else saved.folder)
    how = "stack" if len(saved.layers) < _STRETCHED else "stretch"
    return f"manticore scale {design} --parameters 350M --how {how} --out larger"


def loading_code(study: Study) -> str:
    """Python that loads the best design that was saved, to be run inside the study's folder; empty where none was."""
    saved = _saved(study)
    if saved is None:
        return ""
    # A string of JSON is also one of Python.
    path = json.dumps(saved.folder, ensure_ascii=False)
    return (
        "import manticore\n\n"
        f"config = manticore.StackConfig.from_pretrained({path})\n"
        "model = manticore.StackForCausalLM(config)  # first weights, not those of its trial\n"
        "# any training of transformers takes it, so does manticore.finetune; then it can be one of several:\n"
        "# manticore.combine([model, another], num_blocks=2)"
    )


def _saved(study: Study) -> Trained | None:
    ordered = [study.best, *study.ranked]
    return next((entry for entry in ordered if entry is not None and entry.folder), None)


def _drawings(study: Study) -> dict[str, Drawing]:
    drawn, grown, people = looks(study), growth(study), populations(study)
    draw: dict[str, Callable[[], Figure | None]] = {
        "front": lambda: front_figure(study, drawn),
        "best_so_far": lambda: best_so_far_figure(study, drawn),
        "hypervolume": lambda: hypervolume_figure(grown) if grown and len(grown.everything) > 1 else None,
        "classes": lambda: classes_figure(people, drawn),
        "links": lambda: links_figure(people),
        "learning_curves": lambda: curves_figure(study),
    }
    found = {}
    with house_style():
        for key, (title, caption) in _FIGURES.items():
            figure = draw[key]()
            if figure is not None:
                caption = _volume_caption(study, grown) if key == "hypervolume" and grown else caption
                found[key] = Drawing(key, title, caption, to_svg(figure))
    return found


def _volume_caption(study: Study, grown: Growth) -> str:
    at = ", ".join(f"{name(g.measure)} {said(g.measure, value)}" for g, value in zip(study.goals, grown.reference))
    scaled = f"; each axis in units of {quantities.shorten(grown.scaled_by, 30)}'s value" if grown.scaled_by else ""
    return f"The volume that designs dominate, up to the worst of the first {grown.unit} ({at}){scaled}."


def _render(study: Study, drawings: dict[str, Drawing]) -> str:
    judged, drawn = verdict(study), looks(study)
    return render(
        "design.html",
        title=study.name or f"architecture search, {study.method.get('name', 'designs')}",
        summary=_summary(study),
        verdict=judged.sentence,
        outcome=judged.standing.name.lower(),
        outcome_label=judged.label,
        warnings=cautions(study),
        columns=[
            (name(measure), words(measure).note, next((direction(g) for g in study.goals if g.measure == measure), ""))
            for measure in measures_of(study)
        ],
        designs=[
            {
                "rank": row.rank,
                "name": quantities.shorten(row.name, _LONGEST),
                "baseline": row.is_baseline,
                "best": row.entry is study.best,
                "strip": strip(row.entry.layers, drawn) if row.entry.layers else "",
                "cells": row.cells,
                "trained": _trained(row.entry),
                "note": row.note,
            }
            for row in table(study)
        ],
        more=max(0, (len(study.front) if len(study.goals) > 1 else len(study.ranked)) - MOST_ROWS),
        several=len(study.goals) > 1,
        total=len(study.ranked),
        goal=name(study.goals[0].measure),
        legend=[_chip(look) for look in drawn.values()],
        figures=drawings,
        motifs=[
            {
                "classes": [_chip(drawn[label]) for label in row.run or ()],
                "link": link_name(row.link) if row.link else "",
                "shares": row.shares,
                "lift": row.lift,
            }
            for row in motif_rows(study)
        ],
        unit=unit(study),
        best_are=best_group(study)[0],
        offspring=invalid_offspring(study),
        failures=failures(study),
        costs=_costs(study),
        code=loading_code(study),
        command=next_command(study),
    )


def _summary(study: Study) -> list[tuple[str, str]]:
    """The line of facts under the title."""
    goals = ", ".join(f"{name(g.measure)} ({'most' if g.maximise else 'least'})" for g in study.goals)
    limits = [f"{name(m)} ≤ {said(m, value)}" for m, value in study.max.items()]
    limits += [f"{name(m)} ≥ {said(m, value)}" for m, value in study.least.items()]
    pairs = [
        ("objectives", goals),
        ("limits", ", ".join(limits)),
        ("method", str(study.method.get("name", ""))),
        ("designs", f"{len(study.trials):,}"),
        (f"{unit(study)}s" if unit(study) != "batch" else "batches", str(len(study.batches))),
        ("seed", "" if study.seed is None else str(study.seed)),
    ]
    pairs += [("space" if key == "kind" else key, _fact(value)) for key, value in study.space.items()]
    return [(key, value) for key, value in pairs if value]


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _trained(entry: Trained) -> list[str]:
    """What its training took: tokens, and below them the FLOPs."""
    return [quantities.count(entry.tokens), *([quantities.flops(entry.flops)] if entry.flops else [])]


def _chip(look: Look) -> dict[str, Any]:
    return {
        "label": quantities.shorten(look.label, 40),
        "letters": look.letters,
        "colour": look.colour,
        "ink": text_on(look.colour),
        "barred": look.barred,
    }


def _costs(study: Study) -> list[tuple[str, str, str]]:
    """What was trained, its FLOPs and its time."""
    found = []
    everything: list[Trained] = [*study.trials, *study.baselines]
    taken_over = [entry for entry in everything if entry.taken_over]
    parts: list[tuple[str, Sequence[Trained]]] = [
        ("designs", study.trials),
        ("baselines", study.baselines),
        ("of these by another study, taken over", taken_over),
    ]
    for what, entries in parts:
        flops = [entry.flops for entry in entries if entry.flops is not None]
        seconds = [entry.seconds for entry in entries if entry.seconds is not None]
        if flops or seconds:
            spent = quantities.flops(sum(flops) if flops else None)
            found.append((f"{len(entries):,} {what}", spent, quantities.duration(sum(seconds) if seconds else None)))
    return found
