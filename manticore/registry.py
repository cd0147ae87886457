"""The one list of everything that has a name: layers and stacks, projectors, mixings, stages, tasks, search methods of
paths and of designs.

Entries point at code by ``"module:attribute"`` and are imported on first use, so that ``manticore check``
and ``--help`` can name them without importing torch. Other packages add to them: :mod:`manticore.plugins`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any

from manticore.errors import ManticoreError, in_brief
from manticore.plugins import KINDS, misnamed, package, plugins


@dataclass(frozen=True)
class Entry:
    """One named thing: where its code lives and what it is, in a phrase."""

    target: Any
    """``"module:attribute"``, or the object itself."""
    summary: str
    shape: str | None = None
    """Of a task, the ``"module:attribute"`` that tells its sizes from its name and options without torch: a
    :class:`~manticore.tasks.shape.TaskShape`."""
    package: str | None = None
    """The package whose plug-in it is; None for Manticore's own and for what ``register`` added."""


_SHIPPED: dict[str, dict[str, tuple[str, str]]] = {
    "layer": {
        "attention": ("attention:attention", "softmax attention, one head, rotary positions"),
        "mh-attention": ("attention:mh_attention", "softmax attention, 16 heads, rotary positions"),
        "grouped-query-attention": (
            "attention:grouped_query_attention",
            "softmax attention, query heads share keys and values",
        ),
        "sliding-attention": ("attention:sliding_attention", "softmax attention to a window of 32 tokens, one head"),
        "mh-sliding-attention": (
            "attention:mh_sliding_attention",
            "softmax attention to a window of 32 tokens, 16 heads",
        ),
        "linear-attention": (
            "linear_attention:LinearAttention",
            "attention without softmax, learned feature map, one head",
        ),
        "mh-linear-attention": (
            "linear_attention:mh_linear_attention",
            "attention without softmax, learned feature map, 16 heads",
        ),
        "gated-linear-attention": (
            "linear_attention:GatedLinearAttention",
            "linear attention with a decaying state, one head",
        ),
        "mh-gated-linear-attention": (
            "linear_attention:mh_gated_linear_attention",
            "linear attention with a decaying state, 8 heads",
        ),
        "delta-net": ("delta:delta_net", "linear attention that replaces what a key held"),
        "gated-delta-net": ("delta:gated_delta_net", "the same with a decaying state and an output gate"),
        "kimi-delta-attention": (
            "delta:KimiDeltaAttention",
            "the delta rule with one decay per key channel and gates of low rank (KDA)",
        ),
        "hyena": ("hyena:Hyena", "gates around a convolution as long as the sequence"),
        "mh-hyena": ("hyena:MultiHeadHyena", "Hyena with outer products inside groups of channels"),
        "hyena-experts": ("hyena:HyenaExperts", "Hyena whose channels are experts, mixed by a router"),
        "short-gated-convolution": (
            "short_convolution:ShortGatedConvolution",
            "gates around a convolution over three tokens",
        ),
        "mamba": ("mamba:Mamba", "selective state space; mixes channels too"),
        "mamba-2": ("mamba:Mamba2", "selective state space, one decay per head; mixes channels too"),
        "rwkv5-time-mixer": ("rwkv:RWKV5TimeMixer", "decaying state with learned decays, bonus for the current token"),
        "rwkv6-time-mixer": (
            "rwkv:RWKV6TimeMixer",
            "decaying state with decays from the input, bonus for the current token",
        ),
        "rwkv5-channel-mixer": (
            "rwkv:RWKVChannelMixer",
            "squared ReLU and a receptance gate, mixed with the token before",
        ),
        "rwkv6-channel-mixer": ("rwkv:RWKVChannelMixer", "the same as rwkv5-channel-mixer"),
        "rwkv7-time-mixer": (
            "rwkv7:RWKV7TimeMixer",
            "a state that decays by channel and is rewritten along one direction a token",
        ),
        "rwkv7-channel-mixer": ("rwkv7:RWKV7ChannelMixer", "squared ReLU, mixed with the token before"),
        "mlp": ("mlp:MLP", "two layers with a GELU between them"),
        "swiglu": ("mlp:SwiGLU", "a gated layer and a layer back"),
        "moe-mlp": ("moe:MoEMLP", "8 experts behind a router"),
        "liv": ("liv.pool:liv", "an operator by its code of five integers; see docs/star.md"),
        "sa-1": ("liv.pool:sa_1", "STAR's SA-1: softmax attention"),
        "sa-2": ("liv.pool:sa_2", "STAR's SA-2: the same behind a short convolution"),
        "sa-3": ("liv.pool:sa_3", "STAR's SA-3: keys and values repeated 4 times"),
        "sa-4": ("liv.pool:sa_4", "STAR's SA-4: keys and values repeated twice"),
        "rec-1": ("liv.pool:rec_1", "STAR's Rec-1: selective recurrence, 16 states"),
        "rec-2": ("liv.pool:rec_2", "STAR's Rec-2: selective recurrence, 2 states"),
        "gconv-1": ("liv.pool:gconv_1", "STAR's GConv-1: short gated convolution"),
        "gconv-2": ("liv.pool:gconv_2", "STAR's GConv-2: gated convolution as long as the sequence"),
        "gmemless": ("liv.pool:gmemless", "STAR's GMemless: SwiGLU"),
        "diff-sa-1": ("liv.pool:diff_sa_1", "the difference of two SA-1"),
        "diff-sa-2": ("liv.pool:diff_sa_2", "the difference of two SA-2"),
        "diff-sa-3": ("liv.pool:diff_sa_3", "the difference of two SA-3"),
        "diff-sa-4": ("liv.pool:diff_sa_4", "the difference of two SA-4"),
        "diff-rec-1": ("liv.pool:diff_rec_1", "the difference of two Rec-1"),
        "diff-rec-2": ("liv.pool:diff_rec_2", "the difference of two Rec-2"),
        "diff-gconv-1": ("liv.pool:diff_gconv_1", "the difference of two GConv-1"),
        "diff-gconv-2": ("liv.pool:diff_gconv_2", "the difference of two GConv-2"),
    },
    "design": {
        "random": ("designs.drawn:random_designs", "distinct designs drawn at random, the fair baseline"),
        "exhaustive": ("designs.drawn:exhaustive", "all designs"),
        "evolution": ("designs.evolution:evolution", "NSGA-II with tournaments, crossover, mutation and repair"),
        "gp": ("designs.samplers:gp", "a Gaussian process over the positions, expected improvement"),
        "tpe": ("designs.samplers:tpe", "what good designs have more often than others, by Parzen estimators"),
        "qlognei": ("designs.qlognei:qlognei", "a Gaussian process and noisy expected improvement, by BoTorch"),
        "end-incremental": ("designs.incremental:end_incremental", "layer lists, a few layers at a time at the end"),
        "middle-incremental": ("designs.incremental:middle_incremental", "the same, in the middle"),
    },
    "mixing": {
        "routed": ("routed:RoutedMixing", "row-stochastic matrix per block; R = I is the ensemble"),
        "translated": ("routed:TranslatedMixing", "one weight vector per block, translated features"),
        "gated": ("gated:GatedMixing", "the published formula: gate and weight are one number"),
    },
    "output": {
        "logits": ("outputs:Logits", "weighted logits"),
        "probabilities": ("outputs:Probabilities", "weighted probabilities"),
        "bayes": ("outputs:Bayes", "probabilities, weighted by the likelihood of the text so far"),
        "gate": ("outputs:Gate", "probabilities, weighted by a linear map of the last features per token"),
    },
    "projector": {
        "linear": ("kinds:Linear", "affine map"),
        "linear-skip": ("kinds:LinearSkip", "pad or cut, plus an affine map"),
        "two-layer": ("kinds:TwoLayer", "affine, GELU, affine"),
        "low-rank": ("kinds:LowRank", "pad or cut, plus a map of low rank"),
    },
    "search": {
        "auto": ("auto:auto", "race up to four paths, blockwise beyond"),
        "race": ("race:race", "all paths train until one is clearly ahead on held-out data"),
        "blockwise": ("blockwise:blockwise", "parents, then one block after the other of the better one"),
        "oneshot": ("oneshot:oneshot", "shared weights name a few paths, which race each other and the parents"),
        "swaps": ("swaps:swaps", "single blocks exchanged and scored untrained; the best sum within the limits"),
        "halving": ("baselines:halving", "the better half of all paths goes on, again and again"),
        "random": ("baselines:random_paths", "paths drawn at random, the fair baseline"),
        "exhaustive": ("baselines:exhaustive", "all paths, each for a whole unit"),
        "darts": ("differentiable.methods:Darts", "softmax of logits, gradient descent on the logits"),
        "dash": ("differentiable.methods:Dash", "one Gumbel-softmax sample per step, annealed temperature"),
        "gaea": ("differentiable.methods:Gaea", "exponentiated gradient, always on the simplex"),
    },
    "space": {
        "layers": ("designs.layer_lists:LayerListSpace", "lists of layers out of a set of primitives"),
        "genomes": ("designs.genomes:GenomeSpace", "genomes of linear input-varying operators, as STAR has them"),
    },
    "stack": {
        "transformer": ("presets:TRANSFORMER", "mh-attention and swiglu, twice"),
        "hyena-swiglu": ("presets:HYENA", "hyena and swiglu, twice"),
        "mh-hyena-swiglu": ("presets:MH_HYENA", "mh-hyena and swiglu, twice"),
        "striped-mh-hyena-swiglu": ("presets:STRIPED_MH_HYENA", "mh-hyena, swiglu, mh-attention, swiglu"),
        "striped-mh-hyena-moe": ("presets:STRIPED_MH_HYENA_MOE", "mh-hyena, moe-mlp, mh-attention, moe-mlp"),
        "striped-hyena-experts-moe": (
            "presets:STRIPED_HYENA_EXPERTS_MOE",
            "hyena-experts, moe-mlp, mh-attention, moe-mlp",
        ),
        "mamba": ("presets:MAMBA", "mamba, four times"),
        "striped-mamba": ("presets:STRIPED_MAMBA", "mamba, mamba, mh-attention, swiglu"),
        "gla-swiglu": ("presets:GLA", "gated-linear-attention and swiglu, twice"),
        "mh-gla-swiglu": ("presets:MH_GLA", "mh-gated-linear-attention and swiglu, twice"),
        "mambaformer": ("presets:MAMBAFORMER", "mamba, then mh-attention without positions and mamba, twice"),
        "sandwich-transformer": ("presets:SANDWICH_TRANSFORMER", "mh-attention twice, then swiglu twice"),
        "rwkv-7": (
            "presets:RWKV7",
            "RWKV-7's time mixer and channel mixer, twice; values drawn towards the first layer's",
        ),
        "kimi-linear": (
            "presets:KIMI_LINEAR",
            "kimi-delta-attention three times, then attention without positions, each with swiglu",
        ),
    },
    "stage": {
        "pretrain": ("pretrain:Pretrain", "small models from scratch, kept in the cache"),
        "combine": ("combine:Combine", "components side by side, block by block"),
        "align": ("align:Align", "projectors fitted in closed form"),
        "search": ("search:Search", "which component each block should use"),
        "discretize": ("discretize:Discretize", "one component per block"),
        "distill": ("distill:Distill", "the discretized hybrid learns from a teacher"),
        "finetune": ("finetune:Finetune", "the discretized hybrid, end to end"),
        "compare": ("compare:Compare", "parents, ensemble and hybrids at equal compute"),
    },
    "task": {
        "mad/in-context-recall": ("mad.tasks:in_context_recall", "MAD: recall values by their keys"),
        "mad/noisy-in-context-recall": (
            "mad.tasks:noisy_in_context_recall",
            "MAD: the same with noise between the pairs",
        ),
        "mad/fuzzy-in-context-recall": (
            "mad.tasks:fuzzy_in_context_recall",
            "MAD: the same with keys and values of several tokens",
        ),
        "mad/selective-copying": ("mad.tasks:selective_copying", "MAD: repeat the tokens between the blanks"),
        "mad/compression": ("mad.tasks:compression", "MAD: restore a sequence from one vector; for auto-encoders"),
        "mad/memorization": ("mad.tasks:memorization", "MAD: learn facts by heart"),
        "lra/listops": ("lra.tasks:listops", "LRA: the value of a nested operation on digits"),
        "lra/text": ("lra.tasks:text", "LRA: the sentiment of a film review, byte by byte"),
        "lra/retrieval": ("lra.tasks:retrieval", "LRA: whether one of two papers cites the other"),
        "lra/image": ("lra.tasks:image", "LRA: grey CIFAR-10, pixel by pixel"),
        "lra/pathfinder32": ("lra.tasks:pathfinder32", "LRA: whether a dashed path joins two discs, 32 x 32 pixels"),
        "lra/pathfinder128": ("lra.tasks:pathfinder128", "LRA: Path-X, the same on 128 x 128"),
        "listops-short": ("lra.tasks:listops_short", "ListOps with short trees, for small models; not LRA"),
        "spam-assassin": ("lra.tasks:spam_assassin", "whether a mail is spam, byte by byte; like LRA's Text, not LRA"),
        "fashion-mnist": ("lra.tasks:fashion_mnist", "Fashion-MNIST, pixel by pixel; like LRA's Image, not LRA"),
        "idx-images": ("lra.tasks:idx_images", "images of a folder in MNIST's format, pixel by pixel; not LRA"),
        "digits-64": ("lra.tasks:digits_64", "handwritten digits, 64 pixels; a proxy for LRA's Image"),
        "text": ("text:text", "next-token prediction on a file, a folder, a datasets id, or several of them"),
    },
}
"""Kind → name → ``"module:attribute"`` in the kind's folder, and what it is, in a phrase."""
_HOMES = {
    "design": "search",
    "layer": "stacks",
    "mixing": "hybrid",
    "output": "hybrid",
    "projector": "projectors",
    "search": "search",
    "space": "search",
    "stack": "stacks",
    "stage": "stages",
    "task": "tasks",
}
"""Kind → the folder of its modules."""
_SPOKEN = {"design": "design method", "search": "search method"}
"""Kind → what messages call one of it, where that is more than its name."""
_SHAPES = {
    "mad": "manticore.tasks.mad.examples:shape",
    "lra": "manticore.tasks.lra.examples:shape",
    "spam-assassin": "manticore.tasks.lra.mails:shape",
    "fashion-mnist": "manticore.tasks.lra.idx:shape",
    "idx-images": "manticore.tasks.lra.idx:shape",
}
"""Task, or the part of its name before a slash → what says its sizes."""

