"""How the components' predictions become one: the output of a hybrid.

With output weights w and a component's prediction p_k of the next token:

- ``logits``: ``sum_k w_k z_k`` of the logits z_k. It punishes experts: where one knows nothing, it still votes.
- ``probabilities``: ``sum_k w_k p_k``.
- ``bayes``: the same with the posterior weights ``w_k · p_k(text so far)``, Bayesian interpolation
  (:mod:`manticore.hybrid.likelihoods`).
- ``gate``: the same with ``softmax(log w + sum_k G_k h_k)`` of the features h_k that the heads read, a linear gate per
  token, zero at first (a mixture of experts, Jacobs et al. 1991).

All but the first return log-probabilities in float32, which are logits as good as any. Where one component alone has
weight, each returns that component's logits as they are.

Shapes: B batch, T tokens, t tokens whose logits are asked for, V vocabulary, K components, D width of what a
head reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_outputs import CausalLMOutputWithPast

from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.likelihoods import Posterior, log_normalizers, posteriors, scores_of
from manticore.hybrid.mixing import Features, weighted_sum

if TYPE_CHECKING:
    from manticore.hybrid.decoding import HybridCache
    from manticore.hybrid.inputs import Part

_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass
class HybridOutput(CausalLMOutputWithPast):
    """What a hybrid's forward returns."""

    output_weights: Tensor | None = None
    """``[B, T, K]``, rows on the simplex: what each component's prediction weighed, where that was asked for."""
    components_read: Tensor | None = None
    """``[B, T, K]``, False on padding: which components have read each token; None where none can be dropped."""


def _all_are_there(k: int, input_ids: Tensor, features: Tensor) -> Tensor:
    raise ManticoreError(f"forward: component {k} has given fewer logits than tokens, and no head. Fix: all logits")


@dataclass
class Read:
    """What one pass has read, for the output to predict from."""

    logits: Features
    """``[B, t, V]`` of each component whose head is read."""
    prior: list[tuple[int, Tensor | float]]
    """The output weights, in ascending order of components."""
    head_inputs: Features = field(default_factory=dict)
    """``[B, t, D]``: what each head read; there where the output asks for it."""
    part: Part | None = None
    """The tokens; there where the output asks for features, like what follows."""
    kept: slice | Tensor | None = None
    """The positions of the logits; None stands for all."""
    features: Features = field(default_factory=dict)
    """``[B, T, D]``: what each component's norm and head were given."""
    head: Callable[[int, Tensor, Tensor], Tensor] = _all_are_there
    """Component, ids ``[B, n]``, features ``[B, n, D]`` → logits ``[B, n, V]``."""
    cache: HybridCache | None = None
    """Of the text before these tokens, and to go on from; None where nothing is kept."""
    weighed: bool = False
    """Whether the weights are asked for too."""

    def log_prior(self) -> Tensor:
        """``[K]``, of the components in use, in float32; what trains is never minus infinity."""
        return log_of(self.prior, self.logits[self.prior[0][0]].device)


def log_of(prior: Sequence[tuple[int, Tensor | float]], at: torch.device) -> Tensor:
    """``[K]``: logarithms of output weights in float32; what trains is never minus infinity."""
    if any(isinstance(weight, Tensor) for _, weight in prior):
        stacked = torch.stack([torch.as_tensor(weight, device=at) for _, weight in prior])
    else:
        stacked = torch.tensor([weight for _, weight in prior], device=at)
    return stacked.float().clamp_min(_SMALLEST).log()


