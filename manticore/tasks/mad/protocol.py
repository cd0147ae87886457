"""How models are trained on MAD: the published protocol, what the released code does, and the tiers.

Source: Poli et al. 2024, arXiv 2403.17844, and its public code. Both train with AdamW for 200 epochs of batches of 128
for each of three learning rates and two weight decays, without warm-up, clipping or dropout. They differ in the
schedule: the paper has a cosine to 1e-6, stepped once per epoch; the code never applies it, so its rate is constant.
Until December 2024 the code started every linear map of its language models from N(0, 0.02) with biases 0, Mamba's time
steps included; the paper's runs may have started so (``linear_init="normal"``). Its auto-encoders always do.

Both stop when the test accuracy reaches 0.999, report the epoch with the lowest test perplexity, and take the best of
the six runs by test accuracy: the test set chooses three times. ``selection="validation"`` makes all three choices on
a validation set of its own and reads the test set only to report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.tasks.mad.grid import Setting, settings

Selection = Literal["test", "validation"]
LinearInit = Literal["uniform", "normal"]


@dataclass(frozen=True)
class Hyper:
    """One point of the grid of every setting."""

    lr: float
    weight_decay: float

    @property
    def name(self) -> str:
        """For instance ``"lr=0.0005,wd=0.1"``."""
        return f"lr={self.lr:g},wd={self.weight_decay:g}"


@dataclass(frozen=True)
class Protocol:
    """Everything about training but the model and the data."""

    name: str
    schedule: Literal["cosine", "constant"]
    betas: tuple[float, float]
    lrs: tuple[float, ...] = (1e-4, 5e-4, 1e-3)
    weight_decays: tuple[float, ...] = (0.0, 0.1)
    epochs: int = 200
    batch_size: int = 128
    final_lr: float = 1e-6
    """Where a cosine ends."""
    stop_at: float = 0.999
    """A run ends early when its ``mad_macro`` on the selection split reaches this."""
    linear_init: LinearInit = "uniform"
    """How the linear maps of language models that are stacks start: as torch and their layers start them, or all from
    N(0, 0.02) with biases 0."""
    selection: Selection = "test"
    """The split that ends runs early, chooses their epoch and the best of them."""

    @property
    def grid(self) -> list[Hyper]:
        """Learning rates times weight decays."""
        return [Hyper(lr, decay) for lr, decay in product(self.lrs, self.weight_decays)]

    def lr_factor(self, epoch: int, peak: float) -> float:
        """Learning rate of an epoch (counted from 0) over the peak rate."""
        if self.schedule == "constant":
            return 1.0
        final = self.final_lr / peak
        return final + (1 - final) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    @property
    def note(self) -> str:
        """What was chosen on the split that scores are reported on."""
        if self.selection == "test":
            return (
                "Selected on the test split, as the benchmark does: when a run stops, its epoch (lowest perplexity), "
                "and the best learning rate and weight decay. Scores are optimistic."
            )
        return (
            "Selected on a validation split of its own: when a run stops, its epoch (lowest perplexity), and the best "
            "learning rate and weight decay. The test split is only scored."
        )


PROTOCOLS = {
    "published": Protocol("published", "cosine", (0.9, 0.98)),
    "released": Protocol("released", "constant", (0.9, 0.999)),
}

TIERS = ("smoke", "baseline", "full")

_SMOKE: dict[str, tuple[tuple[str, int | float], ...]] = {
    "in-context-recall": (("seq_len", 32), ("num_train_examples", 1280)),
    "noisy-in-context-recall": (("seq_len", 32), ("num_train_examples", 1280)),
    "fuzzy-in-context-recall": (("seq_len", 32), ("num_train_examples", 1280)),
    "selective-copying": (("seq_len", 48), ("num_tokens_to_copy", 8), ("num_train_examples", 1280)),
    "compression": (("seq_len", 16), ("num_train_examples", 1280)),
    "memorization": (("vocab_size", 128), ("seq_len", 32)),
}
"""Shorter sequences and fewer examples than any published setting."""


def choose_protocol(
    name: str, *, tier: str, selection: Selection = "test", linear_init: LinearInit = "uniform"
) -> Protocol:
    """A protocol by name; the tier ``smoke`` shortens it to five epochs of small batches and one point of the grid.

    Raises:
        ManticoreError: no such protocol, tier, split or start, or the older start with the code that no longer has it.
    """
    _expect("protocol", name, list(PROTOCOLS))
    _expect("tier", tier, list(TIERS))
    _expect("select", selection, list(get_args(Selection)))
    _expect("linear-init", linear_init, list(get_args(LinearInit)))
    if linear_init == "normal" and name != "published":
        raise ManticoreError(
            f"mad: the protocol {name} starts language models as torch does. "
            "Fix: --protocol published with --linear-init normal"
        )
    protocol = replace(PROTOCOLS[name], selection=selection, linear_init=linear_init)
    if tier == "smoke":
        return replace(protocol, lrs=(1e-3,), weight_decays=(0.0,), epochs=5, batch_size=32)
    return protocol


def tier_settings(tier: str, tasks: list[str] | None = None) -> list[Setting]:
    """The settings of a tier: ``full`` has all 66, ``baseline`` six, ``smoke`` six that are small and not MAD's.

    Raises:
        ManticoreError: no such tier or task.
    """
    _expect("tier", tier, list(TIERS))
    chosen = settings(tasks, baseline_only=tier != "full")
    return [Setting(setting.task, _SMOKE[setting.task]) for setting in chosen] if tier == "smoke" else chosen


def _expect(what: str, name: str, choices: list[str]) -> None:
    if name not in choices:
        raise ManticoreError(f"mad: unknown {what} {name!r}{did_you_mean(name, choices)}")
