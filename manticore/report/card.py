"""The model card (``README.md``) of a saved hybrid, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from manticore import quantities
from manticore.errors import ManticoreError
from manticore.experiments.rows import HYBRID
from manticore.report import candidates, cells, spending, writing
from manticore.report.block_picture import block_picture
from manticore.report.cautions import warnings
from manticore.report.licences import strictest
from manticore.report.loading_code import code_for, has_tokenizer
from manticore.report.matches import score_row
from manticore.report.naming import alone, budget_name, model_name
from manticore.report.results import Results, as_results
from manticore.report.svg import house_style, to_png
from manticore.report.typed_reading import printable
from manticore.report.verdict import verdict
from manticore.stages.combine import ComponentRecord, TaskInfo, beginning, predicts
from manticore.stages.compare import CompareRecord, Row
from manticore.writing import write_bytes

PICTURE = "blocks.png"
_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SPECIAL = re.compile(r"^[-+]|[\\`*_\[\]#!|~$@]|:(?=//)|(?<=www)\.")


def write_model_card(model_dir: str | Path, results: Results | Mapping[str, Any]) -> Path:
    """Write ``README.md`` and the picture of the blocks into the folder of a saved hybrid.

    Returns:
        The path of the card.

    Raises:
        ManticoreError: the folder does not exist or cannot be written.
    """
    folder, results = Path(model_dir), as_results(results)
    if not folder.is_dir():
        raise ManticoreError(f"{folder}: no such folder. Fix: save the model there before its card")
    picture = _picture(results)
    licence, licence_note = strictest([c.license for c in results.components])
    card = ModelCard(
        f"---\n{_front_matter(results, licence).to_yaml()}\n---\n\n"
        f"{_body(results, licence_note, folder, picture is not None)}"
    )
    try:
        if picture is not None:
            write_bytes(folder / PICTURE, picture)
        write_bytes(folder / "README.md", str(card).encode("utf-8"))
    except OSError as error:
        raise ManticoreError(
            f"{folder}: the model card cannot be written ({error.strerror}). Fix: free space or change permissions"
        ) from error
    return folder / "README.md"


def escape_markdown(value: object) -> str:
    """``value`` as Markdown that shows it literally: no link, no emphasis, no HTML, no new table cell."""
    if isinstance(value, Markup):
        return str(value)
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def _front_matter(results: Results, licence: str) -> ModelCardData:
    kept = [c for k, c in enumerate(results.components) if k in results.path or not results.path]
    families = dict.fromkeys(c.family for c in kept if c.family)
    parents = list(dict.fromkeys(c.source for c in kept if _on_hub(c)))
    # what keeps one parent throughout is that parent, fine-tuned
    merged = alone(results) is None
    # A card may only name parents that readers of the hub can open.
    relation = "merge" if merged else "finetune"
    lineage: dict[str, Any] = {"base_model": parents, "base_model_relation": relation} if parents else {}
    return ModelCardData(
        language=None,
        license=licence,
        library_name="transformers",
        pipeline_tag=_pipeline(results),
        tags=["manticore", *(["hybrid", "merge"] if merged else []), *families],
        model_name=results.name or ("hybrid" if merged else "model"),
        eval_results=_eval_results(results),
        **lineage,
    )


def _pipeline(results: Results) -> str:
    """What the hub calls that which the model is for."""
    return _PIPELINES.get(results.model.loads_with if results.model else "", "text-generation")


def _on_hub(component: ComponentRecord) -> bool:
    return bool(_HUB_ID.fullmatch(component.source)) and not os.path.exists(component.source)


def _eval_results(results: Results) -> list[EvalResult] | None:
    task = results.task
    row = score_row(results.compare, HYBRID, 0) if results.compare else None
    tuned = results.finetune.metrics if results.finetune else {}
    score = row.mean if row is not None else tuned.get(task.primary_metric) if task else None
    if score is None or task is None:
        return None
    return [
        EvalResult(
            task_type=_pipeline(results),
            dataset_type=task.name or "task",
            dataset_name=task.name or "task",
            metric_type=task.primary_metric,
            metric_value=score,
        )
    ]


def _picture(results: Results) -> bytes | None:
    with house_style():
        figure = block_picture(results)
        return None if figure is None else to_png(figure)


def _body(results: Results, licence_note: str, folder: Path, has_picture: bool) -> str:
    environment = Environment(
        loader=PackageLoader("manticore.report", package_path=""),
        autoescape=False,  # HTML escaping alone would leave Markdown's own marks active
        finalize=escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    task, compare, names = results.task or TaskInfo(), results.compare, results.component_names
    named = compare is not None and bool(compare.budgets)
    budgets = (
        [budget_name(results, b) for b in range(len(compare.budgets))] if compare and named else [task.primary_metric]
    )
    return environment.get_template("card.md").render(
        title=results.name or ("Hybrid" if alone(results) is None else "Model"),
        num_blocks=results.num_blocks,
        searched=results.search is not None,
        discrete=bool(results.path),
        parent=alone(results),
        apart=_apart(results),
        predicts=predicts(results.combine) if results.combine and not results.path else "",
        how_found=candidates.how_found(results),
        verdict=verdict(results).sentence,
        warnings=warnings(results),
        parents=[_parent(name, c) for name, c in zip(names, results.components)],
        license_note=licence_note,
        picture=Markup(PICTURE) if has_picture else None,
        picture_text="; ".join(f"block {n}: {names[c]}" for n, c in enumerate(results.path)) or "components and blocks",
        metric=task.primary_metric,
        task=task.name or "the task",
        direction="higher" if task.higher_is_better else "lower",
        budgets=budgets,
        before=compare is not None and cells.has_downloaded(compare),
        spent=cells.equal_compute(results),
        notes=cells.notes(results),
        written=writing.short_table(results),
        written_notes=writing.notes(results),
        written_said=writing.said(results),
        rows=[
            _model_row(results, compare, model, [score_row(compare, model, b) for b in range(len(budgets))])
            for model in (compare.models if compare else ())
        ]
        if compare
        else [],
        stages=_stages(results),
        data=_data(task),
        align_text=beginning(results.align.bos) if results.align else "",
        seed=results.seed,
        tuned=[
            {"name": name, "score": quantities.score(score)}
            for name, score in (results.finetune.metrics if results.finetune else {}).items()
        ],
        code=Markup(code_for(results, "path/to/this/folder", with_tokenizer=has_tokenizer(folder))),
    )


def _apart(results: Results) -> bool:
    """Whether components predict side by side and nothing goes from one to another: routed at R = I, as it begins."""
    combine = results.combine
    return combine is not None and combine.mixing == "routed" and not results.path and results.search is None


def _parent(name: str, component: ComponentRecord) -> dict[str, str]:
    return {
        "name": name,
        "family": component.family or quantities.MISSING,
        "source": component.source or quantities.MISSING,
        "revision": component.revision or quantities.MISSING,
        "layers": quantities.MISSING if component.layers is None else str(component.layers),
        "width": quantities.MISSING if component.width is None else str(component.width),
        "parameters": quantities.count(component.parameters),
        "license": component.license or "not known",
    }


def _stages(results: Results) -> list[dict[str, str]]:
    """What the training took, stage by stage."""
    task = results.task.name if results.task else ""
    align, search, distill, finetune = results.align, results.search, results.distill, results.finetune
    data = {"align": _public(align.text) if align else "", "search": task, "distill": task, "finetune": task}
    return [
        {
            "name": f"search ({search.method})" if stage is search and search and search.method else name,
            "data": data[name] or quantities.MISSING,
            "steps": quantities.MISSING if stage.steps is None else f"{stage.steps:,}",
            "tokens": quantities.count(stage.tokens),
            "flops": quantities.flops(stage.flops),
        }
        for name, stage in (("align", align), ("search", search), ("distill", distill), ("finetune", finetune))
        if stage is not None
    ]


def _public(value: str) -> str:
    """Where on this machine a file lies is nobody's business."""
    return os.path.basename(value.rstrip("/")) if os.path.isabs(value) else value


