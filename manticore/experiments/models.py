"""The models of a comparison: given in many ways, built anew for every run, and the ensemble that joins them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from manticore import quantities
from manticore.components.checkpoint_folder import quantization_of
from manticore.components.loading import load_config, load_tokenizer, own_tokenizer
from manticore.components.rebuilding import copied
from manticore.components.token_matching import same_tokenizer
from manticore.errors import ManticoreError, in_brief
from manticore.experiments.rows import ensemble_row, larger_row
from manticore.hybrid.combine import combine
from manticore.hybrid.configuration import ManticoreConfig
from manticore.runs.lineage import model_lineage, weights_digest
from manticore.tasks.beginning import adds_bos
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step
from manticore.training.classifiers import load_saved
from manticore.training.prepare import fit_to_task
from manticore.training.pretrain import read_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = PreTrainedModel | str | Path | Callable[[int], PreTrainedModel]
"""A model (copied for every run), its folder or hub id, or a function of the seed that makes one."""

_BY_BYTES = "bits_per_byte"


def named(models: Mapping[str, Source] | Sequence[Source]) -> dict[str, Source]:
    """Name → model; in a list, ``"name=folder"`` gives a name, others take those of their families or folders.

    Raises:
        ManticoreError: no models, or a name given twice.
    """
    several = isinstance(models, Mapping | Sequence) and not isinstance(models, str)
    each: Any = models.values() if isinstance(models, Mapping) else models
    wrong = [models] if not several else [one for one in each if not (isinstance(one, str | Path) or callable(one))]
    if wrong:
        raise ManticoreError(
            f"compare: {in_brief(repr(wrong[0]), 60)} (expected models, folders or hub ids, in a list or by name). "
            "Fix: compare([first, second], …)"
        )
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        pairs = [_given_name(model) for model in models]
        chosen = [name for name, _ in pairs if name is not None]
        for name in chosen:
            if chosen.count(name) > 1:
                raise ManticoreError(f"compare: two models are called {name!r}. Fix: give each its own name")
        named = {}
        for given, model in pairs:
            name = given or _name(model)
            # a name that was given is not for others to have, wherever it stands in the list
            same = sum(re.fullmatch(re.escape(name) + r"(-\d+)?", other) is not None for other in {*named, *chosen})
            named[name if given or not same else f"{name}-{same + 1}"] = model
    if not named:
        raise ManticoreError("compare: no models. Fix: give two or more")
    return named


def _given_name(model: Source) -> tuple[str | None, Source]:
    """The name in ``"name=folder"``; a path with such a sign in it is a path."""
    name, sign, source = model.partition("=") if isinstance(model, str) else ("", "", "")
    if not sign or not name or not source or "/" in name or Path(str(model)).expanduser().exists():
        return None, model
    return name, source


def _name(model: Source) -> str:
    if isinstance(model, PreTrainedModel):
        return model.config.model_type
    return Path(model).name if isinstance(model, str | Path) else getattr(model, "__name__", "model")


def build(source: Source, seed: int) -> PreTrainedModel:
    """A model of its own for one run."""
    if isinstance(source, PreTrainedModel):
        return copied(source)
    return load_saved(source) if isinstance(source, str | Path) else source(seed)


def own_tasks(
    task: str | Task, sources: Mapping[str, Source], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, Task], bool]:
    """Name of a model → the task as that model reads it; and whether their tokens differ.

    A task by its name is read with `tokenizer` or the first one that a model has. A model whose own tokenizer is
    another reads the same text with that. Where tokens differ, losses per token do not compare: bits per byte decide.

    Raises:
        ManticoreError: tokenizers differ, and the task is there in one's tokens only, or its score is of tokens.
    """
    carried = {"tokenizer=": tokenizer, **{name: tokenizer_of(source) for name, source in sources.items()}}
    first = next(((name, found) for name, found in carried.items() if found is not None), None)
    if isinstance(task, str):
        task = load_task(task, tokenizer=first[1] if first else None)
    tasks = dict.fromkeys(sources, task)
    if task.vocab_size is not None or first is None:
        return tasks, False
    differ = False
    for name, own in carried.items():
        if name not in tasks or own is None:
            continue
        same = same_tokenizer(first[1], own)
        if same and adds_bos(own) == adds_bos(first[1]):
            continue
        differ = differ or not same
        if task.sources and not same:
            raise ManticoreError(
                f"compare: {first[0]} and {name} have different tokenizers, and the sources of {task.name!r} have "
                "shares of tokens, so that texts would differ. Fix: compare on one source after the other, or give the "
                "model re-embedded: combine([…], tokenizer=…).component(k)"
            )
        reads = task.read_with(own) if task.read_with is not None else None
        if not same and (reads is None or not _by_bytes(task) or not _by_bytes(reads)):
            raise ManticoreError(
                f"compare: {first[0]} and {name} have different tokenizers, so {name} cannot read the tokens of "
                f"task {task.name!r}. Fix: leave it out, give the task by its name so that each reads it with its own, "
                "or give the model re-embedded: combine([…], tokenizer=…).component(k)"
            )
        tasks[name] = reads or task
    if differ:
        tasks = {
            name: replace(each, primary_metric=_BY_BYTES, higher_is_better=False, chance=None)
            for name, each in tasks.items()
        }
    return tasks, differ


def _by_bytes(task: Task) -> bool:
    return _BY_BYTES in task.metric_state().compute()


def tokenizer_of(source: Source) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model carries; None of what a function makes."""
    if isinstance(source, PreTrainedModel):
        return own_tokenizer(source)
    return load_tokenizer(source) if isinstance(source, str | Path) else None


