"""Metrics that are gathered batch by batch without keeping any logits.

All states give the same numbers whatever the evaluation batch size is.
Shapes: B batch, T tokens, V vocabulary. Targets are aligned with positions; ``IGNORE`` marks positions that
are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
SOURCES = "sources"
"""The column that says which of a task's sources each target is from, as an index."""

OF_SOURCES = ("loss", "bits_per_byte")
"""Metrics that each source of a mixture has of its own, as ``loss:NAME``."""

PUBLISHED_BATCH = 128
"""Sequences per batch of the published MAD accuracy."""


class MetricState(Protocol):
    """Gathers what one evaluation needs."""

    @property
    def update(self) -> Callable[..., None]:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T]; for a task of several sources also those [B, T]."""

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
        self.add(token_losses(logits, targets), logits.argmax(-1), targets)

    def add(self, losses: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of which losses in nats and predicted classes are known already: each [B, T]."""
        self._loss += losses.sum().item()
        self._correct += int(((predictions == targets) & (targets != IGNORE)).sum())
        self._scored += int((targets != IGNORE).sum())

    @property
    def scored(self) -> int:
        """Tokens that were scored so far."""
        return self._scored

    def compute(self) -> dict[str, float]:
        """``nan`` everywhere if nothing was scored."""
        if self._scored == 0:
            return {"loss": math.nan, "accuracy": math.nan, "perplexity": math.nan}
        loss = self._loss / self._scored
        return {"loss": loss, "accuracy": self._correct / self._scored, "perplexity": _perplexity(loss)}


class TextMetrics(TokenMetrics):
    """:class:`TokenMetrics` and ``bits_per_byte``, which compares models whatever their tokenizers are.

    The loss in bits of all scored tokens, over the bytes of text that these stand for. What a special token costs
    counts, but it stands for no text.

    Args:
        sizes: bytes of text per token id, int64 [V], 0 for special tokens.
    """

    def __init__(self, sizes: Tensor) -> None:
        super().__init__()
        self._sizes = sizes
        self._bytes = 0

    def add(self, losses: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """As :meth:`TokenMetrics.add`."""
        super().add(losses, predictions, targets)
        self._bytes += int(self._sizes[targets[targets != IGNORE].cpu()].sum())

    def compute(self) -> dict[str, float]:
        """``nan`` everywhere if nothing was scored, infinite bits per byte if only special tokens were."""
        values = super().compute()
        bits = self._loss / math.log(2)
        per_byte = bits / self._bytes if self._bytes else math.inf if self._scored else math.nan
        return {**values, "bits_per_byte": per_byte}


class SourceMetrics:
    """The metrics of all tokens, and ``loss:NAME`` and ``bits_per_byte:NAME`` of each source's.

    The mean of the sources' losses, weighted by their scored tokens, is the loss; that of their bits per byte,
    weighted by bytes, the bits per byte.

    Args:
        names: of the sources.
        make: makes an empty state for tokens.
    """

    def __init__(self, names: Sequence[str], make: Callable[[], TokenMetrics]) -> None:
        self._all = make()
        self._each = {name: make() for name in names}

    def update(self, logits: Tensor, targets: Tensor, sources: Tensor | None = None) -> None:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T], ``sources`` [B, T]: indices into the names."""
        losses, predictions = token_losses(logits, targets), logits.argmax(-1)
        self._all.add(losses, predictions, targets)
        if sources is None:
            return
        for index, state in enumerate(self._each.values()):
            others = sources != index
            state.add(losses.masked_fill(others, 0.0), predictions, targets.masked_fill(others, IGNORE))

    def compute(self) -> dict[str, float]:
        """``nan`` if nothing was scored; a source of which nothing was scored has no metrics."""
        values = self._all.compute()
        for name, state in self._each.items():
            own = state.compute()
            if state.scored:
                values |= {f"{kind}:{name}": own[kind] for kind in OF_SOURCES if kind in own}
        return values


class ClassMetrics:
    """``accuracy`` (share of examples whose class is found) and ``loss`` (mean cross entropy in nats)."""

    def __init__(self) -> None:
        self._examples = TokenMetrics()

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: ``logits`` [B, C], ``targets`` [B]."""
        self._examples.update(logits[:, None], targets[:, None])

    def compute(self) -> dict[str, float]:
        """``nan`` everywhere if nothing was scored."""
        values = self._examples.compute()
        return {"loss": values["loss"], "accuracy": values["accuracy"]}


