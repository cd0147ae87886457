"""What a stopped fit of a twin goes on from: weights and moments of the mixers, and how far it had come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.errors import ManticoreError
from manticore.writing import write_bytes

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class StoppedFit:
    """One file, written every so many steps.

    Args:
        path: the file.
        key: what the fit depends on, beside tensors.
        tensors: its text, and what tells its parent from others.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.path, self.key = path, digest.hexdigest()

    def keep(self, step: int, before: Mapping[int, float], mixers: nn.Module, optimizer: Optimizer) -> None:
        """Write what there is after so many steps, over what was written before.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {}
        for name, parameter in mixers.named_parameters():
            tensors[name] = parameter.detach()
            for moment in _MOMENTS:
                tensors[f"{name}/{moment}"] = optimizer.state[parameter][moment]
        note = json.dumps({"key": self.key, "step": step, "before": {str(i): error for i, error in before.items()}})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, save({name: each.contiguous() for name, each in tensors.items()}, {"fit": note}))

    def load(self, mixers: nn.Module, optimizer: Optimizer) -> tuple[int, dict[int, float]] | None:
        """Go on where the file was written: the steps done and the errors before them; None where there is none.

        Raises:
            ManticoreError: it is damaged, or of another fit.
        """
        if not self.path.exists():
            return None
        again = f"Fix: remove {self.path}, and the fit begins anew"
        try:
            with safe_open(self.path, framework="pt") as file:
                note = json.loads(file.metadata()["fit"])
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            if note["key"] != self.key:
                raise ManticoreError(f"twin: {self.path} is of a fit with other settings, model or text. {again}")
            for name, parameter in mixers.named_parameters():
                parameter.data.copy_(tensors[name])
                optimizer.state[parameter] = {
                    moment: tensors[f"{name}/{moment}"].to("cpu" if moment == "step" else parameter.device)
                    for moment in _MOMENTS
                }
            return int(note["step"]), {int(i): float(error) for i, error in note["before"].items()}
        except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ManticoreError(f"twin: {self.path} is damaged. {again}") from error

    def remove(self) -> None:
        """Remove the file: the fit is finished."""
        self.path.unlink(missing_ok=True)
