"""Metrics that are gathered batch by batch without keeping any logits.

Both states give the same numbers whatever the evaluation batch size is.
Shapes: B batch, T tokens, V vocabulary. Targets are aligned with positions; ``IGNORE`` marks positions that
are not scored.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100

PUBLISHED_BATCH = 128
"""Sequences per batch of the published MAD accuracy."""


class MetricState(Protocol):
    """Gathers what one evaluation needs."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T]."""

    def compute(self) -> dict[str, float]:
        """Metric name → value over everything added so far."""


class TokenMetrics:
    """``loss`` (mean cross entropy in nats per scored token), ``accuracy`` of single tokens, ``perplexity``."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._correct = 0
        self._scored = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T]."""
        flat = logits.detach().flatten(0, 1).float()
        losses = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none")
        # Summed in float64, so that the order of batches and their size do not show.
        self._loss += losses.double().sum().item()
        scored = targets != IGNORE
        self._correct += int(((logits.argmax(-1) == targets) & scored).sum())
        self._scored += int(scored.sum())

    def compute(self) -> dict[str, float]:
        """``nan`` everywhere if nothing was scored."""
        if self._scored == 0:
            return {"loss": math.nan, "accuracy": math.nan, "perplexity": math.nan}
        loss = self._loss / self._scored
        # exp overflows above 709 nats
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {
            "loss": loss,
            "accuracy": self._correct / self._scored,
            "perplexity": math.nan if math.isnan(loss) else perplexity,
        }


class MadMetrics:
    """``loss``, ``accuracy`` and ``mad_macro``, the accuracy that the MAD benchmark publishes.

    ``mad_macro`` is the accuracy averaged over classes within each batch of 128 sequences, then averaged over
    batches with the number of sequences as weight. In a batch, classes that are neither target nor
    prediction are left out, and a class that is only predicted counts as 0. Predictions are kept until 128
    sequences are together, so the batch size of the evaluation has no influence.
    """

    def __init__(self) -> None:
        self._tokens = TokenMetrics()
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._waiting = 0
        self._weighted = 0.0
        self._sequences = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T]."""
        self._tokens.update(logits, targets)
        self._predictions.append(logits.detach().argmax(-1).cpu())
        self._targets.append(targets.detach().cpu())
        self._waiting += targets.shape[0]
        if self._waiting < PUBLISHED_BATCH:
            return
        predictions, gathered = torch.cat(self._predictions), torch.cat(self._targets)
        full = self._waiting - self._waiting % PUBLISHED_BATCH
        for start in range(0, full, PUBLISHED_BATCH):
            rows = slice(start, start + PUBLISHED_BATCH)
            self._weighted += PUBLISHED_BATCH * macro_accuracy(predictions[rows], gathered[rows])
        self._sequences += full
        self._waiting -= full
        self._predictions, self._targets = [predictions[full:]], [gathered[full:]]

    def compute(self) -> dict[str, float]:
        """The last batch may hold fewer than 128 sequences; nothing is consumed."""
        weighted, sequences = self._weighted, self._sequences + self._waiting
        if self._waiting:
            rest = macro_accuracy(torch.cat(self._predictions), torch.cat(self._targets))
            weighted += self._waiting * rest
        values = self._tokens.compute()
        return {
            "loss": values["loss"],
            "accuracy": values["accuracy"],
            "mad_macro": weighted / sequences if sequences else math.nan,
        }


def macro_accuracy(predictions: Tensor, targets: Tensor) -> float:
    """Mean over classes of (correct / occurrences) of one batch; 0.0 if nothing is scored.

    Args:
        predictions: [B, T], class indices.
        targets: [B, T], class indices or ``IGNORE``.
    """
    scored = targets != IGNORE
    predictions, targets = predictions[scored], targets[scored]
    if targets.numel() == 0:
        return 0.0
    classes = int(torch.maximum(predictions, targets).max()) + 1
    occurrences = torch.bincount(targets, minlength=classes)
    correct = torch.bincount(targets[predictions == targets], minlength=classes)
    present = (occurrences + torch.bincount(predictions, minlength=classes)) > 0
    return (correct[present].double() / occurrences[present].clamp(min=1)).mean().item()