class Output(nn.Module, ABC):
    """Makes one prediction of those of the components.

    Args:
        config: the hybrid's configuration.
        widths: D of each component.
    """

    reads_head_inputs = False
    """Whether it wants what the heads read."""
    follows_text = False
    """Whether it wants the tokens, and the features of all of them."""

    def __init__(self, config: ManticoreConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.num_components = config.num_components

    @property
    def varies(self) -> bool:
        """Whether the weights may differ from token to token."""
        return self.follows_text or self.reads_head_inputs

    def reset_parameters(self) -> None:
        """Weights to begin with."""

    def state_bytes(self, components: int, vocab_size: int) -> int:
        """What a cache keeps for it of one sequence.

        Args:
            components: in use.
            vocab_size: V.
        """
        return 0

    def forward(self, read: Read) -> tuple[Tensor, Tensor | None]:
        """Logits ``[B, t, V]``, and where they are asked for the weights they were made with.

        Weights are ``[B, t, K]``, or ``[K]`` where they are constant; components that are not in use have weight 0.
        """
        (k, weight), *others = read.prior
        alone = not others and not isinstance(weight, Tensor)
        logits, log_weights = (read.logits[k], None) if alone else self.joined(read)
        if not read.weighed:
            return logits, None
        return logits, self._spread(read, (read.log_prior() if log_weights is None else log_weights).exp())

    @abstractmethod
    def joined(self, read: Read) -> tuple[Tensor, Tensor | None]:
        """Logits of two components or more, and the logarithms of their weights; None where these are the prior."""

    def _spread(self, read: Read, weights: Tensor) -> Tensor:
        if weights.shape[-1] == self.num_components:
            return weights
        whole = weights.new_zeros(*weights.shape[:-1], self.num_components)
        whole[..., [k for k, _ in read.prior]] = weights
        return whole


class Logits(Output):
    """``sum_k w_k z_k``."""

    def joined(self, read: Read) -> tuple[Tensor, None]:
        """The weighted sum of the logits."""
        return weighted_sum([(weight, read.logits[k]) for k, weight in read.prior]), None


class Probabilities(Output):
    """``log sum_k w_k p_k``."""

    def joined(self, read: Read) -> tuple[Tensor, Tensor]:
        """The mixture of the predictions."""
        used = [k for k, _ in read.prior]
        with torch.no_grad():
            normalizers = {k: log_normalizers(read.logits[k]) for k in used}
        log_weights = self.log_weights(read, normalizers)
        mixed: Tensor = _Mixture.apply(log_weights, *normalizers.values(), *(read.logits[k] for k in used))
        return mixed, log_weights

    def log_weights(self, read: Read, normalizers: Features) -> Tensor:
        """``[K]`` or ``[B, t, K]``; ``normalizers`` ``[B, t]`` are those of each component's logits."""
        return read.log_prior()


class _Mixture(torch.autograd.Function):
    """``log sum_k w_k softmax(z_k)`` in float32, and its gradient, which keeps no more than the logits and the result.

    Out of torch's own functions it would keep every term too.
    """

    @staticmethod
    def forward(ctx: Any, log_weights: Tensor, *given: Tensor) -> Tensor:
        """Takes log-weights ``[…, K]``, then of each component ``logsumexp(z)`` ``[B, t]``, then z ``[B, t, V]``."""
        normalizers, logits = given[: len(given) // 2], given[len(given) // 2 :]
        total: Tensor | None = None
        for k, (z, normalizer) in enumerate(zip(logits, normalizers)):
            term = z + (log_weights[..., k].to(z.device) - normalizer)[..., None]
            total = term if total is None else torch.logaddexp(total, term.to(total.device))
        assert total is not None
        ctx.save_for_backward(log_weights, total, *given)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With r_k the share of the mixture that component k made: ``g r_k - softmax(z_k) sum(g r_k)``."""
        log_weights, total, *given = ctx.saved_tensors
        normalizers, logits = given[: len(given) // 2], given[len(given) // 2 :]
        of_weights: list[Tensor] = []
        of_logits: list[Tensor | None] = []
        for k, (z, normalizer) in enumerate(zip(logits, normalizers)):
            scaled = z - normalizer[..., None]
            share = scaled + log_weights[..., k, None].to(z.device) - total.to(z.device)
            share = share.exp_().mul_(gradients[0].to(z.device))
            summed = share.sum(-1)
            of_weights.append(summed.to(log_weights.device))
            wanted = ctx.needs_input_grad[1 + len(normalizers) + k]
            of_logits.append(share.sub_(scaled.exp_().mul_(summed[..., None])).to(z.dtype) if wanted else None)
        whole = torch.stack(of_weights, -1)
        return whole.sum_to_size(log_weights.shape), *(None for _ in normalizers), *of_logits


class Bayes(Probabilities):
    """Weights by how well each component has predicted the text so far."""

    follows_text = True

    def __init__(self, config: ManticoreConfig, widths: Sequence[int]) -> None:
        super().__init__(config, widths)
        self.forgetting = config.forgetting

    def state_bytes(self, components: int, vocab_size: int) -> int:
        """Each component's weight and its prediction of the next token; nothing where one component is alone."""
        return components * (1 + vocab_size) * torch.float32.itemsize if components > 1 else 0

    def log_weights(self, read: Read, normalizers: Features) -> Tensor:
        """The posterior after each token, ``[B, t, K]``; it takes no gradient, the prior does."""
        part, cache = read.part, read.cache
        assert part is not None
        before = None if cache is None else cache.posterior
        logits = read.logits if read.kept is None else {}
        vocab_size = read.logits[read.prior[0][0]].shape[-1]
        scored = scores_of(
            *(part, read.features, logits, normalizers, read.head, before),
            vocab_size=vocab_size,
            last=cache is not None,
        )
        prior = read.log_prior()
        start = prior.expand(len(part.input_ids), -1) if before is None else before.log_weights.to(prior.device)
        followed = posteriors(scored.values, scored.counts, start, prior, self.forgetting)
        if cache is not None:
            cache.posterior = Posterior(followed[:, -1].detach(), scored.last, scored.begun)
        return followed if read.kept is None else followed[:, read.kept]


class Gate(Probabilities):
    """Weights by a linear map of the features that the heads read."""

    reads_head_inputs = True

    def __init__(self, config: ManticoreConfig, widths: Sequence[int]) -> None:
        super().__init__(config, widths)
        if config.path is None:
            self.maps = nn.ModuleDict(
                {str(k): nn.Linear(width, config.num_components, bias=False) for k, width in enumerate(widths)}
            )
            self.bias = nn.Parameter(torch.empty(config.num_components))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zeros: the output weights alone. Leaves alone what transformers has just loaded from a checkpoint."""
        for parameter in self.parameters():
            initialization.zeros_(parameter)

    def log_weights(self, read: Read, normalizers: Features) -> Tensor:
        """``[B, t, K]``."""
        used = [k for k, _ in read.prior]
        if (missing := [k for k in used if k not in read.head_inputs]) != []:
            raise ManticoreError(
                f"forward: output gate, but component {missing[0]} does not call its head as a module, so what that "
                "reads is not known. Fix: another output"
            )
        prior = read.log_prior()
        total = self.bias.to(prior).float()
        for k in used:
            linear, features = self.maps[str(k)], read.head_inputs[k]
            total = total + linear(features).to(prior.device).float()
        return (prior + total[..., used]).log_softmax(-1)
