"""Fits the projectors of a hybrid: in closed form, then, if asked, by gradient steps.

Each component runs alone over calibration text. What it holds at a block boundary is one feature space; each
projector is the ridge regression of its target's space on its source's (``manticore.projectors.ridge``), token by
token. Only sums are kept: one Gram matrix per source, one cross matrix per pair.

The gradient steps minimise the language-modelling loss of the hybrid at its current mixture weights: that, and not
the distance between features, is what the projectors are for. Everything but the projectors is frozen.

Shapes: B batch, T tokens, D width, K components, N blocks, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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

if TYPE_CHECKING:
    from manticore.components.runner import Runner
    from manticore.hybrid.mixing import Features, Translation
    from manticore.hybrid.modeling import ManticoreForCausalLM


class FeatureSpace(NamedTuple):
    """What a component holds at a block boundary when it runs alone."""

    component: int
    boundary: int

    def __str__(self) -> str:
        return f"component {self.component} at boundary {self.boundary}"


@dataclass(frozen=True)
class TranslationFit:
    """How well one projector translates. R² is 1 for a perfect map, 0 for the mean of the target."""

    name: str
    source: int
    """Component whose features go in."""
    target: int
    """Component whose features should come out."""
    boundary: int
    """Block boundary, from 0 (embeddings) to N."""
    r2: float
    """R² of the closed form on the text it was fitted on."""
    r2_heldout: float
    """R² of the closed form on held-out text."""


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
    loss_after: float
    """After the gradient steps; without any, that of the closed form."""
    bos: str | None
    """The BOS token that every pack of text began with, empty for none; None for a tokenised data set."""
    flops: int
    """Matrix products of the fit and the gradient steps; what only measures is left out."""
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
    fit, heldout = calibration_packs(
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
    _check_packs(hybrid, fit, heldout)
    per_pass = math.ceil(len(heldout) / batch_size)
    clock = Clock(progress, math.ceil(len(fit) / batch_size) + (4 if steps else 3) * per_pass + steps)

    translations = hybrid.mixing.translations()
    with _undone_on_failure(hybrid), fast_scan(hybrid):
        loss_before = mean_loss(hybrid, heldout, batch_size, clock)
        sums, flops = _collect(hybrid, translations, fit, batch_size, clock)
        heldout_sums, _ = _collect(hybrid, translations, heldout, batch_size, clock)
        solutions = [_solve(sums, translation, settings.ridge) for translation in translations]
        with torch.random.fork_rng(devices=[hybrid.device] if hybrid.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "align"))
            fits = [
                _write(translation, solution, sums, heldout_sums)
                for translation, solution in zip(translations, solutions)
            ]
        loss_closed_form = loss_after = mean_loss(hybrid, heldout, batch_size, clock)
        if not math.isfinite(loss_closed_form):
            raise ManticoreError(
                f"align: the held-out loss is {loss_closed_form} with the fitted projectors. "
                "Fix: a larger ridge, or components in float32"
            )
        if steps:
            flops += descend(hybrid, fit, steps, settings.lr, batch_size, seed, clock)
            loss_after = mean_loss(hybrid, heldout, batch_size, clock)
    return AlignmentReport(
        translations=fits,
        tokens=fit.tokens,
        heldout_tokens=heldout.tokens,
        steps=steps,
        loss_before=loss_before,
        loss_closed_form=loss_closed_form,
        loss_after=loss_after,
        bos=fit.bos,
        flops=flops,
        seconds=time.perf_counter() - started,
    )


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


Sums: TypeAlias = FeatureSums[FeatureSpace]
Solution: TypeAlias = tuple[Tensor, Tensor]
"""weight ``[d_out, d_in]`` and bias ``[d_out]``"""


def _collect(
    hybrid: ManticoreForCausalLM, translations: list[Translation], packs: Packs, batch_size: int, clock: Clock
) -> tuple[Sums, int]:
    """The sums over all packs, and the FLOPs they took."""
    pairs = [(FeatureSpace(*t.source), FeatureSpace(*t.target)) for t in translations if t.source != t.target]
    sums: Sums = FeatureSums(pairs)
    flops_per_pack = 0.0
    for batch in packs.batches(batch_size, hybrid.device):
        with counted(not flops_per_pack) as count:
            sums.update(boundary_features(hybrid, sums.keys, batch), batch.attention_mask)
        flops_per_pack = flops_per_pack or count() / len(batch)
        clock.tick()
    return sums, round(flops_per_pack * len(packs))


def _solve(sums: Sums, translation: Translation, ridge: float) -> Solution | None:
    """The ridge regression; None where source and target are the same features."""
    if translation.source == translation.target:
        return None
    return sums.solve(FeatureSpace(*translation.source), FeatureSpace(*translation.target), ridge)


def _write(
    translation: Translation,
    solution: Solution | None,
    sums: Sums,
    heldout: Sums,
) -> TranslationFit:
    """Put the solution into the projector, and measure what the projector can hold of it."""
    source, target = FeatureSpace(*translation.source), FeatureSpace(*translation.target)
    if solution is None:
        translation.projector.reset_identity()
        r2 = r2_heldout = 1.0
    else:
        held = translation.projector.set_affine(*solution, sums.moments(source))
        r2, r2_heldout = (s.r_squared(source, target, *held) for s in (sums, heldout))
    return TranslationFit(translation.name, source.component, target.component, source.boundary, r2, r2_heldout)


@contextmanager
def _undone_on_failure(hybrid: ManticoreForCausalLM) -> Iterator[None]:
    """Evaluation mode inside; modes and ``requires_grad`` come back, projectors too if something goes wrong."""
    modes = [(module, module.training) for module in hybrid.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in hybrid.parameters()]
    projectors = {name: value.clone() for name, value in hybrid.mixing.projectors.state_dict().items()}
    hybrid.eval()
    try:
        yield
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