_ENTRIES: dict[str, dict[str, Entry]] = {
    kind: {
        name: Entry(f"manticore.{_HOMES[kind]}.{target}", summary, _SHAPES.get(name.partition("/")[0]))
        for name, (target, summary) in rows.items()
    }
    for kind, rows in _SHIPPED.items()
}


def register(kind: str, name: str, target: Any, summary: str) -> None:
    """Add ``name`` to the entries of ``kind``.

    Args:
        kind: ``"layer"``, ``"mixing"``, ``"output"``, ``"projector"``, ``"search"``, ``"design"`` (a method of
            searching for designs), ``"space"`` (of designs), ``"stack"``, ``"stage"`` or ``"task"``.
        name: what recipes write.
        target: ``"module:attribute"``, or the object itself.
        summary: one phrase for ``manticore ls``.

    Raises:
        ManticoreError: the kind is unknown or the name is taken.
    """
    entries = _ENTRIES.get(kind)
    if entries is None:
        raise ManticoreError(
            f"register: unknown kind {kind!r} (expected one of {', '.join(sorted(_ENTRIES))}). Fix: choose one"
        )
    if name in entries:
        raise ManticoreError(f"register: {kind} {name!r} exists already ({entries[name].target}). Fix: another name")
    entries[name] = Entry(target, summary)


