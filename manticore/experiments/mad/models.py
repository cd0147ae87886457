"""What `manticore mad` can score, by a short name: stacks, new models of a family, saved models, and hybrids of these.

    transformer        a named stack; `manticore ls stacks` lists them
    stack:mamba,swiglu a stack of these layers, from the bottom to the top
    hf:gpt_neo         a new model of a transformers family at the scale of MAD: two layers, width 128
    hf:mamba:4         the same with four layers
    ./folder           a saved model or hybrid, with its weights
    transformer+mamba  a hybrid from scratch, kept soft: all components at equal weights, two blocks

Every setting of MAD has its own vocabulary, so embeddings and head are always new. Compression is made for
auto-encoders, which only stacks can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manticore import registry
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.tasks.mad.protocol import LinearInit
from manticore.tasks.task import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH = 128
LAYERS = 2
NUM_BLOCKS = 2

_FAMILY, _LAYERS = "hf:", "stack:"
_JOIN = "+"


@dataclass(frozen=True)
class Candidate:
    """A model that MAD scores; a new one is built for every setting."""

    name: str
    mixing: str = "translated"
    """How a hybrid from scratch mixes its components."""

    def can_be(self, backbone: Backbone) -> bool:
        """Whether there is a form of it that reads in this way."""
        return backbone == "causal" or _is_stack(self.name)

    def build(
        self,
        *,
        vocab_size: int,
        positions: int,
        seed: int,
        backbone: Backbone = "causal",
        linear_init: LinearInit = "uniform",
    ) -> PreTrainedModel:
        """A model with `vocab_size` tokens for sequences of up to `positions` tokens, in evaluation mode.

        Args:
            vocab_size: rows of embeddings and head.
            positions: the longest sequence.
            seed: of everything that is new.
            backbone: how it reads, see :meth:`can_be`.
            linear_init: how the linear maps of stacks that read causally start. Those of auto-encoders always start
                from N(0, 0.02) with biases 0, as in the benchmark's code.

        Raises:
            ManticoreError: there is no such model, or it has too few positions.
        """
        parts = self.name.split(_JOIN)
        seeds = [derive_seed(seed, "mad weights", part) for part in range(len(parts))]
        if len(parts) == 1:
            return _single(self.name, vocab_size, positions, seeds[0], backbone, linear_init)
        from manticore.hybrid.combine import combine

        models = [_single(part, vocab_size, positions, own, "causal", linear_init) for part, own in zip(parts, seeds)]
        return combine(models, num_blocks=NUM_BLOCKS, mixing=self.mixing, vocab_size=vocab_size, seed=seed)


def candidates(names: list[str], *, mixing: str = "translated") -> list[Candidate]:
    """The models of these names; nothing is built yet.

    Raises:
        ManticoreError: a name twice, or one that cannot be read.
    """
    for name in names:
        if names.count(name) > 1:
            raise ManticoreError(f"mad: {name} is named twice. Fix: name each model once")
        for part in name.split(_JOIN):
            if part.startswith(_FAMILY):
                layers = _family_and_layers(part)[1]
                if _JOIN in name and layers < NUM_BLOCKS:
                    raise ManticoreError(
                        f"mad: hybrids A+B have {NUM_BLOCKS} blocks, but {part} has fewer layers. "
                        f"Fix: {NUM_BLOCKS} layers or more"
                    )
            elif not part:
                raise ManticoreError(f"mad: {name!r} has an empty part. Fix: join models like A+B")
    return [Candidate(name, mixing) for name in names]


def _is_stack(name: str) -> bool:
    return name in registry.entries("stack") or (name.startswith(_LAYERS) and _JOIN not in name)


def _single(
    name: str, vocab_size: int, positions: int, seed: int, backbone: Backbone, linear_init: LinearInit
) -> PreTrainedModel:
    if _is_stack(name):
        return _stack(name, vocab_size, positions, seed, backbone, linear_init)
    make = _new if name.startswith(_FAMILY) else _saved
    model = make(name, vocab_size, positions, seed)
    _check_causal(model, name, vocab_size)
    return model


def _stack(
    name: str, vocab_size: int, positions: int, seed: int, backbone: Backbone, linear_init: LinearInit
) -> PreTrainedModel:
    from manticore.stacks.autoencoder import StackForAutoEncoding
    from manticore.stacks.configuration import StackConfig
    from manticore.stacks.modeling import StackForCausalLM
    from manticore.stacks.presets import preset_config

    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
        "linear_init": "normal" if backbone == "autoencoder" else linear_init,
    }
    if name.startswith(_LAYERS):
        config = StackConfig(layers=name.removeprefix(_LAYERS).split(","), **sizes)
    else:
        config = preset_config(name, **sizes)
    kind = StackForAutoEncoding if backbone == "autoencoder" else StackForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


def _new(name: str, vocab_size: int, positions: int, seed: int) -> PreTrainedModel:
    from manticore.training.shapes import build, small_config

    family, layers = _family_and_layers(name)
    shape = small_config(family, layers=layers, width=WIDTH, positions=positions)
    shape.vocab_size = vocab_size
    # the family's own would lie outside this vocabulary, or mark tokens that mean something else
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(shape, token, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(shape).eval()


def _saved(name: str, vocab_size: int, positions: int, seed: int) -> PreTrainedModel:
    from manticore.components.vocabulary import with_vocabulary
    from manticore.hybrid.modeling import ManticoreForCausalLM
    from manticore.training.prepare import positions as positions_of
    from manticore.training.saved_models import load_model

    if "/" not in name and not Path(name).exists():
        raise ManticoreError(
            f"mad: {name!r} is not a stack, a folder or a hub id{registry.did_you_mean(name, _names())}"
        )
    model, _ = load_model(name)
    limit = positions_of(model)
    if limit is not None and limit < positions:
        raise ManticoreError(
            f"mad: {name} has {limit} positions, but sequences have {positions} tokens. "
            "Fix: another model or other tasks"
        )
    if not model.can_generate():
        raise ManticoreError(
            f"mad: {name} is a {type(model).__name__}, the tasks ask for a token at every position. "
            "Fix: give a causal language model"
        )
    if isinstance(model, ManticoreForCausalLM):
        model.with_vocabulary(vocab_size, seed=seed)
    else:
        with_vocabulary(model, vocab_size, seed=seed)
    return model.eval()


@torch.no_grad()
def _check_causal(model: PreTrainedModel, name: str, vocab_size: int) -> None:
    """Refuse a model whose outputs depend on later tokens: it would read the answers of every task."""
    ids = torch.arange(8)[None] % vocab_size
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % vocab_size
    before, after = (model(input_ids=x, use_cache=False).logits[:, :-1] for x in (ids, changed))
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-5):
        raise ManticoreError(
            f"mad: {name} sees later tokens, so it would read the answers. Fix: a model that is causal as it is built"
        )


def _names() -> list[str]:
    return [*registry.entries("stack"), "stack:LAYER,LAYER", "hf:FAMILY"]


def _family_and_layers(name: str) -> tuple[str, int]:
    family, _, layers = name.removeprefix(_FAMILY).partition(":")
    if not family or (layers and (not layers.isdigit() or int(layers) < 1)):
        raise ManticoreError(
            f"mad: cannot read {name!r} (expected hf:FAMILY or hf:FAMILY:LAYERS, such as hf:mamba:4). "
            "Fix: a family of transformers and at least one layer"
        )
    return family, int(layers or LAYERS)
