"""Reads the softmax attention of a decoder layer: its maps, heads, norms and rotations, whatever family it is of.

There is no list of families. An attention is understood if it has maps of queries, keys, values and outputs, apart or
in one matrix, and beside them nothing but norms of queries and keys; whether it was understood rightly is checked by
computing it from what was read (:func:`check_reading`).

Shapes: B batch, T tokens, D width, H query heads, G heads of keys and values, K head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from manticore.components.selfcheck import refusing_crashes
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.stacks.mixer import merge_heads, split_heads

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
_FUSED = ("c_attn", "query_key_value")
_NORMS = ("q_norm", "k_norm")
# neither weights nor arithmetic of their own
_HARMLESS = (nn.Dropout, nn.Identity)
_TOKENS = 8


@dataclass
class AttentionMaps:
    """What was read of one attention."""

    q_proj: nn.Linear
    """D → H * K."""
    k_proj: nn.Linear
    """D → G * K."""
    v_proj: nn.Linear
    """D → G * K."""
    o_proj: nn.Linear
    """H * K → D."""
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    head_dim: int
    """K."""
    scaling: float
    """Of the products of queries and keys."""
    rotate: Rotate | None
    """Turns queries and keys ``[B, ·, T, K]`` by cosines and sines; None where the layer does not."""
    layer_idx: int
    softcap: bool
    """Whether the products of queries and keys are bounded before the softmax."""

    @property
    def num_heads(self) -> int:
        """H."""
        return self.q_proj.out_features // self.head_dim

    @property
    def num_kv_heads(self) -> int:
        """G."""
        return self.k_proj.out_features // self.head_dim

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, K]``, keys and values ``[B, G, T, K]`` of ``[B, T, D]``, normed and not yet rotated."""
        q = by_heads(self.q_proj(hidden), self.q_norm, self.num_heads)
        k = by_heads(self.k_proj(hidden), self.k_norm, self.num_kv_heads)
        return q, k, split_heads(self.v_proj(hidden), self.num_kv_heads)


def find_attention(layer: nn.Module) -> tuple[nn.Module, str] | None:
    """The module that owns a layer's attention and the attribute it is under; None where there is none."""
    for owner in layer.modules():
        for name, child in owner.named_children():
            parts = dict(child.named_children())
            maps = {"q_proj", "k_proj", "v_proj"} <= parts.keys() or any(part in parts for part in _FUSED)
            if maps and any(part in parts for part in _OUTPUTS):
                return owner, name
    return None


def read_attention(attention: Any, layer_idx: int, config: Any) -> AttentionMaps:
    """The maps of an attention; those that are apart are its own modules.

    Args:
        attention: the module.
        layer_idx: of its layer, which is its place in a cache.
        config: of its model.

    Raises:
        ManticoreError: it has parts that are not understood, or maps of other sizes than its heads'.
    """
    parts = dict(attention.named_children())
    out = next(name for name in _OUTPUTS if name in parts)
    fused = next((name for name in _FUSED if name in parts), None)
    known = {out, *_NORMS, *(("q_proj", "k_proj", "v_proj") if fused is None else (fused,))}
    strange = [name for name, part in parts.items() if name not in known and not isinstance(part, _HARMLESS)]
    strange = [name for name in strange if list(parts[name].parameters())]
    strange += [name for name, _ in attention.named_parameters(recurse=False)]
    if strange:
        raise ManticoreError(f"it has {strange[0]} beside queries, keys and values")
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(attention, "head_dim", getattr(attention, "head_size", 0)) or config.hidden_size // heads)
    o_proj = _linear(parts[out])
    if fused is None:
        q_proj, k_proj, v_proj = (_linear(parts[name]) for name in ("q_proj", "k_proj", "v_proj"))
    else:
        q_proj, k_proj, v_proj = _taken_apart(parts[fused], head_dim)
    widths = [q_proj.out_features, k_proj.out_features, v_proj.out_features, o_proj.in_features]
    queries, keys = widths[0], widths[1]
    if queries % head_dim or keys % head_dim or queries % keys or widths != [queries, keys, keys, queries]:
        raise ManticoreError(f"its maps have widths {widths}, which are no heads of {head_dim}")
    if queries != heads * head_dim:
        raise ManticoreError(f"its queries have width {queries} (expected {heads} heads of {head_dim})")
    rotates = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if not getattr(attention, "use_rope", True):
        rotates = None
    return AttentionMaps(
        *(q_proj, k_proj, v_proj, o_proj, parts.get("q_norm"), parts.get("k_norm"), head_dim),
        scaling=float(getattr(attention, "scaling", head_dim**-0.5)),
        rotate=rotates,
        layer_idx=layer_idx,
        softcap=getattr(attention, "attn_logit_softcapping", None) is not None,
    )


