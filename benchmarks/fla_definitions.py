"""Do our linear-time recurrences compute what flash-linear-attention says they are? Outputs, states, all gradients.

    pip install --no-deps fla-core einops        # its reference functions run on a CPU; torch is left as it is
    python benchmarks/fla_definitions.py

Ours runs in chunks in float64. Theirs are the plain loops that its kernels are tested against; they compute in float32,
so agreement ends at its rounding. Each starts from a state and has a length that is no multiple of a chunk. A
difference is the largest over a tensor, over the tensor's largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fla
import torch
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from measure import write_json
from torch import Tensor

from manticore.stacks.recurrences import channel_decay, delta_rule, scalar_decay

BATCH, HEADS, TOKENS, KEY, VALUE = 2, 3, 70, 16, 12
Function = Callable[..., tuple[Tensor, Tensor]]


def tokens_first(function: Callable[..., Any]) -> Function:
    """Their functions on ``[B, T, H, …]``, called with ``[B, H, T, …]``."""

    def run(*sequences: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
        turned = (x.transpose(1, 2) for x in sequences)
        out, state = function(*turned, initial_state=initial_state, output_final_state=True)
        return out.transpose(1, 2), state

    return run


PAIRS: dict[str, tuple[str, tuple[str, ...], Function, Function]] = {
    "linear attention": (
        "linear-attention",
        (),
        lambda q, k, v, state: scalar_decay(q, k, v, None, state),
        lambda q, k, v, state: tokens_first(naive_recurrent_linear_attn)(q, k, v, initial_state=state),
    ),
    "one decay per head": (
        "mamba-2",
        ("head_decay",),
        lambda q, k, v, decay, state: scalar_decay(q, k, v, decay, state),
        lambda q, k, v, decay, state: tokens_first(naive_recurrent_simple_gla)(q, k, v, decay, initial_state=state),
    ),
    "one decay per channel": (
        "gated-linear-attention",
        ("decay",),
        lambda q, k, v, decay, state: channel_decay(q, k, v, decay, state),
        lambda q, k, v, decay, state: tokens_first(naive_recurrent_gla)(q, k, v, decay, initial_state=state),
    ),
    "the same with a bonus": (
        "rwkv6-time-mixer",
        ("decay", "bonus"),
        lambda q, k, v, decay, bonus, state: channel_decay(q, k, v, decay, state, bonus),
        lambda q, k, v, decay, bonus, state: naive_recurrent_rwkv6(
            q, k, v, decay, bonus, initial_state=state, output_final_state=True
        ),
    ),
    "delta rule": (
        "delta-net",
        ("beta",),
        lambda q, k, v, beta, state: delta_rule(q, k, v, beta, None, state),
        lambda q, k, v, beta, state: delta_rule_recurrence(q, k, v, beta, initial_state=state),
    ),
    "delta rule with decay": (
        "gated-delta-net",
        ("beta", "head_decay"),
        lambda q, k, v, beta, decay, state: delta_rule(q, k, v, beta, decay, state),
        lambda q, k, v, beta, decay, state: tokens_first(naive_recurrent_gated_delta_rule)(
            q, k, v, beta, decay, initial_state=state
        ),
    ),
}
"""What → a layer made of it, its inputs beside queries, keys, values and state, ours, theirs."""


def inputs() -> dict[str, Tensor]:
    """Everything that a recurrence may take, in float32; keys have length 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sequence = (BATCH, HEADS, TOKENS)
    return {
        "q": normal(*sequence, KEY),
        "k": torch.nn.functional.normalize(normal(*sequence, KEY), dim=-1),
        "v": normal(*sequence, VALUE),
        "decay": torch.nn.functional.logsigmoid(normal(*sequence, KEY)),
        "head_decay": torch.nn.functional.logsigmoid(normal(*sequence)),
        "beta": normal(*sequence).sigmoid(),
        "bonus": normal(HEADS, KEY),
        "state": normal(BATCH, HEADS, KEY, VALUE),
    }


def results(function: Function, names: tuple[str, ...], given: dict[str, Tensor]) -> list[Tensor]:
    """Output, last state, and the gradients of a sum that weighs all their elements differently."""
    leaves = {name: given[name].clone().requires_grad_() for name in names}
    out, state = function(*leaves.values())
    weigh = lambda x: (x.double() * torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)).sum()  # noqa: E731
    return [out, state, *torch.autograd.grad(weigh(out) + weigh(state), list(leaves.values()))]


def main() -> None:
    """Print the table and write the JSON."""
    given = inputs()
    # theirs scale queries by 1 / sqrt(K) inside
    scaled = lambda run: lambda q, *rest: run(q * KEY**-0.5, *rest)  # noqa: E731
    rows = []
    print(f"fla {fla.__version__}: {'largest difference of':>24} {'outputs':>9} {'states':>9} {'gradients':>9}")
    for what, (layer, extra, ours, theirs) in PAIRS.items():
        names = ("q", "k", "v", *extra, "state")
        exact = {name: tensor.double() for name, tensor in given.items()}
        pairs = zip(results(scaled(ours), names, exact), results(theirs, names, given))
        out, state, *gradients = (((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        row = {"what": what, "layer": layer, "outputs": out, "states": state, "gradients": max(gradients)}
        rows.append(row)
        print(f"{what:24} {layer:24} {out:9.1e} {state:9.1e} {max(gradients):9.1e}")
    print(write_json("fla_definitions", {"fla": fla.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
