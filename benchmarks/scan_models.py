"""The training steps that ``scan.py`` compares: a Mamba with several scans, and a GPT-Neo of its width."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from scan_methods import BATCH, HEADS, STATE_SIZE, WIDTH
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.models.mamba import modeling_mamba

from manticore.kernels.mamba import use_selective_scan

LAYERS, VOCABULARY = 4, 1024


def training_steps(tokens: int) -> dict[str, Callable[[], None]]:
    """Name → one step on `tokens` tokens: forward, loss, backward, AdamW."""
    input_ids = torch.randint(0, VOCABULARY, (BATCH, tokens), generator=torch.Generator().manual_seed(0))
    native, torch_path, floor = mamba(), mamba(), mamba()
    for model in (native, torch_path):
        use_selective_scan(model)
    return {
        "mamba, native": on_path("native", step(native, input_ids)),
        "mamba, torch": on_path("torch", step(torch_path, input_ids)),
        "mamba, pointwise": without_scan(step(floor, input_ids)),
        "gpt_neo": step(gpt_neo(tokens), input_ids),
    }


def mamba() -> MambaForCausalLM:
    """Mamba in training mode."""
    return MambaForCausalLM(
        MambaConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, state_size=STATE_SIZE)
    ).train()


def gpt_neo(tokens: int) -> GPTNeoForCausalLM:
    """GPT-Neo without dropout, eager, in training mode."""
    config = GPTNeoConfig(
        hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, intermediate_size=4 * WIDTH, vocab_size=VOCABULARY,
        attention_types=[[["global", "local"], LAYERS // 2]], max_position_embeddings=tokens,
        bos_token_id=0, eos_token_id=0, embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return GPTNeoForCausalLM(config).train()


def step(model: PreTrainedModel, input_ids: Tensor) -> Callable[[], None]:
    """One optimizer step of the language-model loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def on_path(name: str, run: Callable[[], None]) -> Callable[[], None]:
    """`run` with the scan on a named path."""

    def run_on_path() -> None:
        os.environ["MANTICORE_SCAN"] = name
        run()

    return run_on_path


def without_scan(run: Callable[[], None]) -> Callable[[], None]:
    """`run` with transformers' scan replaced by two multiplications: what a scan that costs nothing would leave."""

    def pointwise(hidden_states: Tensor, dt: Tensor, *rest: Any, z: Tensor, **others: Any) -> Tensor:
        return hidden_states * dt * z

    def run_without_scan() -> None:
        original = modeling_mamba.mamba_selective_scan
        modeling_mamba.mamba_selective_scan = pointwise
        try:
            run()
        finally:
            modeling_mamba.mamba_selective_scan = original

    return run_without_scan
