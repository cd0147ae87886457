"""What a reader must know before believing the numbers of a run."""

from __future__ import annotations

from collections.abc import Iterator

from manticore import quantities
from manticore.components.checkpoint_folder import dequantized
from manticore.report import spending
from manticore.report.candidates import search_warnings
from manticore.report.naming import model_name
from manticore.report.results import Results
from manticore.report.rounding import rounding_notes
from manticore.report.shared_scores import one_hot_warning
from manticore.stages.compare import MISMATCH_LIMIT, CompareRecord, Row

ENOUGH_SEEDS = 3


def warnings(results: Results) -> list[str]:
    """Sentences, most serious first."""
    found = []
    if results.status and results.status != "complete":
        found.append(f"The run is {results.status}: parts are missing and the rest may be preliminary.")
    combine, compare = results.combine, results.compare
    for name, matched in zip(results.component_names, combine.reembedded if combine else ()):
        if combine is not None and matched is not None and matched.coverage is not None:
            found.append(
                f"{quantities.shorten(name, 60)} was re-embedded for the tokenizer of "
                f"{quantities.shorten(combine.tokenizer, 60)} ({matched.coverage:.0%} of the tokens "
                "matched exactly or by role); on text its scores are those of the re-embedded model."
            )
    for component in results.components:
        said = dequantized(component.name, component.dequantized_from) if component.dequantized_from else ""
        # a comparison says so of the models that it has
        if said and said not in (compare.notes if compare else ()):
            found.append(quantities.shorten(said, 200))
    found += search_warnings(results)
    found += one_hot_warning(results)
    found += rounding_notes(results)
    if compare is None:
        return found
    found += _coarse(results, compare)
    for row in compare.rows:
        where = f"{quantities.shorten(model_name(results, row.model), 60)}, budget {row.budget + 1}"
        if spending.is_off(compare, row) and not (compare.over_budgets and spending.by_whole_steps(compare, row)):
            found.append(f"{where}: {_off(compare, row)}")
        if row.diverged:
            rates = ", ".join(f"{rate:g}" for rate in row.diverged)
            found.append(f"{where}: diverged with learning rate {rates}, which counts as the worst.")
        if row.mean is None:
            found.append(f"{where}: no finite score.")
    found += _edges(results, compare)
    seeds = [len(r.seeds) for r in compare.rows if r.seeds]
    if seeds and min(seeds) < ENOUGH_SEEDS:
        found.append(
            f"Only {min(seeds)} seed{'s' if min(seeds) > 1 else ''} for some rows: "
            f"at least {ENOUGH_SEEDS} are needed before a difference means much."
        )
    return found


def _coarse(results: Results, compare: CompareRecord) -> Iterator[str]:
    """Over many budgets, one sentence for each model whose whole steps leave much of small ones over."""
    for model in compare.models if compare.over_budgets else ():
        rows = [row for row in compare.rows if row.model == model and spending.is_off(compare, row)]
        off = [row for row in rows if spending.by_whole_steps(compare, row)]
        if off:
            yield (
                f"{quantities.shorten(model_name(results, model), 60)}: at {len(off)} of {len(compare.budgets)} "
                f"budgets one step more would not have fitted, and it used {spending.spread(compare, off)}; a smaller "
                "batch comes nearer to equal compute."
            )


def _edges(results: Results, compare: CompareRecord) -> Iterator[str]:
    """A sentence for every model whose best learning rate is one that none was tried beyond."""
    for model in compare.models:
        rows = [row for row in compare.rows if row.model == model and row.rates]
        for end in ("highest", "lowest"):
            at = [row.edge[1] for row in rows if row.edge is not None and row.edge[0] == end]
            if at:
                where = f" at {len(at)} of {len(rows)} budgets" if len(rows) > 1 else ""
                yield (
                    f"{quantities.shorten(model_name(results, model), 60)}: the best learning rate{where} is the {end} "
                    f"that was tried ({at[0]:g}), so one beyond it may be better. "
                    f"Fix: learning_rates that go on {'upwards' if end == 'highest' else 'downwards'}"
                )


def _off(compare: CompareRecord, row: Row) -> str:
    share = spending.farthest(compare, row)
    if spending.by_whole_steps(compare, row):
        return (
            f"trained with {share:.1%} of the budget, for one step more would not have fitted; "
            "a larger budget or a smaller batch comes nearer to equal compute."
        )
    off = 0.0 if share is None else abs(share - 1)
    said = f"{off:.1%} off the budget" if off > MISMATCH_LIMIT else "marked as off the budget"
    return f"training FLOPs are {said} (limit {MISMATCH_LIMIT:.0%}); this row is not at equal compute."
