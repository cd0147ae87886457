"""Fits the projectors of a hybrid: in closed form, then, if asked, by gradient steps.

Each component runs alone over calibration text. What it holds at a block boundary is one feature space; each
projector is the ridge regression of its target's space on its source's (``manticore.projectors.ridge``), token by
token. Only sums are kept: one Gram matrix per source, one cross matrix per pair. How strong the ridge is, held-out
text decides (:mod:`manticore.training.projector_fits`).

Held-out text also decides what stays: a projector whose fitted map does worse there than what it held keeps that;
where the hybrid as a whole does worse, the boundaries are fitted one by one, and those that raise its loss are left as
they were. So alignment never raises the held-out loss. Gated mixing is where that happens: its formula is no
translation at mixed weights.

The gradient steps minimise the language-modelling loss of the hybrid at its current mixture weights: that, and not
the distance between features, is what the projectors are for. Everything but the projectors is frozen.

Shapes: B batch, T tokens, D width, K components, N blocks, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.modeling import through_blocks
from manticore.hybrid.released import refuse_released
from manticore.kernels.mamba import fast_scan
from manticore.keywords import takes
from manticore.projectors.ridge import FeatureSums
from manticore.seeding import derive_seed
from manticore.settings import Align
from manticore.tasks.metrics import IGNORE
from manticore.training.calibration import Packs, calibration_packs
from manticore.training.descent import Clock, Progress, counted, descend, mean_loss
from manticore.training.projector_fits import BEFORE, ErrorsBefore, FeatureSpace, Sums, TranslationFit, fit

if TYPE_CHECKING:
    from manticore.components.runner import Runner
    from manticore.hybrid.mixing import Features, Translation
    from manticore.hybrid.modeling import ManticoreForCausalLM


@dataclass(frozen=True)
class AlignmentReport:
    """What :func:`align` did. Losses are in nats per token, on held-out text at the hybrid's mixture weights."""

    translations: list[TranslationFit]
    tokens: int
    """Tokens the projectors were fitted on."""
    heldout_tokens: int
    steps: int
    """Gradient steps after the closed form."""
    loss_before: float
    loss_closed_form: float
    """With every projector as it was fitted."""
    loss_after: float
    """Of the hybrid as it is left; never above ``loss_before``, unless ``withdraw`` is off."""
    withdrawn: list[str]
    """Projectors that are as they were, since the hybrid's loss was higher with the fitted ones."""
    steps_withdrawn: bool
    """Whether the gradient steps raised the held-out loss, and were taken back."""
    bos: str | None
    """The BOS token that every pack of text began with, empty for none; None for a tokenised data set."""
    flops: int
    """Matrix products of the fit, of what is measured to choose, and of the gradient steps."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


@takes(Align, by_position=("text",))
def align(
    hybrid: ManticoreForCausalLM,
    settings: Align,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> AlignmentReport:
    """Fit the projectors of a supernet, in place. If anything fails, the hybrid is as it was.

    ``text`` may also be strings or a data set; one with the column ``input_ids`` is taken as tokenised, for tasks with
    their own vocabulary.

    Args:
        hybrid: a supernet; its components, mixture weights, modes and ``requires_grad`` stay as they are.
        settings: the options below in one object, which single ones change.
        seed: decides which text is taken, and in which order the steps see it.
        tokenizer: by default the hybrid's own.
        progress: called after each batch.

    Raises:
        ManticoreError: a discretized hybrid, unusable text or numbers, features or a loss that are not finite, or
            gradient steps that no projector feels.
    """
    started = time.perf_counter()
    _check(hybrid)
    fitted, heldout = calibration_packs(
        settings.text,
        text_column=settings.text_column,
        tokens=settings.tokens,
        holdout=settings.holdout,
        length=settings.length,
        bos=settings.bos,
        seed=seed,
        tokenizer=tokenizer if tokenizer is not None else hybrid.tokenizer,
    )
    batch_size, steps = settings.batch_size, settings.steps
    _check_packs(hybrid, fitted, heldout)
    per_pass = math.ceil(len(heldout) / batch_size)
    clock = Clock(progress, math.ceil(len(fitted) / batch_size) + (4 if steps else 3) * per_pass + steps)

    translations = hybrid.mixing.translations()
    judge = _Judge(hybrid, heldout, batch_size, clock)
    with _undone_on_failure(hybrid) as before, fast_scan(hybrid):
        loss_before = judge.loss()
        sums, flops = _collect(hybrid, translations, fitted, batch_size, clock)
        errors = ErrorsBefore(translations)
        heldout_sums, flops_heldout = _collect(hybrid, translations, heldout, batch_size, clock, errors)
        with torch.random.fork_rng(devices=[hybrid.device] if hybrid.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "align"))
            fits = [
                fit(t, sums, heldout_sums, errors, settings.ridge, keep_best=settings.withdraw) for t in translations
            ]
        loss_closed_form = loss_after = judge.loss()
        if not math.isfinite(loss_closed_form) and not (settings.withdraw and math.isfinite(loss_before)):
            raise ManticoreError(
                f"align: the held-out loss is {loss_closed_form} with the fitted projectors. "
                "Fix: a larger ridge, or components in float32"
            )
        withdrawn: list[str] = []
        if settings.withdraw and _worse(loss_closed_form, loss_before):
            loss_after, withdrawn = _boundary_by_boundary(hybrid, fits, before, loss_before, judge)
            fits = [_as_before(f) if f.name in withdrawn else f for f in fits]
        steps_withdrawn = False
        if steps:
            aligned, loss_aligned = _projectors(hybrid), loss_after
            flops += descend(hybrid, fitted, steps, settings.lr, batch_size, seed, clock)
            loss_after = judge.loss()
            if settings.withdraw and _worse(loss_after, loss_aligned):
                hybrid.mixing.projectors.load_state_dict(aligned)
                loss_after, steps_withdrawn = loss_aligned, True
    return AlignmentReport(
        translations=fits,
        tokens=fitted.tokens,
        heldout_tokens=heldout.tokens,
        steps=steps,
        loss_before=loss_before,
        loss_closed_form=loss_closed_form,
        loss_after=loss_after,
        withdrawn=withdrawn,
        steps_withdrawn=steps_withdrawn,
        bos=fitted.bos,
        flops=flops + flops_heldout + judge.flops,
        seconds=time.perf_counter() - started,
    )


class _Judge:
    """Measures a hybrid's loss on held-out text, and counts what that takes."""

    def __init__(self, hybrid: ManticoreForCausalLM, heldout: Packs, batch_size: int, clock: Clock) -> None:
        self._measured = (hybrid, heldout, batch_size, clock)
        self.clock = clock
        self.batches = math.ceil(len(heldout) / batch_size)
        self.flops = 0

    def loss(self) -> float:
        """In nats per token."""
        loss, flops = mean_loss(*self._measured)
        self.flops += flops
        return loss


