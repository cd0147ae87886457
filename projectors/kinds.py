"""The kinds of projector, and the one place that makes them by name.

    linear        W x + b
    linear-skip   S x + W x + b
    low-rank      s S x + U V x + b             U [d_out, r], V [r, d_in], s a learned number
    two-layer     U gelu(V x + c) + b           U [d_out, h], V [h, d_in]; with ``skip``: S x + ...

S pads with zeros or cuts (``resize``). A two-layer projector of hidden width h >= 2 min(d_in, d_out) holds
any affine map exactly, because gelu(z) - gelu(-z) = z: units in pairs of opposite sign pass z unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.components.shapes import expect_shape
from manticore.making import make
from manticore.option_types import Count
from manticore.projectors.projector import Init, InputMoments, Projector, resize
from manticore.projectors.reduced_rank import lost, truncated


class Linear(Projector):
    """``W x + b``. The identity is a rectangular eye."""

    def __init__(self, d_in: Count, d_out: Count, *, init: Init = "identity") -> None:
        super().__init__(d_in, d_out, init)
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return _affine(x, self.weight, self.bias).to(x.dtype)

    def initial_values(self, init: Init) -> dict[str, Tensor]:
        if init == "identity":
            return {"weight": _eye_like(self.weight), "bias": torch.zeros_like(self.bias)}
        return _learned_part(self.weight, self.bias, random=init == "default")

    def set_affine(self, weight: Tensor, bias: Tensor, moments: InputMoments | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = _as_float64(self, weight, bias)
        self._write({"weight": weight, "bias": bias})
        return weight, bias


class LinearSkip(Projector):
    """``S x + W x + b``: the identity is W = 0, and exact in any dtype."""

    def __init__(self, d_in: Count, d_out: Count, *, init: Init = "identity") -> None:
        super().__init__(d_in, d_out, init)
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.d_out) + _affine(x, self.weight, self.bias).to(x.dtype)

    def initial_values(self, init: Init) -> dict[str, Tensor]:
        return _learned_part(self.weight, self.bias, random=init == "default")

    def set_affine(self, weight: Tensor, bias: Tensor, moments: InputMoments | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = _as_float64(self, weight, bias)
        self._write({"weight": weight - _eye_like(weight), "bias": bias})
        return weight, bias


class LowRank(Projector):
    """``s S x + U V x + b`` with r columns in U; s starts at 1.

    Channels of two components that were trained apart do not match, so alignment often does better without S: a
    fixed S would use up the rank to be cancelled.

    Args:
        rank: r. More than min(d_in, d_out) holds nothing more, so r is cut to that.
    """

    def __init__(self, d_in: Count, d_out: Count, *, rank: Count = 16, init: Init = "identity") -> None:
        super().__init__(d_in, d_out, init)
        self.rank = min(rank, d_in, d_out)
        self.down = nn.Parameter(torch.empty(self.rank, d_in))
        self.up = nn.Parameter(torch.empty(d_out, self.rank))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        delta = F.linear(_affine(x, self.down, None), self.up, self.bias)
        return self.scale.to(x.dtype) * resize(x, self.d_out) + delta.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"

    def initial_values(self, init: Init) -> dict[str, Tensor]:
        # V stays random where U is zero: with both at zero neither would ever receive a gradient
        return {"down": _uniform(self.down), "scale": torch.ones_like(self.scale)} | _learned_part(
            self.up, self.bias, random=init == "default", names=("up", "bias")
        )

    def set_affine(self, weight: Tensor, bias: Tensor, moments: InputMoments | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = _as_float64(self, weight, bias)
        base = _eye_like(weight)
        spread = base if moments is None else base @ moments.covariance.to(weight)
        # of s S alone, the best s
        fitted = float((weight * spread).sum() / (base * spread).sum().clamp_min(1e-300))
        scale = min((1.0, 0.0, fitted), key=lambda s: lost(weight - s * base, self.rank, moments))
        up, down, bias = truncated(weight - scale * base, bias, self.rank, moments)
        self._write({"up": up, "down": down, "bias": bias, "scale": bias.new_tensor([scale])})
        return scale * base + up @ down, bias


class TwoLayer(Projector):
    """``U gelu(V x + c) + b``, optionally added to ``S x``.

    Args:
        hidden: number of hidden units h; by default 2 min(d_in, d_out), the least that holds any affine map.
            With fewer, an affine map (the identity included) keeps h // 2 dimensions.
        skip: add the features themselves, padded or cut.
    """

    def __init__(
        self,
        d_in: Count,
        d_out: Count,
        *,
        hidden: Count | None = None,
        skip: bool = False,
        init: Init = "identity",
    ) -> None:
        super().__init__(d_in, d_out, init)
        self.skip = skip
        self.hidden = hidden if hidden is not None else 2 * min(d_in, d_out)
        self.weight_in = nn.Parameter(torch.empty(self.hidden, d_in))
        self.bias_in = nn.Parameter(torch.empty(self.hidden))
        self.weight_out = nn.Parameter(torch.empty(d_out, self.hidden))
        self.bias_out = nn.Parameter(torch.empty(d_out))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(_affine(x, self.weight_in, self.bias_in))
        y = F.linear(hidden, self.weight_out, self.bias_out).to(x.dtype)
        return resize(x, self.d_out) + y if self.skip else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, hidden={self.hidden}, skip={self.skip}"

    def initial_values(self, init: Init) -> dict[str, Tensor]:
        if init == "identity" and not self.skip:
            kept = min(self.hidden // 2, self.d_in, self.d_out)
            down = torch.eye(kept, self.d_in, dtype=self.weight_in.dtype, device=self.weight_in.device)
            up = torch.eye(self.d_out, kept, dtype=self.weight_in.dtype, device=self.weight_in.device)
            return self._pairs(up, down) | {"bias_out": torch.zeros_like(self.bias_out)}
        # V stays random where U is zero: with both at zero neither would ever receive a gradient
        return {
            "weight_in": _uniform(self.weight_in),
            "bias_in": _uniform(self.bias_in, fan_in=self.d_in),
        } | _learned_part(self.weight_out, self.bias_out, random=init == "default", names=("weight_out", "bias_out"))

    def set_affine(self, weight: Tensor, bias: Tensor, moments: InputMoments | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = _as_float64(self, weight, bias)
        base = _eye_like(weight) if self.skip else torch.zeros_like(weight)
        up, down, bias = truncated(weight - base, bias, self.hidden // 2, moments)
        self._write(self._pairs(up, down) | {"bias_out": bias})
        return base + up @ down, bias

    def _pairs(self, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        """The values that compute ``up @ down @ x`` [d_out, r] [r, d_in], through r pairs of units.

        Units beyond the pairs listen (random V) and are silent (U = 0), ready to be trained.
        """
        r = down.shape[0]
        weight_in, bias_in = _uniform(self.weight_in), _uniform(self.bias_in, fan_in=self.d_in)
        weight_in[: 2 * r] = torch.cat([down, -down])
        bias_in[: 2 * r] = 0
        weight_out = torch.zeros_like(self.weight_out)
        weight_out[:, : 2 * r] = torch.cat([up, -up], dim=1)
        return {"weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out}


def make_projector(kind: str, d_in: Count, d_out: Count, **options: object) -> Projector:
    """The projector registered as ``kind``.

    Args:
        kind: ``"linear"``, ``"linear-skip"``, ``"two-layer"``, ``"low-rank"``, or a name that a
            plug-in or ``manticore.registry.register("projector", ...)`` has added.
        d_in: width of the source features.
        d_out: width of the target features.
        options: keyword arguments of that kind, such as ``init`` or ``rank``.

    Raises:
        ManticoreError: unknown kind or option, or a value that the kind refuses.
    """
    projector: Projector = make("projector", kind, d_in, d_out, options=options)
    return projector


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def _eye_like(weight: Tensor) -> Tensor:
    """The matrix [d_out, d_in] that pads or cuts."""
    return torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)


def _uniform(parameter: Tensor, fan_in: int | None = None) -> Tensor:
    bound = (fan_in or parameter.shape[-1]) ** -0.5
    return torch.empty_like(parameter, requires_grad=False).uniform_(-bound, bound)


def _learned_part(
    weight: Tensor, bias: Tensor, *, random: bool, names: tuple[str, str] = ("weight", "bias")
) -> dict[str, Tensor]:
    if random:
        values = _uniform(weight), _uniform(bias, fan_in=weight.shape[-1])
    else:
        values = torch.zeros_like(weight), torch.zeros_like(bias)
    return dict(zip(names, values))


def _as_float64(projector: Projector, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    for name, value, expected in (
        ("weight", weight, (projector.d_out, projector.d_in)),
        ("bias", bias, (projector.d_out,)),
    ):
        expect_shape(name, value, expected, "pass weight as [d_out, d_in], bias as [d_out]", where="set_affine")
    return weight.detach().double(), bias.detach().double()
