"""Checks that a component, taken apart and put together again, is still the same model.

Families differ, and so do versions of transformers. What is run here on random tokens decides whether a component may
go into a hybrid; there is no list of supported families.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from manticore.components.runner import Runner, not_reproducible
from manticore.components.state_cache import own_cache
from manticore.errors import ManticoreError, in_brief
from manticore.seeding import derive_seed

_BATCH, _TOKENS, _PADDED = 2, 9, 3
# relative to the largest logit: another order of summation, as with a cache or with other experts chosen
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

_MOST_ROUNDING = 1e-2
"""More than rounding adds up to in any model seen, less than a lost state changes."""


def self_check(model: PreTrainedModel, runner: Runner, *, seed: int = 0) -> float:
    """Compare the model's own logits with record and inject, plain and left-padded.

    Also checks that it is causal, that padding changes nothing, and that no call leaves anything for the next.

    Args:
        model: the component, in evaluation mode.
        runner: its runner.
        seed: of the random tokens.

    Returns:
        The largest absolute difference of any logit; 0.0 wherever the device computes reproducibly.

    Raises:
        ManticoreError: the logits differ by more than rounding, are not finite, or depend on later tokens, on padding
            or on earlier calls.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive_seed(seed, "self-check"))
    input_ids = torch.randint(0, _rows(model), (_BATCH, _TOKENS), generator=generator).to(device)
    mask = torch.ones_like(input_ids)
    mask[0, :_PADDED] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    worst = 0.0
    first: Tensor | None = None
    with torch.no_grad(), refusing_crashes(model):
        for attention_mask, position_ids in ((None, None), (mask, None), (mask, positions)):
            if position_ids is not None and not runner.accepts_positions:
                continue
            # rows on both sides of a switch are refused: the padded one by itself
            rows = 1 if attention_mask is not None and runner.splits(mask) else _BATCH
            row_mask = None if attention_mask is None else attention_mask[:rows]
            row_positions = None if position_ids is None else position_ids[:rows]
            own = _own_logits(model, input_ids[:rows], row_mask, row_positions)
            ours = logits_of(runner, input_ids[:rows], row_mask, row_positions)
            first = own if first is None else first
            if not bool(torch.isfinite(own).all()):
                name = model.config.name_or_path or type(model).__name__
                raise ManticoreError(f"component {name}: its logits are NaN or infinite. Fix: give intact weights")
            worst = max(worst, float((own - ours).abs().max()))
            scale = float(own.abs().max())
            # bit-equal on CPU in float32; kernels on other devices may pick another order of summation
            tolerance = 0.0 if device.type == "cpu" and own.dtype == torch.float32 else 1e-2 * scale
            if worst > tolerance:
                what = "with left padding" if attention_mask is not None else "on plain input"
                raise ManticoreError(not_reproducible(model, f"its logits {what} differ by {worst:.2g}"))
            if attention_mask is None:
                _refuse_side_effects(runner, input_ids, tolerance)
                later = input_ids.clone()
                later[:, _PADDED:] = (later[:, _PADDED:] + 1) % _rows(model)
                change = (_own_logits(model, later, None, None) - own)[:, :_PADDED].abs().max()
                if not float(change) <= _TOLERANCE[model.dtype] * scale:
                    raise ManticoreError(not_reproducible(model, "its logits depend on later tokens (not causal)"))
        # in half precision rounding alone sends tokens to other experts
        if torch.finfo(model.dtype).bits >= 32:
            # by itself: beside a longer row some rotary embeddings turn otherwise
            row_positions = positions[:1] if runner.accepts_positions else None
            padded = logits_of(runner, input_ids[:1], mask[:1], row_positions)[:, _PADDED:]
            alone = _own_logits(model, input_ids[:1, _PADDED:], None, None)
            refuse_difference(model, padded, alone, "with left padding differ from those without")
        again = _own_logits(model, input_ids, None, None)
        if first is None or not float((again - first).abs().max()) <= tolerance:
            raise ManticoreError(not_reproducible(model, "its logits depend on earlier calls"))
    return worst


def refuse_difference(model: PreTrainedModel, found: Tensor, expected: Tensor, what: str) -> None:
    """Refuse a component whose logits differ by more than rounding in the precision they are in.

    Raises:
        ManticoreError: they do; ``what`` says which of its logits differ from which.
    """
    scale = float(expected.abs().max())
    error = float((found - expected).abs().max())
    if not error <= _TOLERANCE[expected.dtype] * scale:
        raise ManticoreError(not_reproducible(model, f"its logits {what}, by {error:.2g} of {scale:.2g}"))


