"""Fits a twin's mixers to what its parent's attention does: layer by layer, all in one pass over the parent.

The parent reads calibration text. Each attention that a mixer stands for shows what it is given and what it gives; the
mixer is given the same, and learns to give the same. Only mixers train. A layer's error is relative: the squared
distance over the squared length of what attention gives, so that layers of different scales count alike. It is
propagated back as soon as the layer has run, so that one layer's activations are held at a time.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from manticore.components.masters import held_in_float32
from manticore.components.runner import Runner
from manticore.errors import ManticoreError
from manticore.training.calibration import Packs, calibration_packs
from manticore.training.descent import Clock, Progress, drawn
from manticore.twin_settings import Twin
from manticore.twins.attention_maps import find_attention, hidden_of
from manticore.twins.closed_form import TOKENS, OutputFit
from manticore.twins.mixers import PADDING, SlidingAttention, TwinMixer
from manticore.twins.modeling import HandsOn, TwinForCausalLM
from manticore.twins.stopped_fit import StoppedFit

Errors: TypeAlias = dict[int, float]


@dataclass(frozen=True)
class TwinFit:
    """What :func:`fit_twin` did. Errors are on held-out text, relative: 0 is the parent's attention, 1 is silence."""

    before: Errors
    """Per layer, of the mixers with the parent's maps, before the closed form."""
    after: Errors
    tokens: int
    """Tokens of the text that the mixers were fitted on."""
    heldout_tokens: int
    steps: int
    bos: str | None
    """The BOS token that every pack of text began with, empty for none; None for a tokenised data set."""
    seconds: float
    """Of this process; what a stopped one had done before is not counted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def fit_twin(
    twin: TwinForCausalLM,
    parent: PreTrainedModel,
    settings: Twin,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> TwinFit:
    """Teach a twin's mixers, in place, what the attention did that they stand for; each sequence is read once.

    Args:
        twin: what :func:`manticore.twin` made.
        parent: the parent that it was made of, which stays as it is.
        settings: the text, and how it is read.
        seed: decides which text is taken, and in which order.
        checkpoint: a file for what a stopped fit goes on from, to the same numbers; None keeps none. It is removed in
            the end.
        progress: called after each batch.

    Raises:
        ManticoreError: a model that is not the twin's parent, unusable text, errors that are not finite, a checkpoint
            of another fit.
    """
    started = time.perf_counter()
    _check_parent(twin, parent)
    assert settings.text is not None
    fitted, heldout = calibration_packs(
        settings.text,
        text_column=settings.text_column,
        tokens=settings.tokens,
        holdout=settings.holdout,
        length=settings.length,
        bos=settings.bos,
        seed=seed,
        tokenizer=twin.tokenizer,
    )
    batch_size, lr = settings.batch_size, settings.lr
    steps, per_pass = -(-len(fitted) // batch_size), -(-len(heldout) // batch_size)
    clock = Clock(progress, steps + 2 * per_pass)
    mixers = nn.ModuleDict({str(index): mixer for index, mixer in twin.mixers.items()})
    trained = [(parameter, parameter.requires_grad) for parameter in twin.parameters()]
    twin.requires_grad_(False)
    table: Any = parent.get_input_embeddings()
    key = {"twin": twin.config.to_json_string(), "seed": seed, "lr": lr, "batch_size": batch_size}
    try:
        with held_in_float32(mixers), _beside(parent, twin) as layers:
            mixers.requires_grad_(True)
            optimizer = torch.optim.AdamW(mixers.parameters(), lr=lr, weight_decay=0.0)
            stopped = (
                None
                if checkpoint is None
                else StoppedFit(Path(checkpoint), key, [fitted.input_ids, table.weight.detach()])
            )
            found = None if stopped is None else stopped.load(mixers, optimizer)
            if found is not None:
                begun, before = found
            else:
                begun, before = 0, _errors(parent, layers, heldout, batch_size, clock)
                _start(parent, layers, fitted, heldout, before, batch_size)
            clock.step = per_pass + begun
            for step, batch in enumerate(drawn(fitted, steps, batch_size, seed, "twin")):
                if step < begun:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 - step / steps)
                error = _step(parent, layers, batch, optimizer)
                if not math.isfinite(error):
                    raise ManticoreError(f"twin: the error is {error} in step {step + 1}. Fix: a smaller lr")
                if stopped is not None and (step + 1) % settings.save_steps == 0:
                    stopped.keep(step + 1, before, mixers, optimizer)
                clock.tick(error=error)
            after = _errors(parent, layers, heldout, batch_size, clock)
    finally:
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
    if stopped is not None:
        stopped.remove()
    return TwinFit(before, after, fitted.tokens, heldout.tokens, steps, fitted.bos, time.perf_counter() - started)


class _Layer:
    """Stands beside one attention of the parent while it runs, and compares a mixer with it."""

    def __init__(self, mixer: TwinMixer) -> None:
        self.mixer, self.learns = mixer, False
        self.output: OutputFit | None = None
        """Of the closed form, while it is fitted."""
        self.distance = self.length = 0.0

    def __call__(self, _attention: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        hidden, wanted = hidden_of(args, kwargs).float(), output[0].float()
        padding = kwargs.get(PADDING)
        real = None if padding is None else padding[:, :, None].to(wanted.dtype)
        with torch.set_grad_enabled(self.learns):
            given, _ = self.mixer(hidden, **{name: value for name, value in kwargs.items() if name != "hidden_states"})
            missed = (given - wanted) if real is None else (given - wanted) * real
            distance = missed.square().sum()
            length = (wanted if real is None else wanted * real).square().sum()
            if self.learns:
                (distance / length).backward()
        if self.output is not None:
            self.output.add(wanted, real)
        self.distance += float(distance)
        self.length += float(length)

    def taken(self) -> float:
        """The relative error since it was last asked for."""
        error = self.distance / self.length if self.length else math.nan
        self.distance = self.length = 0.0
        return error


@contextmanager
def _beside(parent: PreTrainedModel, twin: TwinForCausalLM) -> Iterator[dict[int, _Layer]]:
    """Mixers beside the parent's attention, which hands on to them what it is given itself."""
    layers = {index: _Layer(mixer) for index, mixer in twin.mixers.items()}
    body: Any = parent.base_model
    handles = [body.register_forward_pre_hook(HandsOn(twin.config.window), with_kwargs=True)]
    for index, layer in layers.items():
        owner, name = find_attention(Runner(parent).layers[index]) or (None, "")
        handles.append(getattr(owner, name).register_forward_hook(layer, with_kwargs=True))
    training = parent.training
    parent.eval()
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
        parent.train(training)


