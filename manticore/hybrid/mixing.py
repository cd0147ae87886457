"""What every mixing is: projectors, mixture weights, and the rule that joins components between blocks.

Boundary n lies before block n: boundary 0 after the embeddings, boundary N after the last block. Mixture weights are
probabilities (rows on the simplex) and nothing else; a search that works on logits keeps those to itself.

Shapes: B batch, T tokens, D width, K components, N blocks.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from manticore.errors import ManticoreError, in_brief, told
from manticore.hybrid.configuration import ManticoreConfig
from manticore.projectors.projector import Projector

Features = dict[int, Tensor]
"""Component → ``[B, T, D]``; components that nothing reads are absent."""


@dataclass(frozen=True)
class Translation:
    """What a projector should do: map one component's features onto another's."""

    name: str
    """Key in :attr:`Mixing.projectors`."""
    projector: Projector
    source: tuple[int, int]
    """Component and boundary whose features go in."""
    target: tuple[int, int]
    """Component and boundary whose features should come out."""


@dataclass(frozen=True)
class Route:
    """What has to run, each in ascending order."""

    embedded: list[int]
    """Components whose embeddings are read before block 0."""
    blocks: list[list[int]]
    """Per block the components that run."""
    used: list[int]
    """Components whose embeddings or layers are read."""


class Mixing(nn.Module, ABC):
    """Joins the components of a hybrid at every boundary."""

    projectors: nn.ModuleDict

    def __init__(self, config: ManticoreConfig) -> None:
        super().__init__()
        self.num_blocks = config.num_blocks
        self.num_components = config.num_components
        self.widths = [component.hidden_size for component in config.components]
        self.spaces = config.spaces
        self._reader = MixtureReader()
        self._route: tuple[object, Route] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in every module, but ``half()``, ``to(dtype)`` and the like leave probabilities in float32 or better.

        In half precision rows would no longer sum to 1.
        """

        def moved(tensor: Tensor) -> Tensor:
            result: Tensor = fn(tensor)
            if result.is_floating_point() and torch.finfo(result.dtype).bits < 32:
                return tensor.to(result.device, torch.float32)
            return result

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(moved, recurse=False)

    @abstractmethod
    def reset_mixture(self) -> None:
        """Set the weights a search starts from."""

    @abstractmethod
    def mixture_parameters(self) -> list[nn.Parameter]:
        """Parameters of probabilities: the last dimension of each lies on the simplex."""

    @abstractmethod
    def mixture_weights(self) -> Tensor:
        """``[N, K]``: the share of each component in each block that reaches the output."""

    @abstractmethod
    def set_mixture_weights(self, weights: Tensor) -> None:
        """Take over checked weights ``[N, K]``."""

    @torch.no_grad()
    def adopt_mixture(self, other: Mixing) -> None:
        """Take over the mixture weights of a mixing of the same kind, exactly; projectors stay."""
        for ours, theirs in zip(self.mixture_parameters(), other.mixture_parameters()):
            ours.copy_(theirs)

    @abstractmethod
    def translations(self) -> list[Translation]:
        """What each projector should do, for alignment."""

    @abstractmethod
    def active(self) -> list[set[int]]:
        """Per block the components that have to run: all, unless weights that do not train are exactly zero.

        Like :meth:`embedded`, a function of :meth:`mixture_parameters` alone.
        """

    def embedded(self) -> set[int]:
        """The components whose embeddings are read before block 0."""
        return self.active()[0]

    def route(self) -> Route:
        """What :meth:`active` and :meth:`embedded` say, worked out once per change of the mixture."""
        if torch.compiler.is_compiling():
            # neither read nor noted: torch would compile once more whenever the mixture changes
            return self._worked_out()
        values = self._reader.read(self.mixture_parameters())
        if self._route is None or self._route[0] is not values:
            self._route = values, self._worked_out()
        return self._route[1]

    def _worked_out(self) -> Route:
        active, embedded = self.active(), self.embedded()
        used = sorted(embedded.union(*active))
        return Route(sorted(embedded), [sorted(block) for block in active], used)

    @abstractmethod
    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """What enters the components ``targets`` in block ``boundary``.

        Args:
            boundary: n, from 0 to N - 1.
            features: what left the block before (at boundary 0: the embeddings).
            targets: the components of block n that have to run.
        """

    @abstractmethod
    def head_inputs(self, features: Features) -> Features:
        """What the norm and head of each component read, from what left the last block."""

    def apart(self) -> bool:
        """Whether every component reads its own features alone, up to the output."""
        return False

    @abstractmethod
    def output_weights(self) -> list[tuple[int, Tensor | float]]:
        """The components whose heads are read, in ascending order, each with its weight: a number unless it trains."""

    def mixed(self, outputs: Features) -> Tensor:
        """The weighted sum of what the components' heads give, ``[B, T, V]`` each."""
        return weighted_sum([(weight, outputs[k]) for k, weight in self.output_weights()])

    def best_path(self) -> list[int]:
        """The component with the largest weight in each block; the first one among equals."""
        return self.mixture_weights().argmax(dim=-1).tolist()


