"""From a supernet to a hybrid that holds one component per block."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

from torch import Tensor, nn
from transformers.initialization import no_init_weights

from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import check_path
from manticore.hybrid.modeling import ManticoreForCausalLM

logger = logging.getLogger(__name__)


def best_path(hybrid: ManticoreForCausalLM) -> list[int]:
    """One component per block: the largest weight, or the most probable path where the mixing is routed."""
    return hybrid.mixing.best_path()


def discretize(hybrid: ManticoreForCausalLM, path: Sequence[int] | None = None) -> ManticoreForCausalLM:
    """A hybrid that keeps, per block, one component's segment, and projectors where components change.

    It computes what the supernet computes at that vertex. The supernet is left as it is.

    Args:
        hybrid: a supernet.
        path: N component indices; None takes :func:`best_path`, and says so if there is nothing to choose by.

    Returns:
        A new hybrid in the mode (training or evaluation) of the given one, with copies of the kept weights.

    Raises:
        ManticoreError: already discretized, an impossible path, or a family that shares weights between layers.
    """
    require_hybrid(hybrid, "discretize")
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
    settings = copy.deepcopy(hybrid.config).to_dict()
    settings.update(path=chosen, searched_weights=weights.tolist())
    config = ManticoreConfig(**settings)
    for k, (ours, theirs) in enumerate(zip(config.components, hybrid.config.components)):
        # not part of a saved configuration
        ours._attn_implementation = theirs._attn_implementation
        ours._experts_implementation = theirs._experts_implementation
        ours.dtype = hybrid.component(k).dtype
    with no_init_weights():
        small = ManticoreForCausalLM(config)
    # not through the state dict: it lacks the tables that families derive (rotary frequencies), and each tensor has to
    # keep its own precision
    nn.Module.to(small, device=hybrid.device)
    given = _tensors(hybrid)
    for name, tensor in _tensors(small).items():
        if name in given:
            tensor.data = given[name].detach().clone()
        elif isinstance(tensor, nn.Parameter):
            raise ManticoreError(
                f"discretize: the hybrid has no weight {name}. Fix: merge adapters into their model first"
            )
    # building without initialisation leaves embeddings and head apart in families that share them
    small.tie_weights()
    small.tokenizer = hybrid.tokenizer
    small.generation_config = copy.deepcopy(hybrid.generation_config)
    return small.train(hybrid.training)


def _tensors(hybrid: ManticoreForCausalLM) -> dict[str, Tensor]:
    """Parameters and buffers by name; shared ones under each of their names."""
    return {
        **dict(hybrid.named_parameters(remove_duplicate=False)),
        **dict(hybrid.named_buffers(remove_duplicate=False)),
    }
