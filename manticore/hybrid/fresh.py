"""Fresh layers as a branch of a hybrid: a stack at a parent's width, one layer or several for each of its blocks.

The branch is a component like any other, so that mixings, paths, searches, caches, LoRA and folders know it. It begins
in the parent's feature space: its embeddings, last norm and head are copies of the parent's, and no projector stands
between the two (:mod:`manticore.hybrid.feature_spaces`). Learned positions and scalings that the parent adds to its
embeddings are not copied: a branch is made to be handed over to behind a block of the parent.

Shapes: D width, N blocks.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from manticore import registry
from manticore.boundaries import cut, wrong_end
from manticore.branches import PREFIX
from manticore.components.loading import load_component
from manticore.components.positions import context_length
from manticore.components.runner import Runner
from manticore.errors import ManticoreError
from manticore.hybrid.feature_spaces import mark
from manticore.seeding import derive_seed
from manticore.stacks.configuration import StackConfig
from manticore.stacks.delta import DeltaNet
from manticore.stacks.layer_entry import LayerEntry
from manticore.stacks.linear_attention import GatedLinearAttention, LinearAttention
from manticore.stacks.mixer import Mixer
from manticore.stacks.modeling import StackForCausalLM

_LINEAR = (LinearAttention, GatedLinearAttention, DeltaNet)
"""Primitives that have attention's maps, and a state where attention has a softmax."""


def fresh_branch(
    parent: str | Path | PreTrainedModel,
    layers: Sequence[Any],
    *,
    num_blocks: int,
    boundaries: Sequence[int] | None = None,
    seed: int = 0,
) -> StackForCausalLM:
    """Fresh layers to stand beside a parent in ``combine([parent, branch], num_blocks=N)``.

    Linear attention, gated linear attention and delta nets start from the maps of the attention that the parent has in
    that block: queries, keys, values (grouped ones repeated for each head) and output. What attention does not have
    (gates, decays, feature maps, convolutions) starts as the primitive starts it; the primitives have no biases. Where
    the parent has no attention in a block, or one whose maps cannot be told apart or are not of its width, the whole
    layer starts so.

    Args:
        parent: folder, hub id or model in memory, which stays as it is.
        layers: what each block holds, as in :attr:`~manticore.StackConfig.layers`; for instance
            ``["mh-gated-linear-attention"]``. Without ``num_heads`` it gets as many as the parent.
        num_blocks: N, of the hybrid.
        boundaries: the parent's, where it is not cut evenly.
        seed: of the fresh weights.

    Returns:
        A stack of N times as many layers, in evaluation mode and in the parent's precision.

    Raises:
        ManticoreError: no layers, unknown ones, or ones that share with lower layers; boundaries of other depths; a
            parent whose embeddings or head have another width than its layers.
    """
    model = load_component(parent)
    runner = Runner(model)
    edges = cut(runner.num_layers, num_blocks) if boundaries is None else list(boundaries)
    if (wrong := wrong_end(edges, "the parent", runner.num_layers)) is not None:
        raise ManticoreError(f"fresh_branch: {wrong[0]}. Fix: {wrong[1]}")
    if len(edges) != num_blocks + 1 or edges[0] != 0 or any(stop <= start for start, stop in pairwise(edges)):
        raise ManticoreError(
            f"fresh_branch: boundaries {edges} (expected {num_blocks + 1} rising layer indices from 0 on). "
            "Fix: the parent's row of what combine is given"
        )
    config, entries = _configured(model, runner.width, layers, num_blocks)
    tables, last = _tables(model, runner.width), _last_norm(model, runner.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "fresh"))
        branch = StackForCausalLM(config)
    with torch.no_grad():
        cast(nn.Module, branch).to(model.device, model.dtype)
        branch.model.embed_tokens.weight.copy_(tables[0].weight)
        branch.lm_head.load_state_dict(tables[1].state_dict())
        _copy_norm(branch.model.norm, last, runner.width)
        for n, (start, stop) in enumerate(pairwise(edges)):
            block = branch.model.layers[n * len(entries) : (n + 1) * len(entries)]
            _start(block, runner.layers[start:stop], runner.width)
    return branch.eval()


def branch_config(parent: PreTrainedConfig, layers: Sequence[Any], num_blocks: int) -> StackConfig:
    """The configuration of :func:`fresh_branch` beside a parent of which no weights are read.

    Raises:
        ManticoreError: as there.
    """
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(parent))
    model.tie_weights()
    config, _ = _configured(model, Runner(model, []).width, layers, num_blocks)
    config.dtype = parent.dtype
    return config