def attention_of(layer: nn.Module, index: int, config: Any) -> tuple[nn.Module, str, AttentionMaps]:
    """The module that owns a layer's attention, the attribute it is under, and what is read of it.

    Args:
        layer: a decoder layer.
        index: its place among them.
        config: of their model.

    Raises:
        ManticoreError: there is none, or one that is not understood.
    """
    found, where = find_attention(layer), f"twin: layer {index} of family {config.model_type!r}"
    if found is None:
        raise ManticoreError(f"{where} has no softmax attention that a mixer could stand for. Fix: another parent")
    owner, name = found
    try:
        return owner, name, read_attention(getattr(owner, name), index, config)
    except ManticoreError as error:
        raise ManticoreError(
            f"{where} has an attention that is not understood: {error}. Fix: another parent"
        ) from error


@torch.no_grad()
def check_reading(model: PreTrainedModel, found: Mapping[int, tuple[nn.Module, AttentionMaps]]) -> None:
    """Compute each attention from what was read of it, on a few random tokens, and compare with its own output.

    Args:
        model: the parent, as it is.
        found: by layers, their attention and what was read of it.

    Raises:
        ManticoreError: one gives something else, so that it has parts that were not understood.
    """
    window = getattr(model.config, "sliding_window", None)
    tokens = min(_TOKENS, window) if isinstance(window, int) and window > 0 else _TOKENS
    worst: dict[int, float] = {}

    def compare(index: int, maps: AttentionMaps) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            q, k, v = maps.heads(hidden_of(args, kwargs))
            q, k = rotated(maps.rotate, q, k, kwargs.get("position_embeddings"))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=maps.scaling, enable_gqa=True)
            own = maps.o_proj(merge_heads(mixed))
            worst[index] = float((own - output[0]).abs().max() / output[0].abs().max().clamp_min(1e-30))

        return hook

    handles = [
        attention.register_forward_hook(compare(index, maps), with_kwargs=True)
        for index, (attention, maps) in found.items()
    ]
    try:
        with refusing_crashes(model):
            run_random(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    tolerance = 1e-3 if torch.finfo(model.dtype).bits >= 32 else 5e-2
    for index, error in worst.items():
        if not error <= tolerance:
            raise ManticoreError(
                f"twin: the attention of layer {index} of family {model.config.model_type!r} is more than queries, keys"
                f" and values: computed from them it is off by {error:.2g} of its largest output. Fix: another parent, "
                "or layers without it"
            )


@torch.no_grad()
def run_random(model: PreTrainedModel, tokens: int) -> None:
    """Run a model once on so many random tokens."""
    generator = torch.Generator().manual_seed(derive_seed(0, "twin"))
    table: Any = model.get_input_embeddings()
    model(
        input_ids=torch.randint(0, len(table.weight), (1, tokens), generator=generator).to(model.device),
        use_cache=False,
    )


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What an attention is given to attend in, ``[B, T, D]``: families differ in whether they name it."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def rotated(rotate: Rotate | None, q: Tensor, k: Tensor, angles: Any) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their positions, where there are rotations; of some families only so many channels."""
    if rotate is None or angles is None:
        return q, k
    turned = angles[0].shape[-1]
    if turned == q.shape[-1]:
        return rotate(q, k, *angles)
    parts = zip(rotate(q[..., :turned], k[..., :turned], *angles), (q[..., turned:], k[..., turned:]))
    q, k = (torch.cat(part, -1) for part in parts)
    return q, k


def by_heads(x: Tensor, norm: Any, heads: int) -> Tensor:
    """``[B, T, H * K]`` → ``[B, H, T, K]``, normed by head or as a whole, as the norm's weight is long."""
    if norm is None:
        return split_heads(x, heads)
    whole = norm.weight.shape[-1] == x.shape[-1]
    return split_heads(norm(x), heads) if whole else norm(split_heads(x, heads))


def _linear(module: Any) -> nn.Linear:
    """A map as a linear layer; families of GPT-2's time keep their weights the other way round."""
    if isinstance(module, nn.Linear):
        return module
    if not isinstance(module, Conv1D):
        raise ManticoreError(f"its map is a {type(module).__name__}")
    return _from_weight(module.weight.T, module.bias)


def _taken_apart(module: Any, head_dim: int) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The maps of queries, keys and values that one matrix holds: as blocks (GPT-2), or head by head (GPT-NeoX)."""
    whole = _linear(module)
    if isinstance(module, Conv1D):
        weights, biases = whole.weight.chunk(3), (None,) * 3 if whole.bias is None else whole.bias.chunk(3)
    else:
        if whole.out_features % (3 * head_dim):
            raise ManticoreError(f"its one map has width {whole.out_features}, which is no multiple of 3 x {head_dim}")

        def apart(x: Tensor) -> Any:
            return (part.flatten(0, 1) for part in x.unflatten(0, (-1, 3, head_dim)).unbind(1))

        weights, biases = tuple(apart(whole.weight)), (None,) * 3 if whole.bias is None else tuple(apart(whole.bias))
    q, k, v = (_from_weight(weight, bias) for weight, bias in zip(weights, biases))
    return q, k, v


def _from_weight(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, wide = weight.shape
    made = nn.Linear(wide, out, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made
