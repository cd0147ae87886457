"""What trains: everything, only what joins the components, or low-rank updates of the components' layers.

LoRA goes on the linear maps inside decoder layers, found by module type: attention, MLP, and of a state-space mixer
only the input projection. A mixer's other maps are read as raw tensors by its scan or its fused kernels, which
would pass the update by in training and still merge it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manticore.components.runner import Runner
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.registry import did_you_mean
from manticore.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINABLE = ("all", "frozen", "projectors", "lora")

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
            ``"lora"``: projectors and low-rank updates inside the decoder layers (see :func:`merge_lora`).
        fresh_vocabulary: embeddings and heads were made for the task, so they train in any case.
        lora_rank: rank of the updates.
        seed: of the updates' initialisation.

    Raises:
        ManticoreError: unknown choice, or a model in which nothing can train that way.
    """
    if trainable not in TRAINABLE:
        raise ManticoreError(f"trainable: unknown choice {trainable!r}{did_you_mean(trainable, list(TRAINABLE))}")
    mixing = getattr(model, "mixing", None)
    mixture = set() if mixing is None else {id(p) for p in mixing.mixture_parameters()}
    for parameter in model.parameters():
        if id(parameter) not in mixture:
            parameter.requires_grad_(trainable == "all")
    if trainable == "all":
        return
    if mixing is not None:
        mixing.projectors.requires_grad_(True)
    for runner in _runners(model):
        if fresh_vocabulary:
            _unfreeze(runner.model.get_input_embeddings())
        if fresh_vocabulary or trainable == "frozen":
            _unfreeze(runner.model.get_output_embeddings())
    if trainable == "lora":
        add_lora(model, rank=lora_rank, seed=seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ManticoreError(
            f"trainable: {trainable!r} leaves nothing to train in this {type(model).__name__} "
            "(it has no projectors and keeps its vocabulary). Fix: trainable='all', 'frozen' or 'lora'"
        )


def _unfreeze(module: nn.Module | None) -> None:
    if module is not None:
        module.requires_grad_(True)


def _runners(model: PreTrainedModel) -> list[Runner]:
    """The components that a hybrid has kept; of another model, the model itself."""
    if isinstance(model, ManticoreForCausalLM):
        return [runner for runner in model.runners if runner is not None]
    return [Runner(model)]


def add_lora(model: PreTrainedModel, *, rank: int, seed: int) -> list[str]:
    """Put trainable low-rank updates, zero at first, beside the safe linear maps; returns the maps' names."""
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ManticoreError(f"lora_rank: got {rank} (expected 1 or more). Fix: lora_rank=8")
    targets = lora_targets(model)
    if not targets:
        raise ManticoreError(
            f"trainable: 'lora' finds no linear map inside the decoder layers of {type(model).__name__}. "
            "Fix: trainable='all' or 'frozen'"
        )
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
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    vars(model).pop("peft_config", None)


def lora_targets(model: PreTrainedModel) -> list[str]:
    """Full names of the linear maps that may carry a low-rank update."""
    chosen = {id(linear) for runner in _runners(model) for linear in _safe_linears(runner)}
    return [name for name, module in model.named_modules() if id(module) in chosen]


def _safe_linears(runner: Runner) -> Iterator[nn.Module]:
    for layer in runner.layers:
        unsafe: set[int] = set()
        for module in layer.modules():
            if _is_state_space(module):
                unsafe |= {id(m) for name, m in module.named_modules() if name != "in_proj"}
        for module in layer.modules():
            if isinstance(module, nn.Linear | Conv1D) and id(module) not in unsafe:
                yield module


def _is_state_space(module: nn.Module) -> bool:
    return "A_log" in module._parameters or "conv1d" in module._modules
