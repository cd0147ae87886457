"""Builds a hybrid from pretrained components."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.boundaries import wrong_end, wrong_rows
from manticore.branches import Branch
from manticore.components.checkpoint_folder import gguf_file
from manticore.components.generation_settings import generation_settings
from manticore.components.gguf_files import checkpoint_folder
from manticore.components.loaded_weights import in_precision
from manticore.components.loading import load_component, load_config, load_tokenizer
from manticore.components.quiet import quiet_loading
from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.components.sources import origin
from manticore.errors import ManticoreError
from manticore.hybrid import feature_spaces, shared_weights
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.fresh import fresh_branch
from manticore.hybrid.modeling import ManticoreForCausalLM, build
from manticore.hybrid.rehearsal import rehearse
from manticore.hybrid.released import check_released, fresh_tables, released_vocabulary, tie_heads
from manticore.hybrid.unknown_version import check_transformers
from manticore.hybrid.vocabularies import Vocabulary, chosen_vocabulary, common_vocabulary, named_component
from manticore.keywords import takes
from manticore.seeding import derive_seed
from manticore.settings import Combine

logger = logging.getLogger(__name__)


@takes(Combine)
def combine(
    models: Sequence[str | Path | PreTrainedModel],
    settings: Combine,
    *,
    vocab_size: int | None = None,
    revisions: Sequence[str | None] | None = None,
    seed: int = 0,
    check: bool = True,
) -> ManticoreForCausalLM:
    """A supernet of two or more causal LMs, cut into blocks and joined by identity projectors.

    At the vertex of a component it computes that component's logits, bit for bit on CPU in float32. ``released`` is
    gated mixing as the published method's released code computes it, whole: fresh embeddings from N(0, 0.02) with heads
    tied to them, of one vocabulary; positions and norms inside the branches; heads mixed with the first block's
    weights. ``tokenizer`` is the name (last part of the path will do) or the index of the component whose tokenizer is
    kept; a loaded one speaks for components that carry none. Without ``dtype`` the components take the precision they
    have in common, or float32.

    Args:
        models: folders, hub ids or models in memory (copied); at least two. ``fresh:LAYER`` (``fresh:LAYER+LAYER`` for
            several per block, ``@k`` for another parent than the first) is a branch of fresh layers beside a parent:
            see :func:`~manticore.hybrid.fresh.fresh_branch`.
        settings: the options below in one object, which single ones change.
        vocab_size: give every component fresh embeddings and a fresh head of so many rows, for a task with its own
            vocabulary; None keeps the components' own, which then must share a tokenizer.
        revisions: branch, tag or commit of each hub id.
        seed: of fresh embeddings, heads and projectors.
        check: run the self-check of each component.

    Returns:
        The hybrid in evaluation mode, at the weights a search starts from.

    Raises:
        ManticoreError: fewer than two components, tokenizers that differ where none was chosen, or that share too
            little, more blocks than layers, or a component that cannot be loaded or reproduced.
    """
    check_transformers()
    if isinstance(models, str | Path | PreTrainedModel) or len(models) < 2:
        raise ManticoreError("combine: one component (expected two or more). Fix: name a second checkpoint")
    pinned = list(revisions) if revisions is not None else [None] * len(models)
    if len(pinned) != len(models):
        raise ManticoreError(
            f"combine: {len(pinned)} revisions for {len(models)} components. Fix: give one each, None for folders"
        )

    num_blocks, released, dtype = settings.num_blocks, settings.released, settings.dtype
    tokenizer: Any = settings.tokenizer
    branches = Branch.read(models)
    names = [_name(model, k) for k, model in enumerate(models)]
    given = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    owner = None if tokenizer is None or tokenizer is given else named_component(tokenizer, names)
    _check_configs(names, models, pinned, num_blocks, settings.boundaries, branches)
    loaded = {
        k: load_component(m, revision=r, dtype=dtype)
        for k, (m, r) in enumerate(zip(models, pinned))
        if k not in branches
    }
    for k, branch in branches.items():
        row = None if settings.boundaries is None else settings.boundaries[branch.of]
        parent = loaded[branch.of]
        loaded[k] = fresh_branch(parent, branch.layers, num_blocks=num_blocks, boundaries=row, seed=seed + k)
    components = [loaded[k] for k in range(len(models))]
    spaces = feature_spaces.of_components(components)
    if vocab_size is None:
        speaking = [branches[k].of if k in branches else k for k in range(len(models))]
        carried = [load_tokenizer(models[k], revision=pinned[k]) for k in speaking]
        if released:
            vocabulary = released_vocabulary(names, components, carried, owner, given)
        elif owner is None:
            vocabulary = common_vocabulary(names, components, carried, given)
        else:
            vocabulary = chosen_vocabulary(names, components, carried, owner, settings.min_coverage)
    else:
        vocabulary = Vocabulary(min(component.config.vocab_size for component in components), None)
    components = _in_one_precision(components)

    runners = [Runner(component) for component in components]
    one_token: list[bool] | None = None
    if check:
        with quiet_loading():
            for component, runner in zip(components, runners):
                self_check(component, runner, seed=seed)
                rehearse(component)
            one_token = [continues_by_one_token_only(runner, seed=seed) for runner in runners]
    assert settings.mixing is not None
    assert settings.forgetting is not None
    if released:
        for name, component in zip(names, components):
            tie_heads(name, component)
        fresh_tables(components, vocabulary.size, seed)
    # the attention implementation that was resolved is written into configurations, so each component has its own
    configurations: dict[str, Any] = {f"component_{k}": component.config for k, component in enumerate(components)}
    config = ManticoreConfig(
        num_components=len(components),
        num_blocks=num_blocks,
        uneven_boundaries=settings.boundaries,
        feature_spaces=spaces,
        shared_weights=None if released else shared_weights.of_components(components, spaces),
        mixing=settings.mixing,
        output=settings.output,
        forgetting=settings.forgetting,
        drop_below=settings.drop_below,
        drop_after=settings.drop_after,
        released=released,
        projector=settings.projector,
        projector_options=settings.projector_options,
        layer_outputs=[runner.tuple_sizes for runner in runners],
        one_token_at_a_time=one_token,
        parents=[_origin(model, revision) for model, revision in zip(models, pinned)],
        vocab_size=vocabulary.size,
        tokenizer_component=vocabulary.owner,
        reembedded=vocabulary.reembedded,
        dtype=components[0].dtype,
        **configurations,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "combine"))
        hybrid = build(config, components)
    hybrid.tokenizer = vocabulary.tokenizer
    if vocab_size is None:
        generation = [generation_settings(component) for component in components]
        hybrid.adopt_settings(generation, vocabulary.speaker, vocabulary.tokenizer)
    else:
        hybrid.with_vocabulary(vocab_size, seed=seed)
    hybrid.eval()
    if released and check:
        check_released(hybrid, names)
    return hybrid


def _source(model: str | Path | PreTrainedModel) -> str:
    return str(model.config.name_or_path) if isinstance(model, PreTrainedModel) else str(model)


def _origin(model: str | Path | PreTrainedModel, revision: str | None) -> dict[str, Any]:
    source = _source(model)
    folder = checkpoint_folder(source, revision=revision) if source else source
    # what was given says more than the name of a folder in the cache: a file without its place, or where on the hub
    given = {} if folder == source else {"source": source if gguf_file(source) is None else Path(source).name}
    return {**origin(folder, revision), **given}


def _name(model: str | Path | PreTrainedModel, k: int) -> str:
    if isinstance(model, PreTrainedModel):
        return _source(model) or f"component {k} ({type(model).__name__})"
    return str(model)


def _check_configs(
    names: Sequence[str],
    models: Sequence[str | Path | PreTrainedModel],
    revisions: Sequence[str | None],
    num_blocks: int,
    boundaries: Sequence[Sequence[int]] | None,
    branches: Mapping[int, Branch],
) -> None:
    """Refuse hybrids, and blocks that these depths do not have, before weights are read or downloaded."""
    # all of them first: a model that is not there is the greater mistake
    configs = [
        None
        if k in branches
        else load_config(str(model), revision=revision)
        if isinstance(model, str | Path)
        else getattr(model, "config", None)
        for k, (model, revision) in enumerate(zip(models, revisions))
    ]
    if boundaries is not None:
        for what, fix in wrong_rows(boundaries, len(names), num_blocks):
            raise ManticoreError(f"combine: {what}. Fix: {fix}")
    for k, (name, config) in enumerate(zip(names, configs)):
        if isinstance(config, ManticoreConfig):
            raise ManticoreError(f"combine: {name} is a hybrid itself. Fix: combine all its components at once")
        depth = getattr(config, "num_hidden_layers", num_blocks if boundaries is None else boundaries[k][-1])
        if k in branches:
            depth = num_blocks * len(branches[k].layers)
        if boundaries is not None:
            if (end := wrong_end(boundaries[k], name, depth)) is not None:
                raise ManticoreError(f"combine: {end[0]}. Fix: {end[1]}")
        elif num_blocks > depth:
            raise ManticoreError(
                f"combine: {num_blocks} blocks, but {name} has {depth} layers. Fix: num_blocks <= {depth}"
            )


def _in_one_precision(components: list[PreTrainedModel]) -> list[PreTrainedModel]:
    """All in the precision they have in common, or float32 where they differ."""
    precisions = {component.dtype for component in components}
    if len(precisions) > 1:
        logger.warning("components come in %s; all are taken as float32", sorted(str(d) for d in precisions))
        components = [in_precision(component, torch.float32).eval() for component in components]
    for component in components:
        # a model in memory may have been converted after it was configured
        component.config.dtype = component.dtype
    return components
