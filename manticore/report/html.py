"""``report.html``: one self-contained page about one run, with all its figures inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore import quantities
from manticore.experiments.rows import HYBRID
from manticore.file_names import ENVIRONMENT, LINEAGE
from manticore.paths import refuse_links_out
from manticore.report import candidates, cells, shared_scores, spending, writing
from manticore.report.block_picture import hand_overs, layer_words
from manticore.report.cautions import warnings
from manticore.report.figures import FIGURE_NAMES, draw_figures
from manticore.report.loading_code import loading_code
from manticore.report.matches import score_row
from manticore.report.naming import alone, budget_name, model_name
from manticore.report.pages import Drawing, render, write_with_figures
from manticore.report.palette import component_colour, model_colour
from manticore.report.results import Results, read_results
from manticore.report.typed_reading import printable
from manticore.report.verdict import verdict
from manticore.stages.align import left_as_it_was
from manticore.stages.combine import TaskInfo, beginning
from manticore.stages.compare import CompareRecord
from manticore.stages.search import SearchRecord

_FACTS = (("Environment", ENVIRONMENT), ("Lineage", LINEAGE))
_MOST_FACTS = 200
_LONGEST_FACT = 400
_MOST_CANDIDATES = 40
_MOST_SQUARES = 24
"""Blocks of a path that are also shown as squares."""


@dataclass(frozen=True)
class Cost:
    """What one stage took; ``None`` where the record does not say."""

    stage: str
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None


def write_report(run_folder: str | Path) -> Path:
    """Read the run's ``results.json`` and write ``report.html`` and ``figures/*.svg`` beside it.

    Returns:
        The path of ``report.html``. Files are written aside and renamed, so an older report stays whole until
        the new one is.

    Raises:
        ManticoreError: no readable ``results.json``, a link that leads elsewhere, or the files cannot be written.
    """
    folder = Path(run_folder)
    refuse_links_out(folder)
    results = read_results(folder)
    drawings = draw_figures(results)
    return write_with_figures(folder, _render(results, folder, drawings), drawings, FIGURE_NAMES)


def stage_costs(results: Results) -> list[Cost]:
    """What each stage of the hybrid took, in order."""
    costs = []
    if a := results.align:
        costs.append(Cost("align", a.steps, a.tokens, a.flops, a.seconds))
    if s := results.search:
        costs.append(Cost("search", s.steps, s.tokens, s.flops, s.seconds))
    if d := results.distill:
        costs.append(Cost("distil, teacher included", d.steps, d.tokens, d.flops, d.seconds))
    if f := results.finetune:
        costs.append(Cost("fine-tune", f.steps, f.tokens, f.flops, f.seconds))
    return costs


def _counted_twice(results: Results) -> Cost:
    """What is in the search and in fine-tuning, which went on with the path that the search had trained."""
    search, tuned = results.search, results.finetune
    end = candidates.last(search.chosen) if search and search.chosen else None
    if tuned is None or end is None or not tuned.begun_flops:
        return Cost("", flops=0.0, seconds=0.0)
    return Cost("", flops=tuned.begun_flops, seconds=end.seconds)


def _render(results: Results, folder: Path, drawings: Mapping[str, Drawing]) -> str:
    judged = verdict(results)
    facts = [_facts(title, folder / file) for title, file in _FACTS]
    figures = {
        name: {
            "title": drawing.title,
            "caption": _caption(name, drawing, results),
            "notes": _notes(name, results),
            "svg": drawing.element,
        }
        for name, drawing in drawings.items()
    }
    return render(
        "page.html",
        results=results,
        summary=_summary(results),
        verdict=judged.sentence,
        outcome=judged.outcome.name.lower(),
        outcome_label=judged.label,
        warnings=warnings(results) + _fact_warnings(folder),
        task=results.task or TaskInfo(),
        parent=alone(results),
        compare=_compare_table(results),
        writing=writing.section(results),
        search=_search_section(results),
        shared=_shared_section(results),
        distilled=_distilled(results),
        stages=_stage_table(results),
        components=_component_table(results),
        figures=figures,
        costs=_cost_table(results),
        code=loading_code(results, folder) if results.model else None,
        facts=[entry for entry in facts if entry],
    )


def _summary(results: Results) -> list[tuple[str, str]]:
    """The line of facts under the title."""
    combine, search = results.combine, results.search
    pairs = [
        ("task", results.task.name if results.task else ""),
        ("scored", cells.scored(results.task) if results.task else ""),
        ("text", results.task.beginning if results.task else ""),
        ("blocks", str(results.num_blocks or "")),
        ("mixing", combine.mixing if combine else ""),
        ("output", combine.output if combine and combine.output != "logits" else ""),
        ("projector", combine.projector if combine else ""),
        ("tokenizer", combine.tokenizer if combine else ""),
        ("search", ", ".join(filter(None, [search.method, search.order])) if search else ""),
        ("seed", "" if results.seed is None else str(results.seed)),
        ("created", results.created[:19].replace("T", " ")),
        ("status", results.status),
    ]
    return [(key, value) for key, value in pairs if value]


def _search_section(results: Results) -> dict[str, Any] | None:
    """The candidates, and what they have cost; None for a search that trained none."""
    search = results.search
    if search is None or not search.candidates:
        return None
    shown = candidates.lines(results, _MOST_CANDIDATES)
    return {
        **_scored_table(results, shown, len(search.candidates)),
        "said": candidates.how_found(results),
        "spent": candidates.spent(results),
    }


def _shared_section(results: Results) -> dict[str, Any] | None:
    """The paths that were scored with weights that they share; None where none were."""
    search = results.search
    if search is None or not search.shared:
        return None
    shown = shared_scores.shared_lines(results, _MOST_CANDIDATES)
    return {
        **_scored_table(results, shown, len(search.shared)),
        "title": shared_scores.shared_title(results),
        "said": shared_scores.how_scored(results),
        "before": any(line.before for line in shown),
    }


def _scored_table(results: Results, shown: Sequence[Any], number: int) -> dict[str, Any]:
    """What tables of paths have in common: those shown, of so many."""
    search = results.search or SearchRecord()
    return {
        "metric": candidates.metric_name(results),
        "higher_is_better": search.higher_is_better,
        "lines": [{"line": line, "squares": _squares(line.path)} for line in shown],
        "more": number - len(shown),
    }


def _distilled(results: Results) -> dict[str, Any] | None:
    """What the student has learned from its teacher; None where nothing was distilled."""
    found = results.distill
    if found is None or not found.phases:
        return None
    names = list(dict.fromkeys([*found.metrics_before, *found.metrics]))
    scores = [(name, found.metrics_before.get(name), found.metrics.get(name)) for name in names]
    return {
        "teacher": quantities.shorten(found.teacher, _LONGEST_FACT),
        "scores": [(name, quantities.score(before), quantities.score(after)) for name, before, after in scores],
        "phases": [
            {
                "name": phase.name,
                "steps": quantities.MISSING if phase.steps is None else f"{phase.steps:,}",
                "loss": f"{quantities.score(phase.loss_first)} → {quantities.score(phase.loss_last)}",
                "student": quantities.flops(phase.student_flops),
                "teacher": quantities.flops(phase.teacher_flops),
                "seconds": quantities.duration(phase.seconds),
            }
            for phase in found.phases
        ],
    }


def _stage_table(results: Results) -> list[tuple[str, str, str]]:
    """Stages of other packages: name, package and summary, then a row for each value that they found."""
    rows = []
    for name, stage in results.stages.items():
        rows.append((quantities.shorten(name, 60), stage.package, stage.summary))
        rows += [("", key, "" if value is None else str(value)) for key, value in stage.values.items()]
    short = quantities.shorten
    return [(name, short(what, 60), short(said, _LONGEST_FACT)) for name, what, said in rows[:_MOST_FACTS]]


def _squares(path: Sequence[int]) -> list[str]:
    return [component_colour(k) for k in path] if len(path) <= _MOST_SQUARES else []


def _compare_table(results: Results) -> dict[str, Any] | None:
    compare = results.compare
    if compare is None or not compare.rows:
        return None
    budgets = range(max(1, len(compare.budgets)))
    headings = [
        (budget_name(results, b), quantities.flops(compare.budgets[b].flops)) if compare.budgets else ("", "")
        for b in budgets
    ]
    shared = compare.row(HYBRID, 0) is not None and any(compare.row(HYBRID, b) is None for b in budgets)
    return {
        "headings": headings,
        "shared": shared,
        "before": cells.has_downloaded(compare),
        "spent": cells.equal_compute(results),
        "notes": cells.notes(results),
        "rows": [_compare_row(results, compare, m, budgets) for m in compare.models],
    }


def _compare_row(results: Results, compare: CompareRecord, model: str, budgets: range) -> dict[str, Any]:
    rows = [score_row(compare, model, b) for b in budgets]
    first = next(row for row in rows if row is not None)
    return {
        "name": model_name(results, model),
        "colour": model_colour(results, model),
        "hybrid": model == HYBRID,
        "before": cells.as_downloaded(compare, model, results.task or TaskInfo()),
        "scores": [
            None
            if row is None
            else {
                "mean": quantities.score(row.mean),
                "below": cells.below(row, results.task or TaskInfo()),
                "mark": spending.mark(compare, row),
            }
            for row in rows
        ],
        "parameters": quantities.count(first.parameters),
        "flops": quantities.flops(first.flops_per_token),
        "cache": quantities.memory(first.cache_bytes_per_token),
        "state": quantities.memory(first.state_bytes),
    }


def _component_table(results: Results) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "colour": component_colour(k),
            "family": c.family or quantities.MISSING,
            "source": c.source or quantities.MISSING,
            "layers": quantities.MISSING if c.layers is None else str(c.layers),
            "width": quantities.MISSING if c.width is None else str(c.width),
            "parameters": quantities.count(c.parameters),
            "license": c.license or "not known",
            "sha256": (c.sha256 or "")[:12] or quantities.MISSING,
        }
        for k, (name, c) in enumerate(zip(results.component_names, results.components))
    ]


def _cost_table(results: Results) -> list[dict[str, str]]:
    costs = stage_costs(results)
    if not costs:
        return []
    known = [c.seconds for c in costs if c.seconds is not None]
    spent = [c.flops for c in costs if c.flops is not None]
    twice = _counted_twice(results)
    if twice.flops:
        begun = Cost("of these in the search and in fine-tuning", flops=twice.flops, seconds=twice.seconds)
        costs.append(begun)
    everything = Cost(
        "all",
        flops=sum(spent) - twice.flops if spent and twice.flops is not None else None,
        seconds=max(0.0, sum(known) - twice.seconds) if known and twice.seconds is not None else None,
    )
    costs.append(everything)
    return [
        {
            "stage": c.stage,
            "steps": quantities.MISSING if c.steps is None else str(c.steps),
            "tokens": quantities.count(c.tokens),
            "flops": quantities.flops(c.flops),
            "seconds": quantities.duration(c.seconds),
        }
        for c in costs
    ]


def _caption(figure: str, drawing: Drawing, results: Results) -> str:
    """A figure's caption; that of the comparison ends with what its rows cost."""
    if figure != "comparison" or results.compare is None:
        return drawing.caption
    crosses = (
        "Crosses are models as they were given, without any training." if cells.has_downloaded(results.compare) else ""
    )
    return " ".join(filter(None, [drawing.caption, crosses, cells.equal_compute(results)]))


