"""Keeps what was read from a checkpoint as it was read, and converts it as reading it in another precision would.

After loading, transformers runs every family's initialisers over the whole model, for the sake of weights that no file
held. Most of them leave loaded tensors alone; some do not (``rescale_prenorm_residual`` of Mamba and its kin divides a
loaded projection again at each load), and more may come.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manticore.components.quiet import quiet_loading
from manticore.errors import ManticoreError, NotFiniteError, in_brief

_INITIALISE = "_initialize_missing_keys"
"""The method with which transformers initialises what no file held, after all files are read."""

# transformers puts it on each tensor that it has loaded
_LOADED = "_is_hf_initialized"


@contextmanager
def keeping_loaded_weights() -> Iterator[None]:
    """Inside, ``from_pretrained`` initialises what is missing while all that was loaded is out of reach.

    Raises:
        ManticoreError: this version of transformers initialises in another way.
    """
    original = getattr(PreTrainedModel, _INITIALISE, None)
    if original is None:
        raise ManticoreError(
            "loading: this version of transformers initialises missing weights in an unknown way, which could change "
            "those of the checkpoint. Fix: install a version that manticore names in its requirements"
        )

    def guarded(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with _out_of_reach(self):
            return original(self, *args, **kwargs)

    setattr(PreTrainedModel, _INITIALISE, guarded)
    try:
        yield
    finally:
        setattr(PreTrainedModel, _INITIALISE, original)


@contextmanager
def _out_of_reach(model: nn.Module) -> Iterator[None]:
    """Tensors without data in the places of all that was loaded."""
    real: list[tuple[dict[str, Any], str, Tensor]] = []
    # a tied tensor has one stand-in, so that it stays tied for whoever asks
    stand_ins: dict[int, Tensor] = {}
    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None and getattr(tensor, _LOADED, False):
                    real.append((tensors, name, tensor))
                    tensors[name] = stand_ins.setdefault(id(tensor), _without_data(tensor))
    try:
        yield
    finally:
        for tensors, name, tensor in real:
            tensors[name] = tensor


def _without_data(tensor: Tensor) -> Tensor:
    empty: Tensor = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    setattr(empty, _LOADED, True)
    return empty


def in_precision(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` as it would come out of its own folder if that were loaded in ``dtype``: the same to the bit.

    Families keep some weights in float32 and fill tables (rotary frequencies, scales) in the precision that they are
    built in, so a cast of all parameters makes another model.

    Args:
        model: not changed, and no tensor of it is shared.
        dtype: of the weights.

    Raises:
        ManticoreError: the family's class cannot be loaded from its own tensors.
    """
    name = model.config.name_or_path or type(model).__name__
    tensors = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    try:
        with quiet_loading(), keeping_loaded_weights():
            kind: Any = type(model)
            loaded, info = kind.from_pretrained(
                None, config=copy.deepcopy(model.config), state_dict=tensors, dtype=dtype, output_loading_info=True
            )
    except ManticoreError:
        raise
    except Exception as error:
        # families raise many classes
        why = in_brief(error)
        raise ManticoreError(
            f"component {name}: it cannot be taken in {dtype}: {why}. Fix: save it, and load the folder in that dtype"
        ) from error
    lost = sorted(info["missing_keys"] or info["unexpected_keys"])
    if lost:
        raise ManticoreError(
            f"component {name}: it cannot be taken in {dtype}: {lost[0]} finds no place. "
            "Fix: save it, and load the folder in that dtype"
        )
    loaded.config.name_or_path = model.config.name_or_path
    if model.can_generate():
        loaded.generation_config = copy.deepcopy(model.generation_config)
    return loaded.train(model.training)


def refuse_not_finite(model: nn.Module, where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        NotFiniteError: some are; it names the first tensor that has any.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NotFiniteError(
                f"{where}: {name} holds NaN or infinity. "
                "Fix: give an intact checkpoint; where a training left it so, train again with a lower lr"
            )


def note_separate_head(model: PreTrainedModel) -> None:
    """Let the configuration say so where embeddings and head are apart although it calls them one.

    A file that holds both, with different values, is loaded so; whoever builds the model anew from its configuration
    would put the embeddings in the head's place.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or head.weight is embeddings.weight:
        return
    if head.weight.shape == embeddings.weight.shape and torch.equal(head.weight, embeddings.weight):
        return
    model.config.tie_word_embeddings = False
    pair = {name for name, tensor in model.named_parameters() if tensor is head.weight or tensor is embeddings.weight}
    # what transformers ties again whenever it is asked to
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if not {target, source} <= pair
    }
