"""Makes a twin of a parent: the same model, with other token mixers in some of its layers.

Shapes: D width.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from manticore.components.loading import load_component, load_tokenizer
from manticore.components.runner import Runner
from manticore.components.selfcheck import refusing_crashes
from manticore.errors import ManticoreError
from manticore.making import refuse_misfits
from manticore.option_types import Count, TwinMixers
from manticore.seeding import derive_seed
from manticore.twins.attention_maps import attention_of, check_reading, find_attention, run_random
from manticore.twins.configuration import LayerIndices, TwinConfig
from manticore.twins.modeling import TwinForCausalLM

_WINDOW = 256


def twin(
    parent: str | Path | PreTrainedModel,
    mixer: TwinMixers = "gated-delta-net",
    *,
    layers: LayerIndices | None = None,
    rotary: bool | None = None,
    window: Count | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> TwinForCausalLM:
    """A twin of a parent: its MLPs, norms, embeddings and head, and fresh token mixers in place of its attention.

    The mixers start from the parent's maps of queries, keys, values and outputs, and keep its groups of heads: one
    state for each head of keys and values. :func:`~manticore.twins.fit.fit_twin` then teaches them what attention did.

    Args:
        parent: folder, hub id or model in memory, which stays as it is.
        mixer: ``"gated-delta-net"``, ``"mamba-2"``, ``"linear-attention"`` (all with a state that does not grow) or
            ``"sliding-attention"`` (the parent's own attention in a window).
        layers: which of the parent's layers get it; None is all that have softmax attention. The others keep theirs.
        rotary: whether mixers rotate queries and keys by their positions. None: sliding attention does where the parent
            does, the others do not.
        window: tokens that sliding attention sees, the current one included; None is the parent's own window, or 256.
        dtype: precision of the weights; None keeps the parent's.
        seed: of what attention has no counterpart for.

    Returns:
        The twin in evaluation mode. It is a causal language model of transformers: saved, loaded by
        ``AutoModelForCausalLM``, generated with, and a component of :func:`manticore.combine`.

    Raises:
        ManticoreError: an unknown mixer, layers that there are not, a parent without softmax attention or with one that
            is more than queries, keys and values, rotations that it does not have, two windows.
    """
    asked = {"mixer": mixer, "layers": layers, "window": window, "rotary": rotary, "seed": seed}
    refuse_misfits("twin", twin, asked)
    model = load_component(parent, dtype=dtype)
    if isinstance(model, TwinForCausalLM):
        raise ManticoreError("twin: the parent is a twin itself. Fix: give the parent that it was made of")
    layers_of_parent = Runner(model).layers
    depth, family = len(layers_of_parent), f"family {model.config.model_type!r}"
    beyond = next((i for i in layers or () if i >= depth), None)
    if beyond is not None:
        raise ManticoreError(f"twin: layer {beyond}, but the parent has {depth}. Fix: layers below {depth}")
    attends = [i for i, layer in enumerate(layers_of_parent) if find_attention(layer) is not None]
    chosen = sorted(set(attends if layers is None else layers))
    none = next((i for i in chosen or [0] if i not in attends), None)
    if none is not None:
        raise ManticoreError(
            f"twin: layer {none} of {family} has no softmax attention that a mixer could stand for. "
            f"Fix: {'layers among ' + str(attends) if attends else 'a parent with attention'}"
        )
    sliding = mixer == "sliding-attention"
    if sliding and window is None:
        theirs = getattr(model.config, "sliding_window", None)
        window = theirs if isinstance(theirs, int) and theirs > 0 else _WINDOW
    config = TwinConfig(parent=model.config, mixer=mixer, layers=chosen, window=window)
    found = {}
    for i in chosen:
        owner, attribute, maps = attention_of(layers_of_parent[i], i, model.config)
        found[i] = getattr(owner, attribute), maps
    rotates = any(maps.rotate is not None for _, maps in found.values())
    if rotary and not rotates:
        raise ManticoreError(f"twin: rotary, but {family} rotates nothing in these layers. Fix: leave rotary out")
    if sliding and rotates and rotary is False:
        raise ManticoreError("twin: sliding attention keeps the parent's rotations. Fix: leave rotary out")
    config.rotary = rotates if sliding else bool(rotary)
    check_reading(model, found)
    name, generation = str(model.config.name_or_path), copy.deepcopy(getattr(model, "generation_config", None))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "twin"))
        made = TwinForCausalLM(config, model)
    made.config.dtype = model.dtype
    made.config.name_or_path = name
    if generation is not None:
        made.generation_config = generation
    made.tokenizer = load_tokenizer(parent)
    with refusing_crashes(made):
        run_random(made.eval(), 2)
    return made