def add_larger(
    sources: dict[str, Source], larger: PreTrainedModel | str | Path | None
) -> dict[str, PreTrainedModel | str | Path]:
    """Beside the models a larger one, if there is one; returns its row's name and what it is.

    Raises:
        ManticoreError: it is a hybrid.
    """
    if larger is None:
        return {}
    given, source = _given_name(larger)
    assert isinstance(source, PreTrainedModel | str | Path)
    if _is_hybrid(source):
        raise ManticoreError(
            f"compare: larger is a hybrid ({in_brief(str(given or _name(source)), 60)}). "
            "Fix: give a single pretrained model, and hybrids among the models"
        )
    added = {larger_row(given or _name(source)): source}
    sources |= added
    return added


def pretrained_with(name: str, source: Source, others: Mapping[str, Source]) -> str:
    """A sentence on what pretraining a model has cost, and beside it the dearest of others; empty where unknown."""
    own = _pretraining_flops(source)
    if own is None:
        return ""
    said = f"{name} was pretrained with {quantities.flops(own)}"
    known = {other: cost for other, each in others.items() if (cost := _pretraining_flops(each))}
    if not known:
        return f"{said}."
    dearest = max(known, key=lambda other: known[other])
    return f"{said}, {own / known[dearest]:.2g} times what {dearest} had ({quantities.flops(known[dearest])})."


def _pretraining_flops(source: Source) -> int | None:
    """Training FLOPs that :func:`manticore.pretrain` has spent on a model; None where nothing is noted beside it."""
    folder = source.name_or_path if isinstance(source, PreTrainedModel) else source
    if not isinstance(folder, str | Path):
        return None
    try:
        noted = read_record(Path(folder).expanduser())
        steps, batch_size, length = (int(noted[key]) for key in ("steps", "batch_size", "length"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps * flops_per_step(build(source, 0), batch_size, length)


def reads_text(task: Task) -> bool:
    """Whether a task is text: models keep their vocabularies, and predict the next token."""
    return task.vocab_size is None and task.num_classes is None and task.bos is not None


def add_ensembles(
    sources: dict[str, Source],
    parents: Mapping[str, PreTrainedModel | str | Path],
    task: Task,
    outputs: Sequence[str],
) -> list[str]:
    """Beside models that are not hybrids, ensembles of them: a routed hybrid whose routes stay apart, per output.

    Returns:
        The names of those rows.
    """
    added: dict[str, Source] = {}
    for output in outputs if len(parents) > 1 else ():
        if (name := ensemble_row(output)) not in sources:
            added[name] = partial(_ensemble, parents, task, output)
    sources |= added
    return list(added)


def _ensemble(
    parents: Mapping[str, PreTrainedModel | str | Path], task: Task, output: str, seed: int
) -> PreTrainedModel:
    # folders keep their tokenizers, which say what differently padded tables have in common
    models = [s if isinstance(s, str | Path) else build(s, seed) for s in parents.values()]
    sizes = {(load_config(str(m)) if isinstance(m, str | Path) else m.config).vocab_size for m in models}
    fresh = task.vocab_size is not None and sizes != {task.vocab_size}
    vocab_size = task.vocab_size if fresh else None
    return averaged(models, task, output=output, vocab_size=vocab_size, seed=seed)


def averaged(
    models: Sequence[PreTrainedModel | str | Path], task: Task, *, output: str, seed: int, **options: Any
) -> PreTrainedModel:
    """A hybrid that joins nothing but the predictions of ``models``, with the heads that ``task`` asks for.

    ``options`` are those of :func:`manticore.combine`.
    """
    hybrid: Any = combine(models, num_blocks=1, mixing="routed", output=output, seed=seed, **options)
    if task.num_classes is not None:
        hybrid = fit_to_task(hybrid, task, seed)
    # nothing crosses from one parent to another, so the projectors would only be counted
    hybrid.mixing.projectors = nn.ModuleDict()
    return hybrid


def plain_models(sources: Mapping[str, Source]) -> dict[str, PreTrainedModel | str | Path]:
    """Those given as models, folders or hub ids that are not hybrids."""
    return {
        name: source
        for name, source in sources.items()
        if isinstance(source, PreTrainedModel | str | Path) and not _is_hybrid(source)
    }


def _is_hybrid(source: PreTrainedModel | str | Path) -> bool:
    if isinstance(source, str | Path):
        return isinstance(load_config(str(source)), ManticoreConfig)
    return isinstance(source.config, ManticoreConfig)


def quantization(source: PreTrainedModel | str | Path) -> str | None:
    """What quantisation a model's weights came out of."""
    return quantization_of(load_config(str(source)) if isinstance(source, str | Path) else source)


def source_digest(source: Source) -> str | None:
    """The digest of a model's files or of its weights; None for what a function makes."""
    if isinstance(source, str | Path):
        return model_lineage(str(source))["sha256"]
    return weights_digest(source) if isinstance(source, PreTrainedModel) else None
