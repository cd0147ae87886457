"""Builds a hybrid from pretrained components."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.loading import load_component, load_config, load_tokenizer
from manticore.components.quiet import quiet_loading
from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.registry import resolve
from manticore.seeding import derive_seed

logger = logging.getLogger(__name__)

# tells tokenizers apart that share a vocabulary but split text differently
_PROBE = "The 3 quick brown-foxes' café jumped:\n\tdef f(x):  return x**2 # 12345 §\u00a0日本"


def combine(
    models: Sequence[str | Path | PreTrainedModel],
    *,
    num_blocks: int = 4,
    mixing: str = "translated",
    projector: str = "linear",
    projector_options: dict[str, Any] | None = None,
    vocab_size: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revisions: Sequence[str | None] | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    check: bool = True,
) -> ManticoreForCausalLM:
    """A supernet of two or more causal LMs, cut into blocks and joined by identity projectors.

    At the vertex of a component it computes that component's logits, bit for bit on CPU in float32.

    Args:
        models: folders, hub ids or models in memory (copied); at least two.
        num_blocks: N, how many segments each is cut into; no more than the shallowest has layers.
        mixing: ``"translated"``, ``"routed"`` or ``"gated"``.
        projector: kind of projector.
        projector_options: its arguments, such as ``{"rank": 16}``.
        vocab_size: give every component fresh embeddings and a fresh head of so many rows, for a task with its own
            vocabulary; None keeps the components' own, which then must share a tokenizer.
        tokenizer: what the token ids mean, for components that carry no tokenizer themselves; None takes the one that
            all of them carry.
        revisions: branch, tag or commit of each hub id.
        dtype: precision of all components; None takes the one they have in common, or float32.
        seed: of fresh embeddings, heads and projectors.
        check: run the self-check of each component.

    Returns:
        The hybrid in evaluation mode, at the weights a search starts from.

    Raises:
        ManticoreError: fewer than two components, tokenizers or vocabularies that differ, more blocks than layers, or a
            component that cannot be loaded or reproduced.
    """
    if isinstance(models, str | Path | PreTrainedModel) or len(models) < 2:
        raise ManticoreError("combine: one component (expected two or more). Fix: name a second checkpoint")
    if isinstance(num_blocks, bool) or not isinstance(num_blocks, int) or num_blocks < 1:
        raise ManticoreError(
            f"combine: num_blocks is {num_blocks!r} (expected a whole number, 1 or more). Fix: num_blocks=4"
        )
    resolve("mixing", mixing)
    resolve("projector", projector)
    pinned = list(revisions) if revisions is not None else [None] * len(models)
    if len(pinned) != len(models):
        raise ManticoreError(
            f"combine: {len(pinned)} revisions for {len(models)} components. Fix: give one each, None for folders"
        )

    names = [_name(model, k) for k, model in enumerate(models)]
    _check_depths(names, models, pinned, num_blocks)
    components = [load_component(m, revision=r, dtype=dtype) for m, r in zip(models, pinned)]
    for name, component in zip(names, components):
        if isinstance(component, ManticoreForCausalLM):
            raise ManticoreError(f"combine: {name} is a hybrid itself. Fix: combine all its components at once")
    if vocab_size is None:
        carried = [load_tokenizer(m, revision=r) for m, r in zip(models, pinned)]
        # a tokenizer speaks for the components that carry it; given by hand, for all
        vouched = tokenizer is not None or all(found is not None for found in carried)
        tokenizer = _common_tokenizer([*names, "tokenizer="], [*carried, tokenizer])
        vocab_size_kept = _common_vocabulary(names, components, tokenizer, vouched)
    else:
        vocab_size_kept = min(component.config.vocab_size for component in components)
    _unify_dtype(components)

    runners = [Runner(component) for component in components]
    one_token: list[bool] | None = None
    if check:
        with quiet_loading():
            for component, runner in zip(components, runners):
                self_check(component, runner, seed=seed)
            one_token = [continues_by_one_token_only(runner, seed=seed) for runner in runners]
    # the attention implementation that was resolved is written into configurations, so each component has its own
    configurations: dict[str, Any] = {f"component_{k}": component.config for k, component in enumerate(components)}
    config = ManticoreConfig(
        num_components=len(components),
        num_blocks=num_blocks,
        mixing=mixing,
        projector=projector,
        projector_options=projector_options,
        layer_outputs=[runner.tuple_sizes for runner in runners],
        one_token_at_a_time=one_token,
        vocab_size=vocab_size_kept,
        dtype=components[0].dtype,
        **configurations,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "combine"))
        hybrid = build(config, components)
    hybrid.tokenizer = tokenizer
    hybrid.set_special_tokens(tokenizer)
    if vocab_size is not None:
        hybrid.with_vocabulary(vocab_size, seed=seed)
    return hybrid.eval()


def build(config: ManticoreConfig, components: Sequence[PreTrainedModel]) -> ManticoreForCausalLM:
    """A hybrid around loaded components; only projectors and weights are initialised."""
    with no_init_weights():
        hybrid = ManticoreForCausalLM(config, components)
    for projector in hybrid.mixing.projectors.values():
        projector.to(components[0].dtype).reset_parameters()  # type: ignore[operator]
    hybrid.mixing.reset_mixture()
    return hybrid


def _name(model: str | Path | PreTrainedModel, k: int) -> str:
    if isinstance(model, PreTrainedModel):
        return str(model.config.name_or_path) or f"component {k} ({type(model).__name__})"
    return str(model)


def _check_depths(
    names: Sequence[str],
    models: Sequence[str | Path | PreTrainedModel],
    revisions: Sequence[str | None],
    num_blocks: int,
) -> None:
    """Refuse more blocks than layers by configurations alone, before weights are read or downloaded."""
    # all of them first: a model that is not there is the greater mistake
    configs = [
        load_config(str(model), revision=revision) if isinstance(model, str | Path) else getattr(model, "config", None)
        for model, revision in zip(models, revisions)
    ]
    for name, config in zip(names, configs):
        depth = getattr(config, "num_hidden_layers", num_blocks)
        if num_blocks > depth:
            raise ManticoreError(
                f"combine: {num_blocks} blocks, but {name} has {depth} layers. Fix: num_blocks <= {depth}"
            )


def _common_tokenizer(
    names: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase | None]
) -> PreTrainedTokenizerBase | None:
    """The one tokenizer of all components, or None where none carries one."""
    carried = [(name, tokenizer) for name, tokenizer in zip(names, tokenizers) if tokenizer is not None]
    if not carried:
        return None
    first_name, first = carried[0]
    for name, other in carried[1:]:
        if other.get_vocab() != first.get_vocab() or other(_PROBE).input_ids != first(_PROBE).input_ids:
            raise ManticoreError(
                f"combine: {first_name} and {name} have different tokenizers, so their token ids do not mean the same. "
                "Fix: choose checkpoints with one tokenizer, or a task with its own vocabulary (--task mad/…)"
            )
    return first


def _common_vocabulary(
    names: Sequence[str],
    components: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
    vouched: bool,
) -> int:
    """Rows that all components have; tables may be padded beyond the tokens of a tokenizer that speaks for all."""
    rows = [component.config.vocab_size for component in components]
    if not vouched and len(set(rows)) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in zip(names, rows))
        raise ManticoreError(
            f"combine: vocabulary sizes differ ({listed}) and no common tokenizer says which ids are shared. "
            "Fix: give folders with tokenizers, or pass tokenizer="
        )
    if tokenizer is None:
        return rows[0]
    short = [(name, count) for name, count in zip(names, rows) if count < len(tokenizer)]
    if short:
        raise ManticoreError(
            f"combine: {short[0][0]} has {short[0][1]} embedding rows for {len(tokenizer)} tokens. "
            "Fix: give the checkpoint that belongs to the tokenizer"
        )
    return min(rows)


def _unify_dtype(components: Sequence[PreTrainedModel]) -> None:
    """One precision for all: the common one, or float32 where they differ."""
    found = {component.dtype for component in components}
    if len(found) > 1:
        logger.warning("components come in %s; all are taken as float32", sorted(str(d) for d in found))
    for component in components:
        if len(found) > 1:
            component.float()
        # a model in memory may have been converted after it was configured
        component.config.dtype = component.dtype
