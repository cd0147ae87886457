"""Run the Mamba layers of a transformers model through this package's scan, one model at a time, and back.

transformers' mixers call a function ``mamba_selective_scan`` of their module. A switched mixer is an instance of a
subclass whose ``forward`` is the original code with that one name bound to our scan; the module and other models
stay untouched, and nothing is stored on the mixer, so copies and state dicts are as before. The subclass also hands the
scan the cached state, so that a cached prompt can be continued by several tokens at once (transformers starts such a
continuation from a zero state).

Mamba-2 mixers keep transformers' scan; on CPU it runs with a smaller chunk: same result, less work and memory.
Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from manticore.components.cache_argument import CACHE_NAMES, cache_in
from manticore.errors import ManticoreError
from manticore.kernels.scan import selective_scan

_SCAN = "mamba_selective_scan"
_FUSED = "mamba_inner_fn"
_SCAN_PARAMETERS = (
    *("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus"),
    "return_last_state",
)
_CHUNKED_SCAN = "mamba2_chunk_scan"
_CPU_CHUNK = 64
_MIXER_NAMES = ("MambaMixer", "Mamba2Mixer")

_initial_states: ContextVar[Iterator[Tensor] | None] = ContextVar("initial_states", default=None)
"""The cached states [B, D, N] for the scans that the running mixer is about to make (one per head)."""


def use_selective_scan(model: nn.Module, enabled: bool = True) -> int:
    """Switch every Mamba mixer inside ``model`` to this package's scan, or back to transformers' own.

    Works for the families whose mixer calls ``mamba_selective_scan`` (mamba, falcon_mamba, jamba, zamba); results are
    the same up to rounding. Mamba-2 mixers get a chunk of 64 steps while they are on the CPU (or on the meta device,
    so that counted FLOPs are the same).

    Args:
        model: any module; mixers are found wherever they are. Changed in place.
        enabled: False switches back.

    Returns:
        How many mixers were switched by this call (those already in the wanted state do not count).

    Raises:
        ManticoreError: a Mamba mixer is not built as expected; then nothing was switched.
    """
    changes: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in model.modules():
        current: Any = type(module)
        if issubclass(current, _Switched):
            if not enabled:
                changes.append((module, current.original))
        elif enabled:
            target = _switched_class(current)
            if target is not None:
                changes.append((module, target))
    for module, target in changes:
        module.__class__ = target
    return len(changes)


def has_selective_scan(model: nn.Module) -> bool:
    """Whether a mixer of the model has been switched to this package's scan."""
    return any(isinstance(module, _Switched) for module in model.modules())


@contextmanager
def fast_scan(model: nn.Module) -> Iterator[None]:
    """Run ``model`` with this package's scan inside the ``with`` block, and as it was before after it."""
    switched = [module for module in model.modules() if isinstance(module, _Switched)]
    use_selective_scan(model)
    try:
        yield
    finally:
        use_selective_scan(model, enabled=False)
        for module in switched:
            use_selective_scan(module)


class _Switched:
    """Marks the classes made here."""

    original: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # the class is made at run time, so pickles and copies name its original instead
        return _remake, (self.original,), self.__dict__


def _remake(original: Any) -> nn.Module:
    """An empty instance of the switched class, for pickle and copy to fill."""
    target = _switched_class(original)
    if target is None:
        raise ManticoreError(
            f"use_selective_scan: {original.__name__} holds no Mamba scan in this version of transformers. "
            f"Fix: load the model with the version it was pickled with, or save it with save_pretrained"
        )
    return target.__new__(target)


@cache
def _switched_class(original: Any) -> type[nn.Module] | None:
    """The subclass that runs our scan; None if the class has nothing to do with Mamba."""
    forward = inspect.unwrap(original.forward)
    names = forward.__code__.co_names if isinstance(forward, FunctionType) else ()
    if _SCAN in names:
        return _with_scan(original, sys.modules[original.__module__])
    if _CHUNKED_SCAN in names:
        return _with_chunk(original)
    if original.__module__.startswith("transformers.") and original.__name__.endswith(_MIXER_NAMES):
        raise _unexpected(original, f"its forward calls neither {_SCAN} nor {_CHUNKED_SCAN}")
    return None


