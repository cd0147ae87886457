"""Which parameters weight decay falls on: maps and tables, and nothing that sets a scale, a rate or a start.

Decay pulls towards zero. For a map that means smaller features; for what sets a recurrence it means another recurrence:
``A_log -> 0`` is a decay rate of 1 whatever was learned, a norm's weight -> 0 is silence. mamba-ssm leaves ``A_log``
and ``D`` out by a mark on the parameter, which transformers' port has lost, so they are known here by name as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from manticore.components.rebuilding import NO_DECAY

STATE_PARAMETERS = frozenset({"A_log", "D", "dt_bias"})
"""What Mamba, Mamba-2, the gated delta nets and their relatives in transformers call what sets a recurrence."""


def decayed(model: nn.Module, candidates: Iterable[str]) -> list[str]:
    """Those of the parameters named ``candidates`` that decay falls on.

    Left out are parameters of fewer than two dimensions (biases, the weights of norms, gains, rates), those of a norm
    per head or a bias per expert too, the recurrent families' state parameters, and what is marked by an attribute
    ``_no_weight_decay``: true on a parameter, true on a module for all that it holds, or on a module the names of its
    own parameters.
    """
    spared = set(_marked(model))
    kept = {name for name, parameter in model.named_parameters() if parameter.dim() > 1 and name not in spared}
    return [name for name in candidates if name in kept and not _sets_a_scale_or_a_start(model, name)]


def _sets_a_scale_or_a_start(model: nn.Module, name: str) -> bool:
    """Whether a parameter of two dimensions or more is not a map, by its name or by what holds it."""
    holder, _, own = name.rpartition(".")
    return own in STATE_PARAMETERS or own.endswith("bias") or "Norm" in type(model.get_submodule(holder)).__name__


def _marked(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules():
        mark = getattr(module, NO_DECAY, None)
        everything = mark is True
        own = set() if mark is None or isinstance(mark, bool) else {mark} if isinstance(mark, str) else set(mark)
        for name, parameter in module.named_parameters(prefix, recurse=everything):
            if everything or name.removeprefix(f"{prefix}.") in own or getattr(parameter, NO_DECAY, False):
                yield name