@torch.no_grad()
def _run(parent: PreTrainedModel, layers: dict[int, _Layer], batch: Packs, *, learns: bool) -> None:
    for layer in layers.values():
        layer.learns = learns
    batch = batch.to(parent.device)
    # the body alone: nobody reads logits
    body: Any = parent.base_model
    body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def _start(
    parent: PreTrainedModel, layers: dict[int, _Layer], packs: Packs, heldout: Packs, before: Errors, batch_size: int
) -> None:
    """Output maps in closed form; a mixer that begins as what it shall be, attention in a window, needs none."""
    fits = {k: OutputFit(layer.mixer) for k, layer in layers.items() if not isinstance(layer.mixer, SlidingAttention)}
    if not fits:
        return
    for k, fit in fits.items():
        layers[k].output = fit
    read = 0
    for batch in packs.batches(batch_size, parent.device):
        _run(parent, layers, batch, learns=False)
        read += batch.input_ids.numel()
        if read >= TOKENS:
            break
    for k, fit in fits.items():
        fit.set()
        layers[k].output = None
        layers[k].taken()
    for k, error in _errors(parent, layers, heldout, batch_size, Clock(None, 1)).items():
        if k in fits and not error < before[k]:
            fits[k].withdraw()


def _step(parent: PreTrainedModel, layers: dict[int, _Layer], batch: Packs, optimizer: torch.optim.Optimizer) -> float:
    """One step of all mixers; their mean error before it."""
    _run(parent, layers, batch, learns=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sum(layer.taken() for layer in layers.values()) / len(layers)


def _errors(parent: PreTrainedModel, layers: dict[int, _Layer], packs: Packs, batch_size: int, clock: Clock) -> Errors:
    """The relative error of each layer."""
    for batch in packs.batches(batch_size, parent.device):
        _run(parent, layers, batch, learns=False)
        clock.tick()
    return {index: layer.taken() for index, layer in layers.items()}


def _check_parent(twin: TwinForCausalLM, parent: PreTrainedModel) -> None:
    """Refuse a model whose features are not those that the twin begins in."""
    ours: Any = twin.get_input_embeddings()
    theirs: Any = parent.get_input_embeddings()
    same = ours.weight.shape == theirs.weight.shape and torch.equal(ours.weight, theirs.weight.to(ours.weight))
    if not same or any(find_attention(Runner(parent).layers[index]) is None for index in twin.mixers):
        raise ManticoreError("twin: this is not the parent that the twin was made of. Fix: give that one")