def _configured(
    model: PreTrainedModel, width: int, layers: Sequence[Any], num_blocks: int
) -> tuple[StackConfig, list[LayerEntry]]:
    """A branch's configuration, and what each block of it holds."""
    if isinstance(layers, str) or not layers:
        raise ManticoreError("fresh_branch: layers is no list of layers. Fix: such as ['mh-gated-linear-attention']")
    tables, last = _tables(model, width), _last_norm(model, width)
    entries = [_with_heads(LayerEntry.read(each, i), model, width) for i, each in enumerate(layers)]
    ends = ("pad_token_id", "bos_token_id", "eos_token_id")
    special: dict[str, Any] = {name: getattr(model.config, name, None) for name in ends}
    config = StackConfig(
        layers=[entry.written for _ in range(num_blocks) for entry in entries],
        vocab_size=len(tables[0].weight),
        hidden_size=width,
        norm="layer" if isinstance(last, nn.LayerNorm) else "rms",
        head_bias=tables[1].bias is not None,
        max_position_embeddings=context_length(model.config) or 1280,
        tie_word_embeddings=tables[1].weight is tables[0].weight,
        **special,
    )
    mark(config)
    config.name_or_path = PREFIX + "+".join(entry.name for entry in entries)
    return config, entries


def _tables(model: PreTrainedModel, width: int) -> tuple[nn.Embedding, nn.Linear]:
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not (isinstance(head, nn.Linear) and embeddings.weight.shape == head.weight.shape == (len(head.weight), width)):
        raise ManticoreError(
            f"fresh_branch: {model.config.model_type} has embeddings or a head of another width than its layers' "
            f"{width}, which no fresh layer can read. Fix: another parent"
        )
    return embeddings, head


def _with_heads(entry: LayerEntry, model: PreTrainedModel, width: int) -> LayerEntry:
    """With as many heads as the parent, where it takes heads and says none."""
    if entry.sharing:
        raise ManticoreError(f"fresh_branch: {entry.name} shares with lower layers. Fix: leave that out")
    known = inspect.signature(registry.resolve("layer", entry.name)).parameters
    heads = getattr(model.config, "num_attention_heads", None)
    if "num_heads" in known and "num_heads" not in entry.options and isinstance(heads, int) and width % heads == 0:
        entry = entry.with_options({**entry.options, "num_heads": heads})
    return entry


def _start(fresh: nn.ModuleList, segment: nn.ModuleList, width: int) -> None:
    """Start a block's linear mixers from the segment's attention, the first from the first and so on."""
    found = [(layer, maps) for layer in segment if (maps := _maps(layer, width)) is not None]
    mixers = [layer for layer in fresh if isinstance(layer.mixer, _LINEAR)]
    for layer, (source, maps) in zip(mixers, found):
        _take(cast(Mixer, layer.mixer), maps)
        norm = next((child for child in source.children() if _is_norm(child, width)), None)
        _copy_norm(cast(nn.Module, layer.norm), norm, width)


def _take(mixer: Any, maps: Sequence[Tensor]) -> None:
    if isinstance(mixer, DeltaNet):
        mixer.qkv_proj.weight.copy_(torch.cat(list(maps[:3])))
    else:
        for own, given in zip((mixer.q_proj, mixer.k_proj, mixer.v_proj), maps):
            own.weight.copy_(given)
    mixer.out_proj.weight.copy_(maps[3])


def _maps(layer: nn.Module, width: int) -> tuple[Tensor, ...] | None:
    """Queries', keys', values' and outputs' maps of the attention in a layer, ``[D, D]`` each; None without such."""
    for module in layer.modules():
        children = dict(module.named_children())
        out: Any = children.get("o_proj", children.get("out_proj", children.get("c_proj")))
        if {"q_proj", "k_proj", "v_proj"} <= children.keys() and out is not None:
            parts = [_matrix(children[name]) for name in ("q_proj", "k_proj", "v_proj")]
        elif isinstance(children.get("c_attn"), Conv1D) and out is not None:
            parts = list(_matrix(children["c_attn"]).chunk(3))
        else:
            continue
        parts.append(_matrix(out))
        repeats = [len(parts[0]) // len(part) for part in parts[1:3]]
        head = getattr(module, "head_dim", None)
        if isinstance(head, int) and repeats != [1, 1]:
            # grouped keys and values serve several heads each
            parts[1:3] = [
                part.unflatten(0, (-1, head)).repeat_interleave(times, 0).flatten(0, 1)
                for part, times in zip(parts[1:3], repeats)
            ]
        return tuple(parts) if all(part.shape == (width, width) for part in parts) else None
    return None


def _matrix(module: Any) -> Tensor:
    """``[out, in]``."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and isinstance(weight, Tensor) and weight.shape == (width,)


def _last_norm(model: PreTrainedModel, width: int) -> nn.Module | None:
    return next((m for m in reversed(list(model.base_model.children())) if _is_norm(m, width)), None)


def _copy_norm(ours: nn.Module, theirs: nn.Module | None, width: int) -> None:
    """Take over a norm's weights, if they mean the same there."""
    if theirs is None:
        return
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in before}, strict=False)
    weight = cast(Tensor, ours.weight)
    probe = torch.linspace(-2, 3, width, dtype=weight.dtype, device=weight.device)[None]
    # some families keep the weight less one
    if not torch.allclose(ours(probe), theirs(probe), atol=1e-3):
        ours.load_state_dict(before)
