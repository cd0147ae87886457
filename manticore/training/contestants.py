"""The models of a comparison: given in many ways, built anew for every run, and the ensemble that joins them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from manticore.components.loading import load_config, load_tokenizer, own_tokenizer
from manticore.components.rebuilding import copied
from manticore.components.token_matching import same_tokenizer
from manticore.errors import ManticoreError
from manticore.hybrid.combine import combine
from manticore.hybrid.configuration import ManticoreConfig
from manticore.tasks.task import Task, load_task
from manticore.training.classifiers import load_saved
from manticore.training.prepare import fit_to_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = PreTrainedModel | str | Path | Callable[[int], PreTrainedModel]
"""A model (copied for every run), its folder or hub id, or a function of the seed that makes one."""

ENSEMBLE = "ensemble"


def named(models: Mapping[str, Source] | Sequence[Source]) -> dict[str, Source]:
    """Name → model; models given without names take those of their families or folders."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        named = {}
        for model in models:
            name = _name(model)
            same = sum(re.fullmatch(re.escape(name) + r"(-\d+)?", other) is not None for other in named)
            named[f"{name}-{same + 1}" if same else name] = model
    if not named:
        raise ManticoreError("compare: no models. Fix: give two or more")
    return named


def _name(model: Source) -> str:
    if isinstance(model, PreTrainedModel):
        return model.config.model_type
    return Path(model).name if isinstance(model, str | Path) else getattr(model, "__name__", "model")


def build(source: Source, seed: int) -> PreTrainedModel:
    """A model of its own for one run."""
    if isinstance(source, PreTrainedModel):
        return copied(source)
    return load_saved(source) if isinstance(source, str | Path) else source(seed)


def shared_task(task: str | Task, sources: Mapping[str, Source], tokenizer: PreTrainedTokenizerBase | None) -> Task:
    """`task`, or the registered task of that name, read with `tokenizer` or the first one that a model has.

    Raises:
        ManticoreError: it is in the models' own tokens, and their tokenizers differ.
    """
    carried = {"tokenizer=": tokenizer, **{name: _tokenizer(source) for name, source in sources.items()}}
    if isinstance(task, str):
        first = next((found for found in carried.values() if found is not None), None)
        task = load_task(task, tokenizer=first)
    refuse_other_tokenizers(task, carried)
    return task


def _tokenizer(source: Source) -> PreTrainedTokenizerBase | None:
    if isinstance(source, PreTrainedModel):
        return own_tokenizer(source)
    return load_tokenizer(source) if isinstance(source, str | Path) else None


def refuse_other_tokenizers(task: Task, carried: Mapping[str, PreTrainedTokenizerBase | None]) -> None:
    """Refuse to score models on the same tokens where these do not mean the same to them.

    Args:
        task: with a vocabulary of its own anything goes.
        carried: name of a model → its tokenizer, where it has one.

    Raises:
        ManticoreError: the tokenizers differ.
    """
    known = [(name, tokenizer) for name, tokenizer in carried.items() if tokenizer is not None]
    for name, other in known[1:] if task.vocab_size is None else []:
        if not same_tokenizer(known[0][1], other):
            raise ManticoreError(
                f"compare: {known[0][0]} and {name} have different tokenizers, so {name} cannot read the tokens of "
                f"task {task.name!r}. Fix: leave it out, or give it re-embedded: combine([…], tokenizer=…).component(k)"
            )


def add_ensemble(sources: dict[str, Source], task: Task) -> None:
    """Beside the models that are no hybrids, the mean of their logits: a routed hybrid whose routes stay apart."""
    parents = {name: source for name, source in sources.items() if not _is_hybrid(source)}
    if len(parents) < 2 or ENSEMBLE in sources:
        return

    def ensemble(seed: int) -> PreTrainedModel:
        # folders keep their tokenizers, which say what differently padded tables have in common
        models = [s if isinstance(s, str | Path) else build(s, seed) for s in parents.values()]
        sizes = {(load_config(str(m)) if isinstance(m, str | Path) else m.config).vocab_size for m in models}
        fresh = task.vocab_size is not None and sizes != {task.vocab_size}
        vocab_size = task.vocab_size if fresh else None
        return averaged(models, task, vocab_size=vocab_size, seed=seed)

    sources[ENSEMBLE] = ensemble


def averaged(
    models: Sequence[PreTrainedModel | str | Path], task: Task, *, seed: int, **options: Any
) -> PreTrainedModel:
    """A hybrid that averages the logits of ``models``, with the heads that ``task`` asks for.

    ``options`` are those of :func:`manticore.combine`.
    """
    hybrid: Any = combine(models, num_blocks=1, mixing="routed", seed=seed, **options)
    if task.num_classes is not None:
        hybrid = fit_to_task(hybrid, task, seed)
    # nothing crosses from one parent to another, so the projectors would only be counted
    hybrid.mixing.projectors = nn.ModuleDict()
    return hybrid


def _is_hybrid(source: Source) -> bool:
    if isinstance(source, str | Path):
        return isinstance(load_config(str(source)), ManticoreConfig)
    return not isinstance(source, PreTrainedModel) or isinstance(source.config, ManticoreConfig)


def weights_fingerprint(source: Source) -> str | None:
    """Tells models apart by both ends of every tensor; None for models that are made by a function."""
    if isinstance(source, str | Path):
        return str(source)
    if not isinstance(source, PreTrainedModel):
        return None
    digest = hashlib.sha256(source.config.to_json_string().encode())
    for name, tensor in source.state_dict().items():
        flat = tensor.detach().flatten()
        ends = torch.cat([flat[:16], flat[-16:]]).double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]