class OneVectorPerBlock(Mixing):
    """Mixture weights that are one parameter ``[N, K]``; comes before what else mixes among the bases."""

    def _make_mixture(self) -> None:
        self.weights = nn.Parameter(torch.empty(self.num_blocks, self.num_components), requires_grad=False)

    @torch.no_grad()
    def reset_mixture(self) -> None:
        """Equal weights."""
        self.weights.fill_(1 / self.num_components)

    def mixture_parameters(self) -> list[nn.Parameter]:
        """The weights ``[N, K]``."""
        return [self.weights]

    def mixture_weights(self) -> Tensor:
        """The weights themselves."""
        return self.weights.detach().clone()

    @torch.no_grad()
    def set_mixture_weights(self, weights: Tensor) -> None:
        """The weights themselves."""
        self.weights.copy_(weights)


class MixtureReader:
    """Reads probability parameters into Python once per change, so that a forward pass does not wait for a device."""

    def __init__(self) -> None:
        self._versions: list[tuple[int, int, bool]] | None = None
        self._values: list[list[list[float]] | None] = []

    def assume(self, values: list[list[list[float]] | None]) -> None:
        """What :meth:`read` returns for parameters without data."""
        self._values, self._versions = values, None

    def read(self, parameters: Sequence[nn.Parameter]) -> list[list[list[float]] | None]:
        """Per parameter its rows as numbers, or None where it trains (then no zero may be skipped)."""
        if torch.compiler.is_compiling():
            # numbers would be compiled in, and stay there when the weights change
            return [None] * len(parameters)
        versions = [(id(p), p._version, p.requires_grad) for p in parameters]
        if versions == self._versions:
            return self._values
        # without values (meta device, or while FLOPs are counted): keep the ones read before, if any
        empty = [p.is_meta or is_fake(p) for p in parameters]
        if not (self._values and any(empty)):
            self._values = [
                None if p.requires_grad or no_values else p.detach().reshape(-1, p.shape[-1]).tolist()
                for p, no_values in zip(parameters, empty)
            ]
            self._versions = versions
        return self._values


def check_weights(
    weights: Tensor | Sequence[Sequence[float]] | Sequence[int], num_blocks: int, num_components: int
) -> Tensor:
    """Mixture weights as float32 ``[N, K]``.

    Args:
        weights: ``[N, K]`` with rows on the simplex, or N component indices (a vertex).

    Raises:
        ManticoreError: wrong shape, an index out of range, a negative or non-finite weight, a row that does not
            sum to 1.
    """
    expected = f"expected numbers [{num_blocks}, {num_components}], or {num_blocks} component indices"
    fix = "give shares that sum to 1 in each row, or an index per block"
    with told("set_mixture_weights", f"{in_brief(repr(weights))} ({expected})", fix):
        tensor = torch.as_tensor(weights)
    indices = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.dim() == 1 and len(tensor) == num_blocks and indices:
        path = check_path(tensor.tolist(), num_blocks, num_components, "set_mixture_weights")
        return torch.nn.functional.one_hot(torch.tensor(path), num_components).float()
    wrong = None
    if tensor.dtype == torch.bool or tensor.is_complex():
        wrong = f"{in_brief(repr(weights))} are not weights"
    elif tuple(tensor.shape) != (num_blocks, num_components):
        wrong = f"shape {list(tensor.shape)}"
    elif not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
        wrong = "a weight is negative, NaN or infinite"
    elif bool(((sums := tensor.float().sum(-1)) - 1).abs().max() > 1e-4):
        row = int((sums - 1).abs().argmax())
        wrong = f"row {row} sums to {float(sums[row]):.6g}, not to 1"
    if wrong is not None:
        raise ManticoreError(f"set_mixture_weights: {wrong} ({expected}). Fix: {fix}")
    return tensor.float()


def check_path(path: Sequence[int], num_blocks: int, num_components: int, where: str) -> list[int]:
    """A component index for each block.

    Raises:
        ManticoreError: too few or too many, or one out of range.
    """
    expected = f"expected {num_blocks} indices from 0 to {num_components - 1}"
    fix = "Fix: name one component per block"
    try:
        if any(isinstance(k, bool) for k in path):
            raise TypeError("True and False are not indices")
        indices = [operator.index(k) for k in path]
    except TypeError as error:
        raise ManticoreError(f"{where}: path {path!r} ({expected}). {fix}") from error
    if len(indices) != num_blocks or not all(0 <= k < num_components for k in indices):
        raise ManticoreError(f"{where}: path {indices} ({expected}). {fix}")
    return indices


def weighted_sum(terms: Sequence[tuple[Tensor | float, Tensor]]) -> Tensor:
    """``sum of weight * value``; the number 1 costs nothing."""
    total: Tensor | None = None
    for weight, value in terms:
        # a device map may have put weights, projectors and heads on several devices
        if isinstance(weight, Tensor):
            term = weight.to(value) * value
        else:
            term = value if weight == 1 else weight * value
        total = term if total is None else total + term.to(total.device)
    if total is None:
        raise ManticoreError("mixing: every weight of a row is zero. Fix: set mixture weights whose rows sum to 1")
    return total