def _boundary_by_boundary(
    hybrid: ManticoreForCausalLM, fits: list[TranslationFit], before: Projectors, loss: float, judge: _Judge
) -> tuple[float, list[str]]:
    """Fit the boundaries one after the other, each if the loss does not rise; the loss then, and what is left out."""
    fitted = _projectors(hybrid)
    held, withdrawn = dict(before), []
    boundaries = sorted({f.boundary for f in fits})
    judge.clock.steps += judge.batches * len(boundaries)
    for boundary in boundaries:
        names = [f.name for f in fits if f.boundary == boundary and f.kept != BEFORE]
        tried = held | {name: value for name, value in fitted.items() if name.split(".")[0] in names}
        hybrid.mixing.projectors.load_state_dict(tried)
        found = judge.loss()
        if _worse(found, loss):
            withdrawn += names
        else:
            held, loss = tried, found
    hybrid.mixing.projectors.load_state_dict(held)
    return loss, withdrawn


def _worse(loss: float, than: float) -> bool:
    return not loss <= than and math.isfinite(than)


def _as_before(fit: TranslationFit) -> TranslationFit:
    return replace(fit, r2=None, r2_heldout=fit.r2_before, kept=BEFORE)


@torch.no_grad()
def boundary_features(
    hybrid: ManticoreForCausalLM, spaces: Iterable[tuple[int, int]], batch: Packs
) -> dict[FeatureSpace, Tensor]:
    """Features ``[B, T, D]`` of components that run alone, at (component, boundary) pairs."""
    wanted = {FeatureSpace(*space) for space in spaces}
    features: dict[FeatureSpace, Tensor] = {}
    for k in sorted({space.component for space in wanted}):
        runner = hybrid.runners[k]
        if runner is None:
            raise ManticoreError(f"align: component {k} was dropped. Fix: align before discretizing")
        last = max(space.boundary for space in wanted if space.component == k)
        edges = hybrid.config.boundaries[k][: last + 1]
        features.update(held_alone(runner, k, edges, wanted, batch.input_ids, batch.attention_mask))
    return features


