"""A discretized hybrid as a checkpoint of its components' family, for programs that have never heard of manticore.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from manticore.components.generation_settings import SPECIAL
from manticore.components.loaded_weights import refuse_not_finite
from manticore.components.loading import align_memory
from manticore.components.quiet import quiet_loading
from manticore.errors import ManticoreError, require_hybrid, told
from manticore.hybrid.classification import ManticoreForSequenceClassification, ManticoreForTokenClassification
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.hybrid.one_family import OneFamily
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.modes import kept_modes
from manticore.paths import expanded
from manticore.seeding import derive_seed
from manticore.writing import new_folder, refuse_existing

_KINDS: dict[type, Any] = {
    ManticoreForCausalLM: AutoModelForCausalLM,
    ManticoreForSequenceClassification: AutoModelForSequenceClassification,
    ManticoreForTokenClassification: AutoModelForTokenClassification,
}
_ROWS, _TOKENS = 2, 64
"""What is compared: [B, T] random tokens, fewer where there are fewer positions."""

_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5}
_COARSE = 1e-2
"""Largest difference of logits, as a share of the largest logit; the same kernels on the same numbers have none."""


@dataclass(frozen=True)
class Exported:
    """A checkpoint that was written."""

    folder: Path
    model_type: str
    """The family."""
    architecture: str
    """The class that loads it."""
    num_layers: int
    difference: float
    """Largest difference of its logits from the hybrid's, on random tokens."""
    tokenizer: bool
    """Whether the hybrid's tokenizer lies beside it."""


def export(hybrid: ManticorePreTrainedModel, out: str | Path) -> Exported:
    """Write a discretized hybrid as a plain checkpoint of its components' family.

    For paths through one component, or through components of one family between which nothing translates: those of one
    feature space, and those whose projectors are the identity. The folder holds that family's configuration, weights,
    generation settings and the hybrid's tokenizer with its chat template; ``AutoModelForCausalLM`` loads it without
    manticore. It is loaded back in the family's class before it is put in its place, and its logits compared.

    Args:
        hybrid: for text or for classes of sequences or tokens; what ``peft`` made of one is merged in a copy. It is
            left as it is.
        out: the folder, which must not exist yet.

    Returns:
        What was written, and how far its logits are from the hybrid's: 0.0 on a CPU in float32.

    Raises:
        ManticoreError: a supernet, several families or widths, other settings, a projector that is not the identity, a
            mixer of manticore's own, classes that the family has no class for, logits that differ, ``out`` exists.
    """
    if hasattr(hybrid, "merge_and_unload"):
        hybrid = copy.deepcopy(hybrid).merge_and_unload()  # type: ignore[operator]
    require_hybrid(hybrid, "export")
    _refuse(hybrid)
    refuse_existing(out)
    kind = _KINDS[type(hybrid)]
    one = OneFamily(hybrid, kind)
    model = _filled(one)
    with new_folder(out) as folder:
        with quiet_loading(), told("export", "it cannot be saved", "make room, or save the hybrid itself"):
            model.save_pretrained(folder)
            if hybrid.tokenizer is not None:
                hybrid.tokenizer.save_pretrained(folder)
        difference = _difference(hybrid, one, kind, folder)
    return Exported(
        folder=expanded(out),
        model_type=str(one.config.model_type),
        architecture=type(model).__name__,
        num_layers=len(one.order),
        difference=difference,
        tokenizer=hybrid.tokenizer is not None,
    )


