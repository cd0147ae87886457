"""Makes a twin of a parent: the same model, with other token mixers in some of its layers.

Shapes: D width.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manticore.components.loading import load_component, load_tokenizer
from manticore.components.runner import Runner
from manticore.components.selfcheck import refusing_crashes
from manticore.errors import ManticoreError
from manticore.keywords import takes
from manticore.seeding import derive_seed
from manticore.training.descent import Progress
from manticore.twin_settings import Twin
from manticore.twins.attention_maps import attention_of, check_reading, find_attention, run_random
from manticore.twins.configuration import TwinConfig
from manticore.twins.fit import fit_twin
from manticore.twins.modeling import TwinForCausalLM

_WINDOW = 256


@takes(Twin, by_position=("mixer",))
def twin(
    parent: str | Path | PreTrainedModel,
    settings: Twin,
    *,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> TwinForCausalLM:
    """A twin of a parent: its MLPs, norms, embeddings and head, and fresh token mixers in place of its attention.

    The mixers start from the parent's maps of queries, keys, values and outputs, and keep its groups of heads: one
    state for each head of keys and values. With ``text`` they learn, layer by layer, to give what the attention gives
    that they stand for.

    Args:
        parent: folder, hub id or model in memory, which stays as it is.
        settings: the options below in one object, which single ones change.
        dtype: precision of the weights; None keeps the parent's.
        seed: of what attention has no counterpart for, and of the text.
        tokenizer: of the text; by default the parent's.
        checkpoint: a file for what a stopped fit goes on from, to the same numbers; None keeps none. It is removed in
            the end.
        progress: called after each batch.

    Returns:
        The twin in evaluation mode; ``twin.fitted`` says how far its mixers are from the parent's attention. It is a
        causal language model of transformers: saved, loaded by ``AutoModelForCausalLM``, generated with, and a
        component of :func:`manticore.combine`.

    Raises:
        ManticoreError: an unknown mixer, layers that there are not, a parent without softmax attention or with one that
            is more than queries, keys and values, rotations that it does not have, two windows, unusable text.
    """
    mixer, layers, rotary, window = settings.mixer, settings.layers, settings.rotary, settings.window
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
    made.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(parent)
    with refusing_crashes(made):
        run_random(made.eval(), 2)
    if settings.text is not None:
        given = load_component(parent, dtype=dtype)
        made.fitted = fit_twin(made, given, settings, seed=seed, checkpoint=checkpoint, progress=progress)
    return made
