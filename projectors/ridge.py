"""Ridge regression of features on features, from sums that are streamed and never from the features at once.

For inputs x [d_in] and outputs y [d_out] over n tokens, with means x̄ and ȳ:

    G = Σ (x-x̄)(x-x̄)ᵀ / n      C = Σ (x-x̄)(y-ȳ)ᵀ / n      v = Σ |y-ȳ|² / n
    Wᵀ = (G + λ g I)⁻¹ C         b = ȳ - W x̄                  g = tr(G) / d_in

so λ (``ridge``) is relative to the mean variance of an input channel, and neither the number of tokens nor the
scale of the features changes what it means. The intercept is not penalised. For any affine map (W, b), fitted
here or elsewhere, the mean squared error and hence R² follow from the same sums:

    mse = v - 2 tr(W C) + tr(W G Wᵀ) + |W x̄ + b - ȳ|²        R² = 1 - mse / v

R² is pooled: errors and variances are summed over the output channels before they are divided.

All sums are float64. Every feature is shifted by its mean over the first batch before it is squared, so that
channels with a large mean and a small variance lose no digits. Shape letters: n tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor

from manticore.errors import ManticoreError
from manticore.projectors.projector import InputMoments

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

CHUNK_TOKENS = 4096
"""Tokens that are held in float64 at a time."""

MAX_CONDITION = 1e12
"""Above this ratio of pivots, Cholesky's digits are not trusted and eigenvectors are used instead."""