def _refuse(hybrid: ManticorePreTrainedModel) -> None:
    """Refuse hybrids that no family's class computes, whatever their components."""
    wrong = None
    if getattr(hybrid, "peft_config", None):
        wrong = "its adapters are not part of its weights", "peft_model.merge_and_unload() first"
    elif not hybrid.is_discretized:
        several = f" and output {hybrid.config.output!r}" if hybrid.config.output != "logits" else ""
        wrong = (
            f"the hybrid is a supernet of {hybrid.config.num_components} components{several}, which is no model of one "
            "family",
            "discretize it first, to a path through one family",
        )
    elif hybrid.config.released:
        wrong = "the released gated function has norms inside its branches, which no family has", "the hybrid itself"
    elif type(hybrid) not in _KINDS:
        wrong = f"no family has a class for what a {type(hybrid).__name__} answers", "the hybrid itself"
    elif type(hybrid) is not ManticoreForCausalLM:
        config = hybrid.component(hybrid.config.path[-1]).config
        if type(config) not in _KINDS[type(hybrid)]._model_mapping:
            wrong = f"{config.model_type} has no class of transformers for such classes", "the hybrid itself"
    if wrong is not None:
        raise ManticoreError(f"export: {wrong[0]}. Fix: {wrong[1]}")


def _filled(one: OneFamily) -> PreTrainedModel:
    """The family's model with the hybrid's tensors, which are not copied."""
    hybrid, model = one.hybrid, one.model
    with told("export", "the path's weights make no model of the family", "serve the hybrid through transformers"):
        model.load_state_dict(one.tensors(), assign=True, strict=True)
    model.tie_weights()
    refuse_not_finite(model, "export")
    if isinstance(hybrid, ManticoreForCausalLM):
        settings = hybrid.generation_in_use()
        model.generation_config = settings if settings is not None else GenerationConfig()
        for name in SPECIAL:
            if (value := getattr(settings, name, None)) is not None:
                setattr(model.config, name, value)
    elif hybrid.config.pad_token_id is not None:
        # tells its class where a text ends
        model.config.pad_token_id = hybrid.config.pad_token_id
    return model


@torch.no_grad()
def _difference(hybrid: ManticorePreTrainedModel, one: OneFamily, kind: Any, folder: Path) -> float:
    """The largest difference of logits between the hybrid and what its folder holds.

    Raises:
        ManticoreError: it is too large, or the folder cannot be loaded as others load it.
    """
    attention = one.parents[one.first].model.config._attn_implementation
    with told("export", "what was written cannot be loaded", "serve the hybrid through transformers"), quiet_loading():
        # as anyone loads it: without what this package keeps transformers from doing to weights
        loaded, info = kind.from_pretrained(
            folder, dtype="auto", attn_implementation=attention, use_safetensors=True, output_loading_info=True
        )
        if hybrid.tokenizer is not None:
            AutoTokenizer.from_pretrained(folder)
    lost = sorted(info["missing_keys"] or info["unexpected_keys"])
    if lost:
        raise ManticoreError(f"export: {lost[0]} finds no place in the family's class. Fix: serve the hybrid itself")
    align_memory(loaded)
    loaded.to(hybrid.device).eval()
    ids = _random_ids(hybrid).to(hybrid.device)
    # a classifier of sequences reads the last token: told where it is, it looks for no padding
    mask = {"attention_mask": torch.ones_like(ids)} if not hybrid.keeps_lm_heads else {}
    with kept_modes(hybrid):
        hybrid.eval()
        expected = hybrid(ids, use_cache=False, **mask).logits
    logits = loaded(input_ids=ids, use_cache=False, **mask).logits[..., : expected.shape[-1]]
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    if not difference <= _TOLERANCES.get(hybrid.dtype, _COARSE) * largest:
        raise ManticoreError(
            f"export: loaded as a {type(loaded).__name__} its logits differ from the hybrid's by {difference:.2g} (the "
            f"largest is {largest:.2g}), nothing was kept. Fix: serve the hybrid through transformers"
        )
    return difference


def _random_ids(hybrid: ManticorePreTrainedModel) -> Tensor:
    """``[B, T]``."""
    generator = torch.Generator().manual_seed(derive_seed(0, "export"))
    limits = [runner.positions for runner in hybrid.runners if runner is not None]
    tokens = min([_TOKENS, *(limit for limit in limits if limit is not None)])
    return torch.randint(0, hybrid.config.vocab_size, (_ROWS, tokens), generator=generator)