def _notes(figure: str, results: Results) -> str:
    """The sentence under a figure that carries its numbers."""
    if figure == "blocks" and results.path:
        kept = [
            f"{quantities.shorten(results.component_names[c], 40)} {layer_words(results, c, n)}".strip()
            for n, c in enumerate(results.path)
        ]
        changes = len(hand_overs(results))
        rest = "1 projector" if changes == 1 else f"{changes or 'no'} projectors"
        return f"Kept: {' → '.join(kept)}, and {rest}."
    if figure == "alignment" and (align := results.align):
        pieces: list[str] = []
        if align.loss_before is not None and align.loss_after is not None:
            before, after = quantities.score(align.loss_before), quantities.score(align.loss_after)
            pieces.append(f"Held-out loss of the supernet: {before} before, {after} after")
        pieces += left_as_it_was(align)
        if align.tokens is not None:
            pieces.append(f"{quantities.count(align.tokens)} tokens of calibration text")
        if align.bos is not None:
            pieces.append(beginning(align.bos))
        return "; ".join(pieces) + "." if pieces else ""
    return ""


def _load_facts(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _facts(title: str, path: Path) -> dict[str, Any] | None:
    """A JSON file of the run as rows of ``dotted.key`` and value."""
    try:
        content = _load_facts(path)
    except (OSError, ValueError, RecursionError):
        return None
    rows = list(_flatten(content, ""))
    if not rows:
        return None
    return {"title": title, "rows": rows[:_MOST_FACTS], "more": max(0, len(rows) - _MOST_FACTS)}


def _fact_warnings(folder: Path) -> list[str]:
    found = []
    for _, file in _FACTS:
        try:
            content = _load_facts(folder / file)
        except (OSError, ValueError, RecursionError):
            found.append(f"{file} cannot be read, so it is not shown.")
            continue
        if any(key.split(".")[-1].endswith("dirty") and value == "true" for key, value in _flatten(content, "")):
            found.append("The code had changes that were not committed: the revision alone does not give it back.")
    return found


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{key}.{index}" if key else str(index))
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield printable(key), quantities.shorten(printable(text), _LONGEST_FACT)
