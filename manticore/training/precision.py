"""The precision of weights while they train, and the one they are saved in.

bfloat16 has 8 bits: a weight w cannot move by less than |w| / 512, and a step of AdamW moves it by about the learning
rate, so most steps on bfloat16 weights are lost. Weights that train are therefore held in float32 (masters), whatever
type they came in, and are rounded to that type once, at the end.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_torch_bf16_gpu_available

from manticore.components.masters import convert, floating, is_half
from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.training.sharding import asked_to_shard, is_sharded

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16")

WORTH_SAYING = 1e-3
"""By how much a score of float32 weights may differ from that of the saved ones without being shown beside it."""


class Precision:
    """What the tensors of one model are in during training, and afterwards.

    Args:
        model: before anything of it was converted.
        dtype: ``"auto"``: float32 while weights train, on an accelerator with bfloat16 as autocast where weights came
            in half precision, and afterwards the type they came in; ``"float32"`` or ``"bfloat16"``: that one, during
            training and afterwards.
        bf16: autocast in any case.
        cpu: the training stays on the CPU.
        stage: what messages begin with.

    Raises:
        ManticoreError: no such type, or ``bf16`` beside ``"bfloat16"``.
    """

    def __init__(self, model: nn.Module, dtype: str = "auto", *, bf16: bool, cpu: bool, stage: str) -> None:
        if dtype not in DTYPES:
            raise ManticoreError(f"{stage}: dtype is unknown: {dtype!r}{did_you_mean(str(dtype), list(DTYPES))}")
        if bf16 and dtype == "bfloat16":
            raise ManticoreError(
                f"{stage}: bf16 computes in bfloat16 beside float32 weights, dtype=bfloat16 has none. "
                "Fix: give one of them"
            )
        self.model, self.dtype, self.stage = model, dtype, stage
        self.arrived = {name: tensor.dtype for name, tensor in floating(model)}
        half = any(is_half(kind) for kind in self.arrived.values())
        on_accelerator = torch.accelerator.is_available() and not cpu and is_torch_bf16_gpu_available()
        self.autocast = computes_in_bfloat16(dtype, bf16=bf16, half=half, accelerator=on_accelerator)
        self.saved: Mapping[str, torch.dtype] = self._saved()
        """Name of a parameter or buffer → its type afterwards; adapters are not among them."""
        self._tensors = [(tensor, self.saved[name]) for name, tensor in floating(model)]
        self._held = False

    def _saved(self) -> dict[str, torch.dtype]:
        if self.dtype == "auto":
            return dict(self.arrived)
        wanted = getattr(torch, self.dtype)
        strict = set(_strictly_float32(self.model))
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {
            name: wanted
            if name not in strict and (name in parameters or (is_half(kind) and wanted == torch.float32))
            else kind
            for name, kind in self.arrived.items()
        }

    @property
    def rounds(self) -> bool:
        """Whether weights lose bits when the training is over."""
        return self._held and self.dtype == "auto"

    def warn(self) -> None:
        """Say what training in bfloat16 alone loses."""
        if self.dtype == "bfloat16":
            logger.warning(
                "%s: dtype=bfloat16 trains without float32 weights: changes below 1/512 of a weight are lost. "
                "Fix, if that is not meant: dtype=auto",
                self.stage,
            )

    def hold(self) -> None:
        """Convert the model for training, after it is settled what ``requires_grad``.

        Maps and tables that do not train keep their type where autocast brings types together; without, everything is
        computed in float32. Sharded, a unit's parameters have to be of one type.
        """
        if self.dtype == "auto":
            everything = not self.autocast or asked_to_shard() is not None
            for _, tensor in floating(self.model):
                # norms want weights in the type of their float32 inputs
                if is_half(tensor.dtype) and (everything or tensor.requires_grad or tensor.dim() < 2):
                    self._held = True
                    convert(tensor, torch.float32)
        else:
            self._convert_all()
            known = {id(tensor) for tensor, _ in self._tensors}
            for parameter in self.model.parameters():
                # adapters came later
                if id(parameter) not in known:
                    convert(parameter, getattr(torch, self.dtype))

    def computing(self) -> AbstractContextManager[Any]:
        """What a forward pass is computed in while the model is held."""
        if not self.autocast:
            return nullcontext()
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def settle(self) -> None:
        """Give the model the types that it is saved in; a sharded one the values that these can hold.

        Raises:
            ManticoreError: float16 cannot hold a weight.
        """
        with torch.no_grad():
            if is_sharded(self.model):
                for name, tensor in self.model.named_parameters():
                    kind = self.saved.get(name.replace("_checkpoint_wrapped_module.", ""), tensor.dtype)
                    if kind != tensor.dtype:
                        tensor.copy_(tensor.to(kind))
                return
            self._refuse_overflow()
            self._convert_all()

    def _convert_all(self) -> None:
        for tensor, kind in self._tensors:
            if tensor.dtype != kind:
                convert(tensor, kind)
        if self.dtype != "auto":
            for module in self.model.modules():
                # saved, it says what the weights are loaded in
                if isinstance(module, PreTrainedModel) and next(module.parameters(), None) is not None:
                    module.config.dtype = module.dtype

    def _refuse_overflow(self) -> None:
        most = torch.finfo(torch.float16).max
        for tensor, kind in self._tensors:
            if (
                kind == torch.float16
                and tensor.dtype != kind
                and bool((tensor.isfinite() & (tensor.abs() > most)).any())
            ):
                raise ManticoreError(
                    f"{self.stage}: a weight has grown to {float(tensor.abs().max()):.3g}, which float16 cannot hold. "
                    "Fix: a lower lr, or dtype=float32 or bfloat16 from the start"
                )


def computes_in_bfloat16(dtype: str, *, bf16: bool, half: bool, accelerator: bool) -> bool:
    """Whether a training runs under autocast.

    Args:
        dtype: what the weights train in, by the name that users give.
        bf16: asked for in any case.
        half: some weights came in half precision.
        accelerator: it runs on one that computes in bfloat16.
    """
    return bf16 or (dtype == "auto" and half and accelerator)


def differing(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float] | None:
    """The scores ``before`` rounding, where one of them differs from ``after`` by more than 1e-3."""
    worth = any(abs(before[name] - after[name]) > WORTH_SAYING for name in after)
    return dict(before) if worth else None


def _strictly_float32(model: nn.Module) -> Iterator[str]:
    """Parameters that a family never holds in half precision, by its own word; mixture weights among them."""
    for prefix, module in model.named_modules():
        names = getattr(module, "_keep_in_fp32_modules_strict", None) if isinstance(module, PreTrainedModel) else None
        if names:
            pattern = re.compile("|".join(rf"(^|\.){re.escape(name)}($|\.)" for name in names))
            for name, _ in module.named_parameters():
                if pattern.search(name):
                    yield f"{prefix}.{name}" if prefix else name
