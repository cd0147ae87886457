"""Named architectures: layer lists of the MAD papers at their scale, and of MambaFormer, RWKV-7 and Kimi Linear.

Sources: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", 2024 (the striped and plain ones; the
lists of hyena experts, Mamba and gated linear attention follow its rules, since it does not print them); Park et al.,
"Can Mamba Learn How to Learn?", 2024 (MambaFormer); Press et al., "Improving Transformer Models by Reordering their
Sublayers", 2020 (the sandwich); Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025; Kimi Team,
"Kimi Linear: An Expressive, Efficient Attention Architecture", 2025 (its list; the MLPs are dense ones, and attention
keeps all of its keys and values, where the paper has experts and a compressed cache).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manticore import registry
from manticore.stacks.configuration import StackConfig


@dataclass(frozen=True)
class Preset:
    """A layer list, with options and sharing where they are not the layers' defaults."""

    layers: tuple[str | tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], dict[str, Any]], ...]


TRANSFORMER = Preset(("mh-attention", "swiglu") * 2)
HYENA = Preset(("hyena", "swiglu") * 2)
MH_HYENA = Preset(("mh-hyena", "swiglu") * 2)
STRIPED_MH_HYENA = Preset(("mh-hyena", "swiglu", "mh-attention", "swiglu"))
STRIPED_MH_HYENA_MOE = Preset(("mh-hyena", "moe-mlp", "mh-attention", "moe-mlp"))
STRIPED_HYENA_EXPERTS_MOE = Preset(("hyena-experts", "moe-mlp", "mh-attention", "moe-mlp"))
MAMBA = Preset(("mamba",) * 4)
STRIPED_MAMBA = Preset(("mamba", "mamba", "mh-attention", "swiglu"))
GLA = Preset(("gated-linear-attention", "swiglu") * 2)
MH_GLA = Preset(("mh-gated-linear-attention", "swiglu") * 2)
# the first Mamba layer stands for an embedding of positions
MAMBAFORMER = Preset(("mamba", *(("mh-attention", {"rotary": False}), "mamba") * 2))
# mixers of tokens below, of channels above, and both in turns between them: k = 1 of two of each
SANDWICH_TRANSFORMER = Preset(("mh-attention", "mh-attention", "swiglu", "swiglu"))
RWKV7 = Preset(
    (
        "rwkv7-time-mixer",
        "rwkv7-channel-mixer",
        ("rwkv7-time-mixer", {}, {"features_of": 0, "features": ["values"]}),
        "rwkv7-channel-mixer",
    )
)
# three layers of it for one of attention without positions
KIMI_LINEAR = Preset((*("kimi-delta-attention", "swiglu") * 3, ("mh-attention", {"rotary": False}), "swiglu"))


def preset_config(name: str, **settings: Any) -> StackConfig:
    """The configuration of a named architecture.

    Args:
        name: such as ``"transformer"``; ``manticore ls stacks`` lists them.
        settings: of :class:`~manticore.StackConfig`, such as ``vocab_size``; ``layer_options`` are added to the
            architecture's own.

    Raises:
        ManticoreError: no such architecture, or settings that a stack cannot have.
    """
    preset: Preset = registry.resolve("stack", name)
    given: Mapping[str, Mapping[str, Any]] = settings.pop("layer_options", None) or {}
    own = StackConfig(layers=list(preset.layers)).entries
    layers = [entry.with_options({**entry.options, **given.get(entry.name, {})}).written for entry in own]
    return StackConfig(layers=layers, layer_options=given, **settings)
