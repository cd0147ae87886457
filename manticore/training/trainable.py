"""What trains: everything, only what joins the components, or low-rank updates of their layers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from manticore.components.adapters import remove_adapters
from manticore.errors import ManticoreError
from manticore.hybrid.lora import kept_runners, lora_targets
from manticore.option_types import Trainable, literals
from manticore.registry import did_you_mean
from manticore.seeding import derive_seed
from manticore.twins.mixers import TwinMixer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "finetune"


def set_trainable(
    model: PreTrainedModel,
    trainable: str,
    *,
    fresh_vocabulary: bool = False,
    lora_rank: int = 8,
    seed: int = 0,
) -> None:
    """Set ``requires_grad`` of every parameter except the mixture weights, which belong to the search.

    Args:
        model: a hybrid, or any causal LM of transformers.
        trainable: ``"all"``; ``"projectors"``: the projectors; ``"frozen"``: projectors and heads;
            ``"mixers"``: projectors and the token mixers that twins have in place of attention;
            ``"lora"``: projectors and low-rank updates inside the decoder layers (see :func:`merge_lora`).
        fresh_vocabulary: embeddings and heads were made for the task, so they train in any case.
        lora_rank: rank of the updates.
        seed: of the updates' initialisation.

    Raises:
        ManticoreError: unknown choice, or a model in which nothing can train that way.
    """
    known = literals(Trainable)
    if trainable not in known:
        raise ManticoreError(f"trainable: unknown choice {trainable!r}{did_you_mean(trainable, known)}")
    if getattr(model, "peft_config", None):
        raise ManticoreError(
            f"trainable: this {type(model).__name__} has adapters, which {trainable!r} would thaw or freeze too. "
            "Fix: peft_model.merge_and_unload(), or transformers' Trainer on the peft model"
        )
    mixing = getattr(model, "mixing", None)
    mixture = set() if mixing is None else {id(p) for p in mixing.mixture_parameters()}
    for parameter in model.parameters():
        if id(parameter) not in mixture:
            parameter.requires_grad_(trainable == "all")
    if trainable == "all":
        return
    if mixing is not None:
        mixing.projectors.requires_grad_(True)
        # a gate is what the hybrid adds, like them
        model.output.requires_grad_(True)
    # a head for classes is made for the task
    _unfreeze(getattr(model, "score", None))
    # the released gated function has fresh tables from the start
    fresh_vocabulary = fresh_vocabulary or getattr(model.config, "released", False)
    for runner in kept_runners(model):
        if fresh_vocabulary:
            _unfreeze(runner.model.get_input_embeddings())
        if fresh_vocabulary or trainable == "frozen":
            _unfreeze(runner.model.get_output_embeddings())
    if trainable == "mixers":
        for module in model.modules():
            if isinstance(module, TwinMixer):
                module.requires_grad_(True)
    if trainable == "lora":
        add_lora(model, rank=lora_rank, seed=seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        nor = ", no mixers of a twin" if trainable == "mixers" else ""
        raise ManticoreError(
            f"trainable: {trainable!r} leaves nothing to train in this {type(model).__name__} "
            f"(it has no projectors{nor} and keeps its vocabulary). "
            "Fix: trainable='all', 'frozen' or 'lora'"
        )


def _unfreeze(module: nn.Module | None) -> None:
    if module is not None:
        module.requires_grad_(True)


def add_lora(model: PreTrainedModel, *, rank: int, seed: int) -> list[str]:
    """Put trainable low-rank updates, zero at first, beside the safe linear maps; returns the maps' names."""
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ManticoreError(f"lora_rank: got {rank} (expected 1 or more). Fix: lora_rank=8")
    targets = lora_targets(model)
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2 keeps its maps transposed: peft finds that out by itself and says so once per map
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for parameter in before:
        # peft freezes all but its own
        parameter.requires_grad_(True)
    return targets


def merge_lora(model: PreTrainedModel) -> None:
    """Add the low-rank updates to the maps they stand beside and remove them; the model is an ordinary one again."""
    remove_adapters(model, merge=True)
