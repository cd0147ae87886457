"""From a supernet to a hybrid that holds one component per block."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import nn

from manticore.components.rebuilding import named_tensors, rebuilt
from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.found import path_found
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.mixing import check_path
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.shared_weights import shares_table

if TYPE_CHECKING:
    from manticore.search.result import SearchResult

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=ManticorePreTrainedModel)


def best_path(hybrid: ManticorePreTrainedModel) -> list[int]:
    """One component per block: the largest weight, or the most probable path where the mixing is routed."""
    return hybrid.mixing.best_path()


def discretize(
    hybrid: M | SearchResult,
    path: Sequence[int] | None = None,
    *,
    weights_from: SearchResult | str | Path | None = None,
) -> M:
    """A hybrid that keeps, per block, one component's segment, and projectors where components change.

    It computes what the supernet computes at that vertex. The supernet is left as it is.

    Args:
        hybrid: a supernet, for text or for classes; or what a search has found: of a search over candidates, the path
            that it has trained is returned as it is.
        path: N component indices; None takes :func:`best_path`, and says so if there is nothing to choose by.
        weights_from: what a search has found in another hybrid of the same parents, or its folder, instead of a path.

    Returns:
        A new hybrid in the mode (training or evaluation) of the given one, with copies of the kept weights.

    Raises:
        ManticoreError: already discretized, adapters not merged, an impossible path, one that was found in a hybrid of
            other parents, or a family that shares weights between layers.
    """
    if weights_from is not None:
        if path is not None:
            raise ManticoreError("discretize: path and weights_from are both given. Fix: give one of them")
        target = hybrid if isinstance(hybrid, nn.Module) else getattr(hybrid, "model", None)
        require_hybrid(target, "discretize")
        path = path_found(weights_from, cast(M, target).config)
    if not isinstance(hybrid, nn.Module) and hasattr(hybrid, "candidates"):
        if hybrid.candidates and (path is None or list(path) == hybrid.path):
            return hybrid.model  # type: ignore[return-value]
        hybrid, path = hybrid.model, hybrid.path if path is None else path  # type: ignore[assignment]
    hybrid = cast(M, hybrid)
    require_hybrid(hybrid, "discretize")
    if getattr(hybrid, "peft_config", None):
        raise ManticoreError(
            "discretize: the hybrid has adapters, whose updates are not yet part of its weights. "
            "Fix: hybrid = peft_model.merge_and_unload() first"
        )
    if hybrid.is_discretized:
        raise ManticoreError(
            f"discretize: the hybrid is discretized already, to path {hybrid.config.path}. "
            "Fix: give the supernet it was made from"
        )
    chosen = check_path(
        path if path is not None else best_path(hybrid),
        hybrid.config.num_blocks,
        hybrid.config.num_components,
        "discretize",
    )
    weights = hybrid.mixture_weights
    if path is None and bool((weights == weights[:, :1]).all()):
        logger.warning(
            "discretize: all mixture weights are equal, nothing was searched; the path is %s. "
            "Fix: search first, or give a path",
            chosen,
        )
    first, last = chosen[0], chosen[hybrid.config.head_block]
    spans = first != last and shares_table(hybrid.component(first), hybrid.component(last))
    config = copied_config(
        hybrid, path=chosen, searched_weights=weights.tolist(), shared_weights=None, tie_word_embeddings=spans
    )
    kind = type(hybrid)
    small = rebuilt(lambda: kind(config), named_tensors(hybrid), device=hybrid.device, stage="discretize")
    small.tokenizer = hybrid.tokenizer
    if isinstance(hybrid, ComponentGenerationMixin) and isinstance(small, ComponentGenerationMixin):
        small.adopt_generation(hybrid)
    return small.train(hybrid.training)


def copied_config(hybrid: ManticorePreTrainedModel, **changes: Any) -> ManticoreConfig:
    """A configuration of its own with the given changes, for a hybrid that takes over weights of this one."""
    settings = copy.deepcopy(hybrid.config).to_dict()
    settings.update(changes)
    if settings.get("path") is not None:
        # one component predicts alone
        settings.update(output="logits", forgetting=0.0, drop_below=None)
    config = ManticoreConfig(**settings)
    # not part of a saved configuration; of the hybrid itself alone, which would set its components' too
    config._attn_implementation_internal = hybrid.config._attn_implementation
    config._experts_implementation_internal = hybrid.config._experts_implementation
    for k, (ours, theirs) in enumerate(zip(config.components, hybrid.config.components)):
        ours._attn_implementation = theirs._attn_implementation
        ours._experts_implementation = theirs._experts_implementation
        if hybrid.runners[k] is not None:
            ours.dtype = hybrid.component(k).dtype
    return config
