"""A hybrid around loaded components."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM


def build(config: ManticoreConfig, components: Sequence[PreTrainedModel]) -> ManticoreForCausalLM:
    """A hybrid around loaded components; only projectors and weights are initialised."""
    with no_init_weights():
        hybrid = ManticoreForCausalLM(config, components)
    for projector in hybrid.mixing.projectors.values():
        projector.to(components[0].dtype).reset_parameters()  # type: ignore[operator]
    hybrid.mixing.reset_mixture()
    return hybrid