def kinds() -> list[str]:
    """All kinds of entries."""
    return sorted(_ENTRIES)


def shipped(kind: str) -> list[str]:
    """The names of one kind that Manticore itself has, in order."""
    return list(_SHIPPED[kind])


def entries(kind: str) -> dict[str, Entry]:
    """Name → entry for one kind, in order of registration, those of plug-ins last; no plug-in is imported."""
    added = {
        name: Entry(points[0].value, f"plug-in of package {package(points[0])}", package=package(points[0]))
        for name, points in plugins(kind).items()
    }
    return {**added, **_ENTRIES[kind]} if added.keys() & _ENTRIES[kind] else {**_ENTRIES[kind], **added}


def refusal(kind: str, name: str) -> str | None:
    """Why a name cannot be used: nothing has it, or several things have; None where it can."""
    rivals = [f"package {package(point)}" for point in plugins(kind).get(name, [])]
    if name in _ENTRIES[kind]:
        rivals = ["Manticore", *rivals]
    if len(rivals) > 1:
        return f"{kind} {name!r} is the name of things of {' and '.join(rivals)}. Fix: uninstall all but one"
    if rivals:
        return None
    hint = next((f" (the plug-in {each} has no kind, {', '.join(KINDS)})" for each in misnamed() if name in each), "")
    return f"unknown {_SPOKEN.get(kind, kind)} {name!r}{hint}{did_you_mean(name, list(entries(kind)))}"