class MadMetrics:
    """``loss``, ``accuracy`` of single tokens, and what the MAD benchmark publishes: ``mad_macro``, ``mad_perplexity``.

    ``mad_macro`` is the accuracy averaged over classes within each batch of 128 sequences, then averaged over
    batches with the number of sequences as weight. In a batch, classes that are neither target nor
    prediction are left out, and a class that is only predicted counts as 0. ``mad_perplexity`` is the perplexity of
    each batch, averaged likewise. Predictions are kept until 128 sequences are together, so the batch size of the
    evaluation has no influence.
    """

    def __init__(self) -> None:
        self._tokens = TokenMetrics()
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._waiting = 0
        self._macro = 0.0
        self._perplexity = 0.0
        self._sequences = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: ``logits`` [B, T, V], ``targets`` [B, T]."""
        losses, predictions = token_losses(logits, targets), logits.detach().argmax(-1)
        self._tokens.add(losses, predictions, targets)
        self._predictions.append(predictions.cpu())
        self._targets.append(targets.detach().cpu())
        self._losses.append(losses.sum(1).cpu())
        self._waiting += targets.shape[0]
        if self._waiting < PUBLISHED_BATCH:
            return
        predictions, gathered, nats = torch.cat(self._predictions), torch.cat(self._targets), torch.cat(self._losses)
        full = self._waiting - self._waiting % PUBLISHED_BATCH
        for start in range(0, full, PUBLISHED_BATCH):
            rows = slice(start, start + PUBLISHED_BATCH)
            self._macro += PUBLISHED_BATCH * macro_accuracy(predictions[rows], gathered[rows])
            self._perplexity += PUBLISHED_BATCH * _batch_perplexity(nats[rows], gathered[rows])
        self._sequences += full
        self._waiting -= full
        self._predictions, self._targets, self._losses = [predictions[full:]], [gathered[full:]], [nats[full:]]

    def compute(self) -> dict[str, float]:
        """The last batch may hold fewer than 128 sequences; nothing is consumed."""
        macro, perplexity, sequences = self._macro, self._perplexity, self._sequences + self._waiting
        if self._waiting:
            targets = torch.cat(self._targets)
            macro += self._waiting * macro_accuracy(torch.cat(self._predictions), targets)
            perplexity += self._waiting * _batch_perplexity(torch.cat(self._losses), targets)
        values = self._tokens.compute()
        return {
            "loss": values["loss"],
            "accuracy": values["accuracy"],
            "mad_macro": macro / sequences if sequences else math.nan,
            "mad_perplexity": perplexity / sequences if sequences else math.nan,
        }


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of every position, 0 where nothing is scored.

    Args:
        logits: [B, T, V].
        targets: [B, T].

    Returns:
        [B, T], float64, so that the order of batches and their size do not show in sums.
    """
    flat = logits.detach().flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none").double().view(targets.shape)


def _batch_perplexity(nats: Tensor, targets: Tensor) -> float:
    """Of a batch's summed losses [B] and its targets [B, T]; ``nan`` if nothing is scored."""
    scored = int((targets != IGNORE).sum())
    return _perplexity(nats.sum().item() / scored) if scored else math.nan


def _perplexity(loss: float) -> float:
    """Of a loss in nats, also where that is not finite."""
    # exp overflows above 709 nats
    return math.exp(loss) if loss < 700 else math.nan if math.isnan(loss) else math.inf


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