def _refuse_side_effects(runner: Runner, input_ids: Tensor, tolerance: float) -> None:
    """The upper layers must give the same whether or not, and on whatever, the lower ones ran before them."""
    middle = runner.num_layers // 2
    why = "its layers hand each other more than the hidden state"
    outputs = []
    for before in (False, True):
        recording = runner.record(input_ids)
        if before:
            runner.run(recording, -recording.hidden, 0, middle)
        try:
            outputs.append(runner.run(recording, recording.hidden, middle, runner.num_layers))
        except (AttributeError, LookupError, TypeError) as error:
            raise ManticoreError(not_reproducible(runner.model, f"{why} ({in_brief(error)})")) from error
    if not float((outputs[0] - outputs[1]).abs().max()) <= tolerance:
        raise ManticoreError(not_reproducible(runner.model, why))


def continues_by_one_token_only(runner: Runner, *, seed: int = 0) -> bool:
    """Whether several tokens after a cached prompt come out wrong, as with layers that restart their state.

    In half precision rounding hides the difference, so there every component with recurrent layers counts as such.

    Raises:
        ManticoreError: even one token at a time comes out wrong.
    """
    model = runner.model
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive_seed(seed, "continuation"))
    input_ids = torch.randint(0, _rows(model), (1, _TOKENS), generator=generator).to(device)
    positions = torch.arange(_TOKENS, device=device)[None]
    with torch.no_grad(), refusing_crashes(model):
        whole = logits_of(runner, input_ids)
        scale = float(whole.abs().max())

        def error(step: int) -> float:
            cache = own_cache(model.config)
            pieces = []
            for start, stop in [(0, _PADDED), *((i, min(i + step, _TOKENS)) for i in range(_PADDED, _TOKENS, step))]:
                pieces.append(logits_of(runner, input_ids[:, start:stop], None, positions[:, start:stop], cache))
            return float((torch.cat(pieces, 1) - whole).abs().max()) / scale

        single = error(1)
        # some families keep their residual stream and logits in float32, whatever their weights are in
        if not single <= _TOLERANCE[model.dtype] and not single <= rounding_of_its_own(runner, input_ids, positions):
            raise ManticoreError(not_reproducible(model, "its logits with a cache differ from those without"))
        if torch.finfo(model.dtype).bits < 32:
            layers = DynamicCache(config=model.config).layers
            return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
        # rounding alone keeps the errors within a small factor; a state that restarts, once or often, does not
        several = max(error(_TOKENS), error(2))
        return not several <= 20 * max(single, torch.finfo(whole.dtype).eps)


def rounding_of_its_own(runner: Runner, input_ids: Tensor, positions: Tensor) -> float:
    """Twice what the model's own decoding with a cache differs by, relative to the largest logit.

    In deep recurrent models rounding grows from layer to layer. Where it exceeds :data:`_MOST_ROUNDING` it is taken for
    an error, and 0.0 is returned.
    """
    model = runner.model
    whole = _own_logits(model, input_ids, None, None)
    new_cache: Any = getattr(model, "new_cache", partial(DynamicCache, config=model.config))
    cache, pieces = new_cache(), []
    for start, stop in [(0, _PADDED), *((i, i + 1) for i in range(_PADDED, input_ids.shape[1]))]:
        arguments: dict[str, Any] = {"use_cache": True, runner.cache_argument: cache}
        if runner.accepts_positions:
            arguments["position_ids"] = positions[:, start:stop]
        pieces.append(model(input_ids=input_ids[:, start:stop], **arguments).logits)
    own = float((torch.cat(pieces, 1) - whole).abs().max()) / float(whole.abs().max())
    return 2 * own if own <= _MOST_ROUNDING else 0.0


def logits_of(
    runner: Runner,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """All layers of one component through its runner: logits ``[B, T, V]``."""
    return runner.logits(
        lambda recording: runner.run(recording, recording.hidden, 0, runner.num_layers),
        input_ids,
        attention_mask,
        position_ids,
        cache=cache,
        use_cache=cache is not None,
    )


def _own_logits(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if position_ids is not None:
        arguments["position_ids"] = position_ids
    return model(**arguments).logits


@contextmanager
def refusing_crashes(model: PreTrainedModel) -> Iterator[None]:
    """A family whose code cannot run in pieces, or on token ids alone, is refused like one that runs wrong."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ManticoreError(not_reproducible(model, in_brief(f"{type(error).__name__}: {error}"))) from error


def _rows(model: PreTrainedModel) -> int:
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])