def held_alone(
    runner: Runner,
    k: int,
    edges: Sequence[int],
    wanted: Container[tuple[int, int]],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[FeatureSpace, Tensor]:
    """What component k holds, ``[B, T, D]``, at those of its boundaries that are wanted; its head does not run.

    Args:
        runner: of the component.
        k: its index.
        edges: the layers before each boundary, up to the last one that is wanted.
        wanted: (component, boundary) pairs.
        input_ids: ``[B, T]``.
        attention_mask: ``[B, T]``, or None.
    """
    recording = runner.record(input_ids, attention_mask)
    last = len(edges) - 1
    held: dict[FeatureSpace, Tensor] = {}

    def note(n: int, features: Features, _: Sequence[int] = ()) -> Features:
        if (k, n) in wanted:
            held[FeatureSpace(k, n)] = features[k]
        return features

    through_blocks(
        [[k]] * last,
        lambda: {k: recording.hidden},
        note,
        lambda n, _: partial(runner.run, recording, start=edges[n], stop=edges[n + 1]),
        partial(note, last),
    )
    return held


def _collect(
    hybrid: ManticoreForCausalLM,
    translations: list[Translation],
    packs: Packs,
    batch_size: int,
    clock: Clock,
    errors: ErrorsBefore | None = None,
) -> tuple[Sums, int]:
    """The sums over all packs, and the FLOPs they took, with those of the projectors' errors."""
    pairs = [(FeatureSpace(*t.source), FeatureSpace(*t.target)) for t in translations if t.source != t.target]
    sums: Sums = FeatureSums(pairs)
    flops_per_pack = 0.0
    for batch in packs.batches(batch_size, hybrid.device):
        with counted(not flops_per_pack) as count:
            # components of one feature space have nothing between them
            if pairs:
                features = boundary_features(hybrid, sums.keys, batch)
                sums.update(features, batch.attention_mask)
                if errors is not None:
                    errors.update(features, batch.attention_mask)
        flops_per_pack = flops_per_pack or count() / len(batch)
        clock.tick()
    return sums, round(flops_per_pack * len(packs))


Projectors: TypeAlias = dict[str, Tensor]
"""Parameters of all projectors, by name."""


def _projectors(hybrid: ManticoreForCausalLM) -> Projectors:
    """What they are now; what is written into them later does not change it."""
    return {name: value.clone() for name, value in hybrid.mixing.projectors.state_dict().items()}


@contextmanager
def _undone_on_failure(hybrid: ManticoreForCausalLM) -> Iterator[Projectors]:
    """Evaluation mode inside; modes and ``requires_grad`` come back, projectors too if something goes wrong."""
    modes = [(module, module.training) for module in hybrid.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in hybrid.parameters()]
    projectors = _projectors(hybrid)
    hybrid.eval()
    try:
        yield projectors
    except BaseException:
        hybrid.mixing.projectors.load_state_dict(projectors)
        raise
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
        hybrid.mixing.projectors.zero_grad(set_to_none=True)


def _check(hybrid: ManticoreForCausalLM) -> None:
    require_hybrid(hybrid, "align")
    if not hybrid.keeps_lm_heads:
        raise ManticoreError(
            f"align: a {type(hybrid).__name__} has no language-model heads. "
            "Fix: align the causal hybrid that it was made from"
        )
    refuse_released(hybrid.config, "align")
    if hybrid.is_discretized:
        raise ManticoreError(
            "align: components of a discretized hybrid cannot run alone. Fix: align before discretizing"
        )


def _check_packs(hybrid: ManticoreForCausalLM, *packs: Packs) -> None:
    """The ids and the length must be ones that every component knows."""
    largest = max(int(part.input_ids.max()) for part in packs)
    if largest >= hybrid.config.vocab_size:
        raise ManticoreError(
            f"align: token id {largest} (expected ids below the vocabulary's {hybrid.config.vocab_size}). "
            "Fix: tokenise with the hybrid's tokenizer, or give it the task's vocabulary first"
        )
    if any(bool((part.targets == IGNORE).all()) for part in packs):
        raise ManticoreError("align: the targets are -100 everywhere. Fix: leave the column out, or take more rows")
    length = packs[0].input_ids.shape[1]
    for k, runner in enumerate(hybrid.runners):
        limit = None if runner is None else runner.positions
        if limit is not None and length > limit:
            raise ManticoreError(
                f"align: sequences of {length} tokens, but component {k} has {limit} positions. Fix: length={limit}"
            )
