"""Models by folder or hub id, for the verbs and the stages: plain causal LMs and hybrids alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.loading import load_config, load_tokenizer
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.training.classifiers import load_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A model and its tokenizer, from a folder or hub id.

    Raises:
        ManticoreError: there is no such model, or it cannot be loaded safely.
    """
    if is_hybrid(source):
        hybrid = load_hybrid(source)
        return hybrid, hybrid.tokenizer
    return load_saved(source), load_tokenizer(str(source))


def load_hybrid(source: str | Path, *, supernet: bool = False) -> ManticorePreTrainedModel:
    """A hybrid from a folder or hub id.

    Args:
        source: where it is.
        supernet: refuse one that is discretized.

    Raises:
        ManticoreError: it is not a hybrid, none of the wanted kind, or its weights are not finite.
    """
    if not is_hybrid(source):
        raise ManticoreError(f"{source}: not a hybrid. Fix: make one with `manticore combine A B -o DIR`")
    hybrid: Any = load_saved(source)
    if supernet and hybrid.is_discretized:
        raise ManticoreError(f"{source}: discretized already. Fix: give the supernet it was made from")
    return hybrid


def is_hybrid(source: str | Path) -> bool:
    """Whether a folder or hub id holds a hybrid.

    Raises:
        ManticoreError: there is no such model.
    """
    return isinstance(load_config(str(source)), ManticoreConfig)