def resolve(kind: str, name: str) -> Any:
    """The object registered as ``name``.

    Raises:
        ManticoreError: no such name, with the nearest one; two things of that name; a plug-in that cannot be loaded.
    """
    refused = refusal(kind, name)
    if refused is not None:
        choose = " Fix: choose it" if refused.endswith("?") else ""
        plug_in = f", or {install(kind, name)}" if kind in KINDS else ""
        raise ManticoreError(f"{refused}{choose}{plug_in}" if refused.startswith("unknown") else refused)
    target = entries(kind)[name].target
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    with blaming(kind, name):
        return reduce(getattr, attribute.split("."), import_module(module))


def install(kind: str, name: str) -> str:
    """What to do about a plug-in that is not there."""
    return f"install the package of the plug-in '{kind}.{name}'"


def at_fault(kind: str, name: str, what: str) -> ManticoreError:
    """The error of a thing of another package that is not what it should be: ``"… package their-stage {what}"``."""
    owner = entries(kind)[name].package
    whose = f"the plug-in of package {owner}" if owner else "what was registered"
    return ManticoreError(f"{kind} {name!r}: {whose} {what}. Fix: mend it, or leave it out")


@contextmanager
def blaming(kind: str, name: str) -> Iterator[None]:
    """Says of an error of a plug-in, in one line, whose it is; errors of Manticore's own things stay as they are."""
    try:
        yield
    except ManticoreError:
        raise
    except Exception as error:
        owner = entries(kind)[name].package
        if owner is None:
            raise
        raise ManticoreError(
            f"{kind} {name!r}: the plug-in of package {owner} fails ({type(error).__name__}: {in_brief(error)}). "
            "Fix: mend that package, or uninstall it"
        ) from error


def did_you_mean(word: str, choices: list[str]) -> str:
    """``". Did you mean 'x'?"`` if something is near, else the choices."""
    if not choices:
        return " (it has none)"
    # one wrong letter out of two leaves a ratio of 0.5
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5 if len(word) < 4 else 0.6)
    return (
        f". Did you mean {near[0]!r}?" if near else f" (expected one of {', '.join(choices)}). Fix: choose one of them"
    )
