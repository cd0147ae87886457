"""Three parents of unequal family, width and depth, and hybrids of them; no depth divides into three blocks evenly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hybrids import BLOCKS, Build
from torch import Tensor
from transformers import PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.modeling import ManticoreForCausalLM


@pytest.fixture(scope="session")
def parents() -> list[PreTrainedModel]:
    """A GPT-Neo, a Mamba and a Llama; read them, never change them."""
    return [
        tiny_model("gpt_neo", seed=1),
        tiny_model("mamba", seed=2, num_hidden_layers=5),
        tiny_model("llama", seed=3, hidden_size=48, num_hidden_layers=7),
    ]


@pytest.fixture(scope="session")
def build(parents: list[PreTrainedModel]) -> Build:
    """A hybrid of the first K parents with projectors that do something."""

    def make(
        mixing: str = "translated",
        components: int = 2,
        models: Sequence[PreTrainedModel] | None = None,
        **given: object,
    ) -> ManticoreForCausalLM:
        chosen = list(models) if models is not None else parents[:components]
        settings = {"num_blocks": BLOCKS, "mixing": mixing, "check": False, **given}
        hybrid = manticore.combine(chosen, **settings)  # type: ignore[arg-type]
        for seed, parameter in enumerate(hybrid.mixing.projectors.parameters()):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
        return hybrid

    return make


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """``[2, 11]``: longer than the windows of the tiny GPT-Neo."""
    return torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def left_padding(ids: Tensor) -> dict[str, Tensor]:
    """The mask that hides three tokens of the first sequence, and the positions that follow from it."""
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