def _sources(options: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Name, text and share of each source of a mixture."""
    try:
        for name, source in json.loads(options.get("sources", "{}")).items():
            yield printable(str(name)), printable(str(source["text"])), float(source["share"])
    except (ValueError, TypeError, LookupError, AttributeError):
        # a record may hold anything
        return


def _data(task: TaskInfo) -> str:
    """One line on the task's data."""
    parts = [f"{name}={_public(value)}" for name, value in task.options.items() if name != "sources"]
    parts += [
        f"{share:.0%} of the tokens from {name} ({_public(text)})" for name, text, share in _sources(task.options)
    ]
    parts += [f"{count:,} examples in {split}" for split, count in task.examples.items() if count is not None]
    parts += [f"{cells.scored(task)} scored"] if cells.scored(task) else []
    parts += [f"{task.length:,} tokens each"] if task.length else []
    parts += [task.beginning] if task.beginning else []
    return ", ".join(parts)


def _model_row(results: Results, compare: CompareRecord, model: str, rows: list[Row | None]) -> dict[str, Any]:
    task, shown = results.task or TaskInfo(), model_name(results, model)
    first = next(row for row in rows if row is not None)
    return {
        "name": Markup(f"**{escape_markdown(shown)}**") if model == HYBRID else shown,
        "before": ", ".join(cells.as_downloaded(compare, model, task)),
        "scores": [quantities.MISSING if row is None else _score(compare, row, task) for row in rows],
        "parameters": quantities.count(first.parameters),
        "flops": quantities.flops(first.flops_per_token),
        "cache": quantities.memory(first.cache_bytes_per_token),
        "state": quantities.memory(first.state_bytes),
    }


def _score(compare: CompareRecord, row: Row, task: TaskInfo) -> str:
    said = [quantities.score(row.mean), *cells.below(row, task), spending.mark(compare, row)]
    return ", ".join(part for part in said if part)
