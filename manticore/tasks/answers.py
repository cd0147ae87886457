"""Prompts and what a model should write after them: answers of tasks, ends of held-out lines, a key hidden in a text.

Likelihood of the next token, with the truth before it, can look well for a model that writes nonsense by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.tasks.metrics import IGNORE
from manticore.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LINE_ENDING = 3
"""Tokens of a line that a model is to write, at most: of eight, small models get hardly any line right."""
_CONTEXT = 32
"""Tokens before a line that is to be ended, at least."""

_HIDDEN = " The pass key is {key}. Remember it."
_ASKED = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class Answer:
    """A prompt and what should follow."""

    prompt: Tensor
    """int64 ``[T]``."""
    tokens: list[int]
    """What a model should write."""


def answers(task: Task, split: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[Answer]:
    """The answers of a split's examples, those that have one.

    Of text the last whole line of an example: its last tokens, up to :data:`LINE_ENDING` and half of the line at most.
    Of other tasks the last unbroken run of scored positions: what is asked for last, all else being read.

    Args:
        task: whose examples are sequences of tokens.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        tokenizer: of a task that is text.

    Raises:
        ManticoreError: the task has classes, is made for auto-encoders, or is text and there is no tokenizer.
    """
    if task.num_classes is not None or task.backbone != "causal":
        what = "has classes" if task.num_classes is not None else "is made for auto-encoders"
        raise ManticoreError(f"generate: {task.name} {what}, so that nothing is written. Fix: leave generate out")
    rows = task.data[split].with_format("torch")
    if task.vocab_size is not None:
        for row in rows:
            yield from _last_run(row["input_ids"], row["targets"])
        return
    if tokenizer is None:
        raise ManticoreError(f"generate: {task.name} is text, and there is no tokenizer. Fix: give a model with one")
    ends = torch.tensor(["\n" in str(tokenizer.decode([token])) for token in range(len(tokenizer))])
    for row in rows:
        yield from line_ending(row["input_ids"], ends)


def _last_run(ids: Tensor, targets: Tensor) -> Iterator[Answer]:
    scored = (targets != IGNORE).nonzero().flatten().tolist()
    if not scored:
        return
    last = first = scored[-1]
    for at in reversed(scored[:-1]):
        if at != first - 1:
            break
        first = at
    # position t predicts targets[t] after it has read up to t
    yield Answer(ids[: first + 1], targets[first : last + 1].tolist())


def line_ending(ids: Tensor, ends: Tensor) -> Iterator[Answer]:
    """The end of the last whole line of a text, none where there is no line of four tokens after the first ones.

    Args:
        ids: the text, int64 ``[T]``.
        ends: bool ``[V]``, which tokens end a line.
    """
    stops = ends[ids].nonzero().flatten().tolist()
    for before, stop in zip(reversed(stops[:-1]), reversed(stops[1:])):
        rest = min(LINE_ENDING, (stop - before) // 2)
        if before >= _CONTEXT and rest >= 2:
            yield Answer(ids[: stop - rest + 1], ids[stop - rest + 1 : stop + 1].tolist())
            return


@dataclass(frozen=True)
class Needle:
    """A text of a given length in which a key is hidden, and asked for at its end."""

    prompt: Tensor
    """int64 ``[T]``."""
    key: str
    """Five digits."""


def needles(
    tokenizer: PreTrainedTokenizerBase, filler: Sequence[int], length: int, count: int, *, seed: int = 0
) -> list[Needle]:
    """Texts of exactly ``length`` tokens, each with a key at another depth, evenly spread.

    Source: the pass-key retrieval of Mohtashami and Jaggi 2023, arXiv 2305.16300, with a text of the task around it.

    Args:
        tokenizer: of the model that reads them.
        filler: tokens of a text, repeated where it is short.
        length: tokens of a prompt.
        count: texts.
        seed: of keys and places in the filler.

    Raises:
        ManticoreError: so few tokens do not hold the key and the question.
    """
    drawn = random.Random(derive_seed(seed, f"needles of {length}"))
    plain: Any = {"add_special_tokens": False}
    asked = tokenizer(_ASKED, **plain).input_ids
    begin = [tokenizer.bos_token_id] if tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else []
    found = []
    for index in range(count):
        key = f"{drawn.randrange(10_000, 100_000)}"
        hidden = tokenizer(_HIDDEN.format(key=key), **plain).input_ids
        room = length - len(begin) - len(hidden) - len(asked)
        if room < 0:
            raise ManticoreError(
                f"generate: {length} tokens do not hold a hidden key and its question "
                f"({length - room} tokens). Fix: longer lengths"
            )
        around = list(islice(cycle(filler), start := drawn.randrange(len(filler)), start + room))
        depth = round((index + 0.5) / count * room)
        found.append(Needle(torch.tensor([*begin, *around[:depth], *hidden, *around[depth:], *asked]), key))
    return found