def _with_scan(original: type[nn.Module], module: Any) -> type[nn.Module]:
    """Mamba-1: the mixer's own forward, with our scan under the name that it calls."""
    known = inspect.signature(inspect.unwrap(getattr(module, _SCAN))).parameters
    missing = [name for name in _SCAN_PARAMETERS if name not in known]
    if missing:
        raise _unexpected(original, f"{_SCAN} has no parameter {', '.join(missing)}")
    arguments = tuple(inspect.signature(inspect.unwrap(original.forward)).parameters)
    # the cache's name depends on the version
    if arguments[1:2] + arguments[3:4] != ("hidden_states", "attention_mask") or arguments[2] not in CACHE_NAMES:
        raise _unexpected(original, f"its forward takes {', '.join(arguments)}")
    # the fused kernel would bypass the scan in training; the fallback's answer makes the mixer go on
    inner_forward = _rebind(original.forward, {_SCAN: _scan, _FUSED: _no_fused_kernel})

    def forward(self: Any, hidden_states: Tensor, *given: Any, **named: Any) -> Tensor:
        cached = given[0] if given else cache_in(named)
        token = _initial_states.set(_cached_states(self, hidden_states, cached))
        try:
            return inner_forward(self, hidden_states, *given, **named)
        finally:
            _initial_states.reset(token)

    return _subclass(original, forward=forward)


def _with_chunk(original: type[nn.Module]) -> type[nn.Module]:
    """Mamba-2: ``chunk_size`` as a property that looks at the device."""
    if "chunk_size" not in inspect.unwrap(original.__init__).__code__.co_names:
        raise _unexpected(original, "it sets no chunk_size")

    def get(self: Any) -> int:
        own = self.__dict__["chunk_size"]
        return min(own, _CPU_CHUNK) if self.A_log.device.type in ("cpu", "meta") else own

    def put(self: Any, value: int) -> None:
        self.__dict__["chunk_size"] = value

    return _subclass(original, chunk_size=property(get, put))


def _subclass(original: type[nn.Module], **members: Any) -> type[nn.Module]:
    members = {"original": original, "__module__": __name__, "__doc__": original.__doc__, **members}
    return type(f"{original.__name__}WithSelectiveScan", (_Switched, original), members)


def _rebind(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """A copy of ``function``, and of what its decorators wrap, that sees other objects under some global names."""
    wrapped = getattr(function, "__wrapped__", None)
    closure = function.__closure__
    if wrapped is not None:
        inner = _rebind(wrapped, names)
        closure = tuple(CellType(inner) if cell.cell_contents is wrapped else cell for cell in closure or ())
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        closure,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _cached_states(mixer: Any, hidden_states: Tensor, cached: Any) -> Iterator[Tensor] | None:
    """The states that a continuation of several tokens starts from, one [B, D, N] per scan of the mixer."""
    # a single token takes transformers' own state update
    if cached is None or hidden_states.shape[1] == 1:
        return None
    state = cached.get_recurrent_state(mixer.layer_idx, state_idx=0)
    if state is None:
        return None
    # a copy: the mixer overwrites the cache in place, and the backward pass still needs the old state
    state = state.clone()
    return iter(state.unbind(1)) if state.dim() == 4 else iter((state,))


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **other_implementations: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """``selective_scan`` under transformers' argument names, from the cached state if there is one."""
    states = _initial_states.get()
    return selective_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=None if states is None else next(states),
        return_last_state=return_last_state,
    )


def _no_fused_kernel(*args: Any, **kwargs: Any) -> None:
    """What transformers' ``mamba_inner_fn`` answers where no fused kernel is installed."""


def _unexpected(original: type, reason: str) -> ManticoreError:
    return ManticoreError(
        f"use_selective_scan: {original.__module__}.{original.__name__} is not a mixer that can be switched: {reason}. "
        f"Fix: use a version of transformers that manticore supports, or leave this model unswitched"
    )