class FeatureSums(Generic[Key]):
    """The sums that regressions among several feature spaces share.

    A feature space is named by any hashable ``key``. Each space that is the source of a pair has one Gram matrix,
    however many targets it is regressed on; each unordered pair has one cross matrix, which serves both
    directions.

    Args:
        pairs: (source, target) of every regression that will be asked for.
    """

    def __init__(self, pairs: Iterable[tuple[Key, Key]]) -> None:
        self.pairs = list(dict.fromkeys(pairs))
        self.keys = list(dict.fromkeys(chain.from_iterable(self.pairs)))
        self.tokens = 0
        self._device = torch.device("cpu")
        self._shift: dict[Key, Tensor] = {}
        self._sum: dict[Key, Tensor] = {}
        self._square: dict[Key, Tensor] = {}
        self._gram: dict[Key, Tensor] = {}
        self._cross: dict[tuple[Key, Key], Tensor] = {}

    def update(self, features: Mapping[Key, Tensor], mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: per key ``[..., D]`` of any float dtype; the leading dimensions are the same for all.
            mask: ``[...]``, true (or nonzero) where a token counts; ``None`` counts all.

        Raises:
            ManticoreError: a feature that counts is not finite; nothing has been added then.
        """
        rows = {key: features[key].detach().flatten(0, -2) for key in self.keys}
        lengths = {len(value) for value in rows.values()}
        if len(lengths) != 1:
            raise ManticoreError(
                f"ridge: feature spaces differ in tokens (got {sorted(lengths)}). Fix: pass the same tokens to all"
            )
        if mask is not None:
            kept = mask.flatten().bool()
            rows = {key: value[kept.to(value.device)] for key, value in rows.items()}
        for key, value in rows.items():
            if not value.isfinite().all():
                raise ManticoreError(
                    f"ridge: features of {key} hold NaN or infinity in {_bad_channels(value)} channels. "
                    "Fix: run the component in float32, or check its weights"
                )
        tokens = len(next(iter(rows.values()))) if rows else 0
        if tokens == 0:
            return
        if not self.tokens:
            self._start(rows)
        for start in range(0, tokens, CHUNK_TOKENS):
            self._add({key: value[start : start + CHUNK_TOKENS] for key, value in rows.items()})
        self.tokens += tokens

    def solve(self, source: Key, target: Key, ridge: float) -> tuple[Tensor, Tensor]:
        """The ridge regression of ``target`` on ``source``.

        Args:
            source: key of the inputs.
            target: key of the outputs.
            ridge: λ, relative to the mean variance of an input channel; 0 gives the least-squares map of
                least norm.

        Returns:
            weight ``[d_out, d_in]`` and bias ``[d_out]`` in float64.
        """
        if not ridge >= 0:
            raise ManticoreError(f"ridge: must not be negative (got {ridge}). Fix: ridge=1e-4")
        mean_x, mean_y = self.mean(source), self.mean(target)
        gram, cross = self.covariance(source), self._cross_covariance(source, target)
        # what rounding leaves of the variance of a constant
        noise = len(mean_x) * mean_x.square().sum() * torch.finfo(gram.dtype).eps ** 2
        weight = _solve_regularised(gram, cross, ridge * gram.diagonal().mean(), noise).T.contiguous()
        return weight, mean_y - weight @ mean_x

    def r_squared(self, source: Key, target: Key, weight: Tensor, bias: Tensor) -> float:
        """R² of an affine map over the tokens of these sums; at most 1, negative if worse than the mean.

        A target without any variance has R² = 1 under a map without any error, else 0.
        """
        return self.r_squared_of(target, self.mean_squared_error(source, target, weight, bias))

    def r_squared_of(self, target: Key, error: float) -> float:
        """R² of any map with this mean squared error, as in :meth:`r_squared`."""
        variance = self.variance(target)
        # float32 features with less variance than this differ by their rounding only
        floor = 1e-14 * float(variance + self.mean(target).square().sum())
        if variance <= floor:
            return 1.0 if error <= floor else 0.0
        return 1.0 - error / variance

    def mean_squared_error(self, source: Key, target: Key, weight: Tensor, bias: Tensor) -> float:
        """Mean over tokens of the squared error of an affine map, summed over channels."""
        gram, cross = self.covariance(source), self._cross_covariance(source, target)
        weight, bias = weight.to(gram), bias.to(gram)
        offset = weight @ self.mean(source) + bias - self.mean(target)
        explained = 2 * (weight * cross.T).sum() - (weight @ gram * weight).sum()
        return max(float(self.variance(target) - explained + offset.square().sum()), 0.0)

    def mean(self, key: Key) -> Tensor:
        """Mean ``[D]`` of a feature space."""
        self._require_tokens()
        return self._shift[key] + self._sum[key] / self.tokens

    def variance(self, key: Key) -> float:
        """Variance of a feature space, summed over its channels."""
        self._require_tokens()
        mean = self._sum[key] / self.tokens
        return float((self._square[key] / self.tokens - mean.square()).clamp_min(0).sum())

    def covariance(self, key: Key) -> Tensor:
        """Covariance ``[D, D]`` of a feature space that is a source."""
        self._require_tokens()
        mean = self._sum[key] / self.tokens
        return self._gram[key] / self.tokens - torch.outer(mean, mean)

    def moments(self, key: Key) -> InputMoments:
        """Mean and covariance of a feature space that is a source."""
        return InputMoments(self.mean(key), self.covariance(key))

    def _cross_covariance(self, source: Key, target: Key) -> Tensor:
        """``[d_in, d_out]``"""
        if (source, target) in self._cross:
            cross = self._cross[source, target]
        else:
            cross = self._cross[target, source].T
        mean_x, mean_y = self._sum[source] / self.tokens, self._sum[target] / self.tokens
        return cross / self.tokens - torch.outer(mean_x, mean_y)

    def _start(self, rows: Mapping[Key, Tensor]) -> None:
        device = rows[self.keys[0]].device
        # one device for all sums, though components may be spread over several; MPS has no float64
        self._device = torch.device("cpu") if device.type == "mps" else device
        for key, value in rows.items():
            self._shift[key] = value[:CHUNK_TOKENS].to(self._device).double().mean(0)
            self._sum[key] = torch.zeros_like(self._shift[key])
            self._square[key] = torch.zeros_like(self._shift[key])
        for source, target in self.pairs:
            d_in = len(self._shift[source])
            if source not in self._gram:
                self._gram[source] = self._shift[source].new_zeros(d_in, d_in)
            if (source, target) not in self._cross and (target, source) not in self._cross:
                self._cross[source, target] = self._shift[source].new_zeros(d_in, len(self._shift[target]))

    def _add(self, rows: Mapping[Key, Tensor]) -> None:
        shifted = {key: value.to(self._device).double() - self._shift[key] for key, value in rows.items()}
        for key, value in shifted.items():
            self._sum[key] += value.sum(0)
            self._square[key] += value.square().sum(0)
        for key, gram in self._gram.items():
            gram += shifted[key].T @ shifted[key]
        for (source, target), cross in self._cross.items():
            cross += shifted[source].T @ shifted[target]

    def _require_tokens(self) -> None:
        if not self.tokens:
            raise ManticoreError("ridge: no tokens were counted. Fix: pass more text, or check the mask")


def _solve_regularised(gram: Tensor, cross: Tensor, shift: Tensor, noise: Tensor) -> Tensor:
    """(gram + shift I)⁻¹ cross, ``[d_in, d_out]``; directions without variance get weight zero."""
    regularised = gram.clone()
    regularised.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(regularised)
    pivots = factor.diagonal().square()
    if not failed and pivots.min() > torch.maximum(pivots.max() / MAX_CONDITION, noise):
        return torch.cholesky_solve(cross, factor)
    logger.info("ridge: the %d input channels are linearly dependent; solved by eigenvectors", len(gram))
    values, vectors = torch.linalg.eigh(gram)
    rounding = values.abs().max() * len(gram) * torch.finfo(gram.dtype).eps
    inverse = torch.where(values > torch.maximum(rounding, noise), 1 / (values + shift), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ cross))


def _bad_channels(features: Tensor) -> str:
    bad = (~features.isfinite()).any(0)
    return f"{int(bad.sum())} of {bad.numel()}"
