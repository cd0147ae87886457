"""The ways to run a selective scan that ``scan.py`` compares, and the least time that one core could need.

Shapes and strides are those that transformers' Mamba mixer hands to its scan: u and delta contiguous, z, B and C views
into the outputs of projections, steps before channels. Shapes: B batch, D channels, L steps, N state size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from manticore.kernels.native_build import instruction_set, load_library
from manticore.kernels.scan import selective_scan

BATCH, CHANNELS, STATE_SIZE = 2, 512, 16
WIDTH, HEADS = 256, 8
"""Of the GPT-Neo block: a Mamba of this width scans twice as many channels."""
FORWARD_OPERATIONS, BACKWARD_OPERATIONS = 4, 12
"""Multiplications and multiply-adds per state element, beside one exponential in each pass (see scan.c)."""

Scan = Callable[..., Any]


def inputs(steps: int) -> dict[str, Tensor]:
    """Leaves of the size that a mixer sees, by transformers' argument names."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    projected = normal(BATCH, steps, 2 * CHANNELS).transpose(1, 2)
    coefficients = normal(BATCH, steps, 2 * STATE_SIZE).transpose(1, 2)
    tensors = {
        "hidden_states": normal(BATCH, CHANNELS, steps),
        "dt": normal(BATCH, CHANNELS, steps),
        "A": -torch.arange(1, STATE_SIZE + 1, dtype=torch.float32).expand(CHANNELS, -1).contiguous(),
        "B": coefficients[:, :STATE_SIZE],
        "C": coefficients[:, STATE_SIZE:],
        "D": normal(CHANNELS),
        "z": projected[:, CHANNELS:],
        "delta_bias": normal(CHANNELS) - 4,
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def unbound_scan(
    hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:  # fmt: skip
    """transformers' loop with one change: the steps are taken apart once, by ``unbind``, not selected one by one."""
    assert delta_softplus
    dt = F.softplus(dt + delta_bias[:, None])
    decay = torch.exp(A[None, :, None, :] * dt[..., None])  # [B, D, L, N]
    inflow = dt[..., None] * B.transpose(1, 2)[:, None] * hidden_states[..., None]
    state = torch.zeros_like(inflow[:, :, 0])
    outputs = []
    for decay_t, inflow_t, C_t in zip(decay.unbind(2), inflow.unbind(2), C.unbind(2)):
        state = decay_t * state + inflow_t
        outputs.append((state @ C_t[..., None])[..., 0])
    out = torch.stack(outputs, dim=-1) + hidden_states * D[:, None]
    return out * F.silu(z)


def mambapy_scan(**tensors: Any) -> Tensor:
    """transformers' own way to mambapy's parallel scan."""
    return mamba_selective_scan(**tensors, use_mambapy=True)


def manticore_scan(path: str) -> Scan:
    """``selective_scan`` on a named path."""

    def scan(hidden_states: Tensor, dt: Tensor, **rest: Any) -> Tensor:
        os.environ["MANTICORE_SCAN"] = path
        result = selective_scan(hidden_states, dt, **rest)
        assert isinstance(result, Tensor)
        return result

    return scan


def methods() -> dict[str, Scan | str]:
    """Name → the scan, or why it cannot run here."""
    return {
        "transformers": mamba_selective_scan,
        "unbind": unbound_scan,
        "mambapy": mambapy_scan if find_spec("mambapy") else "not installed",
        "torch": manticore_scan("torch"),
        "native": manticore_scan("native"),
    }


def passes(scan: Scan, steps: int) -> dict[str, Callable[[], None]]:
    """The forward pass without gradients, and forward and backward with all eight."""
    tensors = inputs(steps)
    grad_out = torch.randn(BATCH, CHANNELS, steps)

    def forward() -> None:
        with torch.no_grad():
            scan(**tensors, delta_softplus=True)

    def both() -> None:
        out = scan(**tensors, delta_softplus=True)
        torch.autograd.grad(out, list(tensors.values()), grad_out)

    return {"forward": forward, "both": both}


def block_passes(steps: int) -> dict[str, Callable[[], None]]:
    """The same for one layer of a GPT-Neo in eager mode, with the gradients of all weights and of its input."""
    config = GPTNeoConfig(
        hidden_size=WIDTH, num_layers=1, num_heads=HEADS, intermediate_size=4 * WIDTH, vocab_size=16,
        attention_types=[[["global"], 1]], max_position_embeddings=steps, bos_token_id=0, eos_token_id=0,
        embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    block = GPTNeoBlock(config, layer_id=0)
    hidden = torch.randn(BATCH, steps, WIDTH, requires_grad=True)
    grad_out = torch.randn(BATCH, steps, WIDTH)
    leaves = [hidden, *block.parameters()]

    def forward() -> None:
        with torch.no_grad():
            block(hidden)

    def both() -> None:
        torch.autograd.grad(block(hidden)[0], leaves, grad_out)

    return {"forward": forward, "both": both}


def rates() -> dict[str, float]:
    """Exponentials and multiply-adds per second and core, measured; the best of several tries.

    Raises:
        BuildError: there is no compiler.
    """
    library = load_library(Path(__file__).with_name("scan_rates.c"), instruction_set())
    found = {}
    for name in ("exp", "multiply_add"):
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            getattr(library, f"run_{name}")(repeats := 20_000)
            best = min(best, time.process_time() - start)
        found[f"{name}_per_second"] = repeats * library.resident_lanes() / best
    return found


def op_count_bound(steps: int, rate: dict[str, float]) -> dict[str, float]:
    """Least seconds for both passes: arithmetic on the states alone; no loads, stores, softplus or gate."""
    elements = BATCH * CHANNELS * steps * STATE_SIZE

    def seconds(exponentials: int, operations: int) -> float:
        return elements * (exponentials / rate["exp_per_second"] + operations / rate["multiply_add_per_second"])

    return {
        "forward": seconds(1, FORWARD_OPERATIONS),
        "both": seconds(2, FORWARD_OPERATIONS + BACKWARD_OPERATIONS),
    }
