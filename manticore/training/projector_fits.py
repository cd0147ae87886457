"""Which map a projector is given: of several, the one with the least error on text that none was fitted on.

Asked for are ridge regressions of several strengths, and the best of them cut to lower ranks: where there is little
text for many channels a weak ridge follows the text it was fitted on, and a strong one, or a map of few directions,
does better on any other. What the projector held before is among them, so that no projector gets worse.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from manticore.projectors.reduced_rank import truncated
from manticore.projectors.ridge import FeatureSums

if TYPE_CHECKING:
    from manticore.hybrid.mixing import Translation
    from manticore.projectors.projector import InputMoments

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge, where none is asked for."""
CUTS = (2, 4, 8)
"""The best of them is also tried at so many times less than its full rank."""
BEFORE = "before"
"""What :attr:`TranslationFit.kept` says of a projector that stays as it was."""


class FeatureSpace(NamedTuple):
    """What a component holds at a block boundary when it runs alone."""

    component: int
    boundary: int

    def __str__(self) -> str:
        return f"component {self.component} at boundary {self.boundary}"


Sums: TypeAlias = FeatureSums[FeatureSpace]


@dataclass(frozen=True)
class TranslationFit:
    """How well one projector translates. R² is 1 for a perfect map, 0 for the mean of the target."""

    name: str
    source: int
    """Component whose features go in."""
    target: int
    """Component whose features should come out."""
    boundary: int
    """Block boundary, from 0 (embeddings) to N."""
    r2: float | None
    """R² of what the projector holds, on the text it was fitted on; None where it holds what it held before."""
    r2_heldout: float | None
    """R² of what the projector holds, on held-out text; None where that is not known, as :attr:`r2_before`."""
    r2_before: float | None
    """R² of what the projector held before, on held-out text; None where that is not finite, and between a space and
    itself, where it is not measured."""
    kept: str
    """What the projector holds: ``"ridge 0.001"``, ``"ridge 0.001, rank 32"``, ``"identity"`` between a space and
    itself, or ``"before"``."""


class ErrorsBefore:
    """Squared errors of the projectors as they are, summed while features pass by."""

    def __init__(self, translations: Sequence[Translation]) -> None:
        self._translations = [t for t in translations if t.source != t.target]
        self._sums = {t.name: 0.0 for t in self._translations}

    @torch.no_grad()
    def update(self, features: dict[FeatureSpace, Tensor], mask: Tensor | None) -> None:
        """Add a batch: features ``[B, T, D]``, mask ``[B, T]``, 0 on padding."""
        for t in self._translations:
            source, target = features[FeatureSpace(*t.source)], features[FeatureSpace(*t.target)]
            error = (t.projector(source).to(target.device) - target).double().square().sum(-1)
            self._sums[t.name] += float(error.sum() if mask is None else error[mask.to(error.device).bool()].sum())

    def mean(self, name: str, tokens: int) -> float:
        """Per token, summed over channels; NaN where the projector's output is not finite."""
        return self._sums[name] / tokens


def fit(
    translation: Translation, sums: Sums, heldout: Sums, before: ErrorsBefore, ridge: float | None, *, keep_best: bool
) -> TranslationFit:
    """Write into a projector what does best on held-out text, and say what that is.

    Args:
        translation: the projector, and what it maps onto what.
        sums: over the text to fit on.
        heldout: over the held-out text.
        before: errors of what the projector holds, over the held-out text.
        ridge: the one strength to take; None tries :data:`STRENGTHS`, and the best of them at lower ranks.
        keep_best: whether what was before stays where it does better; False writes the fitted map whatever it does.
    """
    source, target = FeatureSpace(*translation.source), FeatureSpace(*translation.target)
    projector = translation.projector
    at = (translation.name, source.component, target.component, source.boundary)
    if source == target:
        projector.reset_identity()
        return TranslationFit(*at, r2=1.0, r2_heldout=1.0, r2_before=None, kept="identity")
    held = {name: value.clone() for name, value in projector.state_dict().items()}
    moments = sums.moments(source)

    def error(weight: Tensor, bias: Tensor) -> float:
        # not every kind can hold every map
        return heldout.mean_squared_error(source, target, *projector.set_affine(weight, bias, moments))

    # stable: the first of equal ones, the weakest ridge at full rank, stays
    tried = [(error(weight, bias), words, weight, bias) for words, weight, bias in _ridges(sums, source, target, ridge)]
    best = min(tried, key=lambda candidate: candidate[0])
    if ridge is None:
        cut = [(error(weight, bias), words, weight, bias) for words, weight, bias in _lower_ranks(*best[1:], moments)]
        best = min([best, *cut], key=lambda candidate: candidate[0])
    error_before = before.mean(translation.name, heldout.tokens)
    r2_before = _finite(heldout.r_squared_of(target, error_before))
    if keep_best and error_before <= best[0]:
        projector.load_state_dict(held)
        return TranslationFit(*at, r2=None, r2_heldout=r2_before, r2_before=r2_before, kept=BEFORE)
    represented = projector.set_affine(*best[2:], moments)
    r2, r2_heldout = (s.r_squared(source, target, *represented) for s in (sums, heldout))
    return TranslationFit(*at, r2=r2, r2_heldout=r2_heldout, r2_before=r2_before, kept=best[1])


def _ridges(
    sums: Sums, source: FeatureSpace, target: FeatureSpace, ridge: float | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for strength in STRENGTHS if ridge is None else (ridge,):
        yield f"ridge {strength:g}", *sums.solve(source, target, strength)


def _lower_ranks(
    words: str, weight: Tensor, bias: Tensor, moments: InputMoments
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for rank in sorted({min(weight.shape) // cut for cut in CUTS} - {0}, reverse=True):
        up, down, shifted = truncated(weight, bias, rank, moments)
        yield f"{words}, rank {rank}", up @ down, shifted


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
