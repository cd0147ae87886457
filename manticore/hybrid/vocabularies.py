"""The one tokenizer of a hybrid: what its components share, or one of theirs, for which the others are re-embedded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.reembedding import reembed
from manticore.components.token_bytes import TokenBytes
from manticore.components.token_matching import match_tokens, same_tokenizer, tokens_around
from manticore.errors import ManticoreError
from manticore.registry import did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """What token ids mean to all components."""

    size: int
    """Rows that all of them have."""
    tokenizer: PreTrainedTokenizerBase | None
    """None where no component carries one."""
    owner: int | None = None
    """The component that the tokenizer was chosen from; None where nothing had to be chosen."""
    reembedded: list[dict[str, Any] | None] | None = None
    """Per component what was matched; None for those that had that tokenizer already."""
    speaker: int = 0
    """The component that the tokenizer is of, whose generation settings hold; the first where none carries one."""


def named_component(choice: object, names: Sequence[str]) -> int:
    """The index of the component that ``choice`` means: its index, its name, or the last part of its path.

    Raises:
        ManticoreError: there is none, or several.
    """
    count = len(names)
    choice = str(choice) if isinstance(choice, Path) else choice
    if isinstance(choice, str) and choice in names:
        return list(names).index(choice)
    short = [Path(name).name for name in names]
    if isinstance(choice, str) and short.count(choice) == 1:
        return short.index(choice)
    index = int(choice) if isinstance(choice, str) and choice.isdecimal() else choice
    if type(index) is int and 0 <= index < count:
        return index
    several = isinstance(choice, str) and choice in short
    what = "names several components" if several else "is not a component"
    near = did_you_mean(choice, [*names, *short]) if isinstance(choice, str) and not several else ""
    fix = near if near.endswith("?") else f" (expected a name or an index). Fix: give the index, 0 to {count - 1}"
    raise ManticoreError(f"combine: tokenizer {choice!r} {what}{fix}")


def common_vocabulary(
    names: Sequence[str],
    components: Sequence[PreTrainedModel],
    carried: Sequence[PreTrainedTokenizerBase | None],
    given: PreTrainedTokenizerBase | None,
) -> Vocabulary:
    """The vocabulary that all components have already.

    Args:
        names: what errors call the components.
        components: loaded.
        carried: the tokenizer beside each.
        given: one that speaks for all.

    Raises:
        ManticoreError: tokenizers, or numbers of rows that nothing explains, differ.
    """
    # a tokenizer speaks for the components that carry it; given by hand, for all
    vouched = given is not None or all(tokenizer is not None for tokenizer in carried)
    known = [(name, t) for name, t in zip([*names, "tokenizer="], [*carried, given]) if t is not None]
    for name, other in known[1:]:
        if not same_tokenizer(known[0][1], other):
            raise ManticoreError(
                f"combine: {known[0][0]} and {name} have different tokenizers, so their token ids do not mean the "
                "same. Fix: choose checkpoints with one tokenizer, keep one component's and re-embed the others "
                "(tokenizer=), or a task with its own vocabulary (--task mad/…)"
            )
    tokenizer = known[0][1] if known else None
    if tokenizer is not None:
        others = known[1:]
        # one given by hand goes before what lies beside the components
        _settle(known[0][0], tokenizer, others[-1:] + others[:-1] if given is not None else others)
    speaker = next((k for k, each in enumerate(carried) if each is not None), 0)
    return Vocabulary(_common_rows(names, components, tokenizer, vouched), tokenizer, speaker=speaker)


def chosen_vocabulary(
    names: Sequence[str],
    components: Sequence[PreTrainedModel],
    carried: Sequence[PreTrainedTokenizerBase | None],
    owner: int,
    min_coverage: float,
) -> Vocabulary:
    """The vocabulary of component ``owner``; components with another one are re-embedded, in place.

    Raises:
        ManticoreError: a component without a tokenizer, tokenizers that cannot be compared, or that share too little.
    """
    for name, tokenizer in zip(names, carried):
        if tokenizer is None:
            raise ManticoreError(
                f"combine: {name} carries no tokenizer, so its tokens cannot be matched. "
                "Fix: save its tokenizer in its folder, and give the folder"
            )
    tokenizers = [tokenizer for tokenizer in carried if tokenizer is not None]
    kept = tokenizers[owner]
    alike = [(name, other) for name, other in zip(names, tokenizers) if other is not kept]
    _settle(names[owner], kept, [(name, other) for name, other in alike if same_tokenizer(kept, other)])
    for name, other in alike:
        if kept.chat_template is None and other.chat_template is not None:
            logger.warning("%s has a chat template, which goes with its own tokenizer: left out", name)
    matched: list[dict[str, Any] | None] = [None] * len(names)
    for k, (name, component, other) in enumerate(zip(names, components, tokenizers)):
        if same_tokenizer(kept, other):
            continue
        ours, theirs = TokenBytes(kept, names[owner]), TokenBytes(other, name)
        matching = match_tokens(ours, theirs)
        shared = matching.to_dict()
        if matching.coverage < min_coverage:
            reverse = match_tokens(theirs, ours).coverage
            raise ManticoreError(
                f"combine: of the {shared['tokens']} tokens of {names[owner]} {name} has {shared['exact']} exactly and "
                f"{shared['role']} by role (coverage {matching.coverage:.3f}, min_coverage {min_coverage}). "
                f"Fix: keep the tokenizer of {name} (coverage {reverse:.3f}), or lower min_coverage"
            )
        reembed(component, matching, kept, name)
        logger.info("%s: re-embedded for the tokenizer of %s: %s", name, names[owner], shared)
        matched[k] = shared
    size = _common_rows(names, components, kept, vouched=True)
    return Vocabulary(size, kept, owner if any(matched) else None, matched if any(matched) else None, speaker=owner)


def _settle(owner: str, kept: PreTrainedTokenizerBase, others: Sequence[tuple[str, PreTrainedTokenizerBase]]) -> None:
    """Give the kept tokenizer, in place, what only others of the same vocabulary have; say where they differ."""
    for name, other in others:
        if other.chat_template is not None and kept.chat_template is None:
            logger.info("%s has no chat template: that of %s is kept", owner, name)
            kept.chat_template = copy.deepcopy(other.chat_template)
        elif other.chat_template not in (None, kept.chat_template):
            logger.warning("the chat templates of %s and %s differ: that of %s is kept", owner, name, owner)
        if (ours := tokens_around(kept)) != (theirs := tokens_around(other)):
            logger.warning(
                "%s puts the tokens %s around a text, %s the tokens %s: the hybrid does as %s",
                owner,
                kept.convert_ids_to_tokens(ours),
                name,
                other.convert_ids_to_tokens(theirs),
                owner,
            )


def matched_tokens(hybrid: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """One line per re-embedded component, called by one of ``names``: where its rows come from."""
    config: Any = hybrid.config
    lines = []
    for name, counts in zip(names, config.reembedded or []):
        if counts is not None and config.tokenizer_component is not None:
            lines.append(
                f"{name}: rows for the {counts['tokens']:,} tokens of {names[config.tokenizer_component]}: "
                f"{counts['exact']:,} exact, {counts['role']:,} by role, {counts['pieces']:,} by the mean of pieces, "
                f"{counts['none']:,} without a match (coverage {counts['coverage']:.3f})"
            )
    return lines


def _common_rows(
    names: Sequence[str],
    components: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
    vouched: bool,
) -> int:
    """Rows that all components have; tables may be padded beyond the tokens of a tokenizer that speaks for all."""
    rows = [component.config.vocab_size for component in components]
    if not vouched and len(set(rows)) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in zip(names, rows))
        raise ManticoreError(
            f"combine: vocabulary sizes differ ({listed}) and no common tokenizer says which ids are shared. "
            "Fix: give folders with tokenizers, or pass tokenizer="
        )
    if tokenizer is None:
        return rows[0]
    short = [(name, count) for name, count in zip(names, rows) if count < len(tokenizer)]
    if short:
        raise ManticoreError(
            f"combine: {short[0][0]} has {short[0][1]} embedding rows for {len(tokenizer)} tokens. "
            "Fix: give the checkpoint that belongs to the tokenizer"
        )
    return min(rows)
