"""Do our linear-time recurrences compute what flash-linear-attention says they are? Outputs, states, all gradients.

    pip install --no-deps flash-linear-attention fla-core einops    # torch is left as it is
    python benchmarks/fla_definitions.py

Ours runs in chunks, in float64 and in float32. Theirs are the plain loops that its kernels are tested against, which
run on a CPU; they compute in float32, so agreement ends at its rounding. Each starts from a state and has a length that
is no multiple of a chunk. A difference is the largest over a tensor, over the tensor's largest value. Of its layers,
whose kernels need a GPU, the parameters are counted. It fails where ours in float32 differs by more than the bars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fla
import torch
from fla.layers.kda import KimiDeltaAttention
from fla.layers.rwkv7 import RWKV7Attention
from fla.models.rwkv7.modeling_rwkv7 import RWKV7FeedForward
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from measure import write_json
from torch import Tensor

from manticore.stacks.catalogue import measured
from manticore.stacks.recurrences import channel_decay, channel_delta_rule, delta_rule, scalar_decay

BARS = {"outputs": 1e-6, "states": 1e-6, "gradients": 1e-5}
"""How far ours in float32 may be from theirs, in shares of the largest value."""
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
    "delta rule with decay per channel": (
        "kimi-delta-attention",
        ("beta", "decay"),
        lambda q, k, v, beta, decay, state: channel_delta_rule(
            q, beta[..., None] * k, v, -decay.exp() * k, decay, state=state
        ),
        lambda q, k, v, beta, decay, state: tokens_first(naive_recurrent_kda)(
            q, k, v, decay, beta, initial_state=state
        ),
    ),
    "decay per channel and rank one": (
        "rwkv7-time-mixer",
        ("removal", "rate", "bounded_decay"),
        lambda q, k, v, removal, rate, decay, state: channel_delta_rule(
            q, k, v, -removal, decay, removal * rate, state
        ),
        lambda q, k, v, removal, rate, decay, state: dplr_recurrence(
            q, k, v, -removal, removal * rate, decay, initial_state=state
        ),
    ),
}
"""What → a layer made of it, its inputs beside queries, keys, values and state, ours, theirs."""


def parameters() -> list[dict[str, Any]]:
    """Parameters of our layers beside those of its layers of the same sizes."""
    width, heads = 256, 4
    theirs: dict[str, tuple[str, tuple[str, ...], torch.nn.Module]] = {
        "Kimi delta attention": (
            "kimi-delta-attention",
            (),
            KimiDeltaAttention(hidden_size=width, head_dim=width // heads, num_heads=heads),
        ),
        "RWKV-7, first layer": (
            "rwkv7-time-mixer",
            (),
            RWKV7Attention(hidden_size=width, head_dim=width // heads, layer_idx=0, num_hidden_layers=2),
        ),
        "RWKV-7, another layer": (
            "rwkv7-time-mixer",
            ("values",),
            RWKV7Attention(hidden_size=width, head_dim=width // heads, layer_idx=1, num_hidden_layers=2),
        ),
        "RWKV-7, channel mixer": (
            "rwkv7-channel-mixer",
            (),
            RWKV7FeedForward(hidden_size=width, hidden_ratio=4, layer_idx=0, num_hidden_layers=2),
        ),
    }
    rows = []
    for what, (layer, taken, module) in theirs.items():
        options = {} if "channel" in layer else {"num_heads": heads}
        ours = measured(layer, width, width, options, taken)
        counts = {"ours": ours, "theirs": module}
        rows.append(
            {"what": what, "layer": layer} | {k: sum(p.numel() for p in m.parameters()) for k, m in counts.items()}
        )
    return rows


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
        "removal": torch.nn.functional.normalize(normal(*sequence, KEY), dim=-1),
        "rate": normal(*sequence, KEY).sigmoid(),
        "bounded_decay": -0.6065306597126334 * normal(*sequence, KEY).sigmoid(),
        "state": normal(BATCH, HEADS, KEY, VALUE),
    }


def results(function: Function, names: tuple[str, ...], given: dict[str, Tensor]) -> list[Tensor]:
    """Output, last state, and the gradients of a sum that weighs all their elements differently."""
    leaves = {name: given[name].clone().requires_grad_() for name in names}
    out, state = function(*leaves.values())
    weigh = lambda x: (x.double() * torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)).sum()  # noqa: E731
    return [out, state, *torch.autograd.grad(weigh(out) + weigh(state), list(leaves.values()))]


def differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    """Of outputs, of states, and the largest of all gradients, in shares of the largest value."""
    out, state, *gradients = (((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))
    return {"outputs": out, "states": state, "gradients": max(gradients)}


def main() -> None:
    """Print the tables and write the JSON.

    Raises:
        SystemExit: ours in float32 differs by more than the bars, or a layer has another number of parameters.
    """
    given = inputs()
    # theirs scale queries by 1 / sqrt(K) inside
    scaled = lambda run: lambda q, *rest: run(q * KEY**-0.5, *rest)  # noqa: E731
    rows, over = [], []
    print(f"fla {fla.__version__}: largest differences of" + " " * 15 + "ours in float64" + " " * 16 + "in float32")
    print(f"{'':33} {'':24}" + f" {'outputs':>8} {'states':>8} {'gradients':>9}" * 2)
    for what, (layer, extra, ours, theirs) in PAIRS.items():
        names = ("q", "k", "v", *extra, "state")
        exact = {name: tensor.double() for name, tensor in given.items()}
        expected = results(theirs, names, given)
        found, single = (differences(results(scaled(ours), names, x), expected) for x in (exact, given))
        rows.append({"what": what, "layer": layer, **found, "float32": single})
        over += [f"{layer} {name}" for name, bar in BARS.items() if single[name] > bar]
        cells = [f" {x['outputs']:8.1e} {x['states']:8.1e} {x['gradients']:9.1e}" for x in (found, single)]
        print(f"{what:33} {layer:24}" + "".join(cells))
    counts = parameters()
    print(f"\n{'parameters':33} {'':24} {'ours':>8} {'theirs':>8}")
    for row in counts:
        print(f"{row['what']:33} {row['layer']:24} {row['ours']:8,} {row['theirs']:8,}")
        over += [f"{row['what']} parameters"] if row["ours"] != row["theirs"] else []
    print(write_json("fla_definitions", {"fla": fla.__version__, "bars": BARS, "rows": rows, "parameters": counts}))
    if over:
        raise SystemExit(f"differs: {', '.join(over)}")


if __name__ == "__main__":
    main()
