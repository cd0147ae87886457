"""What a model writes by itself, beside its likelihood: exact match, samples, recall by length, speed."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import BaseStreamer

from manticore.errors import ManticoreError
from manticore.kernels.mamba import fast_scan
from manticore.modes import kept_modes
from manticore.tasks.answers import Answer, answers, needles
from manticore.training.budget import cache_cost
from manticore.training.prepare import positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
"""Tokens of a prompt at which recall and speed are looked at, where nothing else is asked for."""
EXAMPLES = 64
NEEDLES = 8
"""Texts with a hidden key per length."""
SAMPLES = 3
_SAMPLE_PROMPT, _SAMPLE_TOKENS = 64, 32
_DIGITS = 8
"""Tokens in which five digits are written, with a space."""
_DECODED = 16
"""Tokens whose median gap is the speed of decoding."""
_TOKENS_TOGETHER = 8192


@dataclass(frozen=True)
class Sample:
    """What a model writes after a prompt."""

    prompt: str
    expected: str
    written: str


@dataclass(frozen=True)
class Recall:
    """How often what lies in a text of a length is found again."""

    length: int
    """Tokens that are read."""
    share: float
    examples: int


@dataclass(frozen=True)
class Speed:
    """Generation of one sequence, after a prompt that fills the cache."""

    context: int
    """Tokens of the prompt."""
    first_token_ms: float
    tokens_per_second: float
    cache_bytes: int
    """Of the whole cache at that length."""


@dataclass(frozen=True)
class Generated:
    """Scores of what a model writes, greedily."""

    exact_match: float
    """Share of answers of which every token is right."""
    examples: int
    samples: list[Sample]
    recall: list[Recall]
    speed: list[Speed]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def generated(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    split: str = "test",
    examples: int = EXAMPLES,
    lengths: Sequence[int] = LENGTHS,
    hidden: int = NEEDLES,
    say: Callable[[str], None] = lambda what: None,
) -> Generated:
    """Let a model write greedily, and score what it writes.

    Args:
        model: a hybrid, a stack or any causal LM of transformers.
        task: whose answers it is to write: the last one of each example, or the ends of lines of a text.
        tokenizer: the model's, where the task is text.
        split: whose examples.
        examples: as many, at most.
        lengths: of prompts for recall and speed; those beyond the model's positions are left out. On text a key is
            hidden in the split's own text; a task with a vocabulary of its own is made with examples of that length,
            where it can be.
        hidden: texts with a key per length.
        say: is told what comes next.

    Raises:
        ManticoreError: the model writes nothing, or the task has no answers.
    """
    if not model.can_generate():
        raise ManticoreError(f"generate: a {type(model).__name__} writes no text. Fix: leave generate out")
    limit = positions(model)
    within = [length for length in lengths if limit is None or length + _DECODED <= limit]
    if len(within) < len(lengths):
        say(f"prompts beyond {limit:,} positions, less {_DECODED} to be written, are left out")
    with torch.no_grad(), kept_modes(model), fast_scan(model):
        model.eval()
        found = _answers(task, split, tokenizer, examples)
        say(f"exact match of {len(found)} answers")
        right = [written == answer.tokens for answer, written in zip(found, _write_all(model, found))]
        samples = [_sample(model, task, answer, tokenizer) for answer in _first(task, split, found, tokenizer)]
        recall: list[Recall] = []
        for length in within:
            say(f"recall at {length:,} tokens")
            recall += _recall(model, task, split, tokenizer, length, hidden)
        speed = []
        for length in within:
            say(f"speed at {length:,} tokens")
            speed.append(_speed(model, length))
    return Generated(statistics.fmean(right), len(found), samples, recall, speed)


def check_generated(
    task: Task, tokenizer: PreTrainedTokenizerBase | None, lengths: Sequence[int], *, split: str = "test"
) -> None:
    """Refuse a task and lengths, before anything is spent, that :func:`generated` would refuse.

    Raises:
        ManticoreError: the task has no answers, or the shortest length holds no hidden key.
    """
    _answers(task, split, tokenizer, 1)
    if task.vocab_size is None and tokenizer is not None:
        needles(tokenizer, [0], min(lengths), 1)


def _answers(task: Task, split: str, tokenizer: PreTrainedTokenizerBase | None, most: int) -> list[Answer]:
    found = list(islice(answers(task, split, tokenizer), most))
    if not found:
        raise ManticoreError(f"generate: no example of {task.name}, {split}, has an answer. Fix: longer examples")
    return found


def _write(model: Any, prompts: Tensor, count: int, streamer: BaseStreamer | None = None) -> Tensor:
    """What is written after prompts of one length, ``[B, count]``; nothing ends it early."""
    device = next(model.parameters()).device
    written = model.generate(
        input_ids=prompts.to(device),
        attention_mask=torch.ones_like(prompts, device=device),
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        # no token: in a task's own vocabulary any may be an answer
        eos_token_id=model.config.vocab_size,
        streamer=streamer,
    )
    return written[:, prompts.shape[1] :].cpu()


def _write_all(model: Any, found: Sequence[Answer]) -> list[list[int]]:
    """What is written for each, those of equal sizes together."""
    written: dict[int, list[int]] = {}

    def sizes(index: int) -> tuple[int, int]:
        return len(found[index].prompt), len(found[index].tokens)

    for (length, count), same in groupby(sorted(range(len(found)), key=sizes), key=sizes):
        for part in _parts(list(same), max(1, _TOKENS_TOGETHER // (length + count))):
            rows = _write(model, torch.stack([found[index].prompt for index in part]), count)
            written |= dict(zip(part, rows.tolist()))
    return [written[index] for index in range(len(found))]


def _parts(whole: list[int], most: int) -> Iterator[list[int]]:
    return (whole[at : at + most] for at in range(0, len(whole), most))


def _first(
    task: Task, split: str, found: Sequence[Answer], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Answer]:
    """What samples are of: beginnings of text, or the first answers."""
    if task.vocab_size is not None or tokenizer is None:
        yield from found[:SAMPLES]
        return
    for row in islice(task.data[split].with_format("torch"), SAMPLES):
        begin = min(_SAMPLE_PROMPT, len(row["input_ids"]) // 2)
        ids = row["input_ids"][: begin + _SAMPLE_TOKENS]
        yield Answer(ids[:begin], ids[begin:].tolist())


def _sample(model: Any, task: Task, answer: Answer, tokenizer: PreTrainedTokenizerBase | None) -> Sample:
    written = _write(model, answer.prompt[None], len(answer.tokens))[0].tolist()

    def read(ids: list[int]) -> str:
        if tokenizer is None or task.vocab_size is not None:
            return " ".join(map(str, ids))
        return str(tokenizer.decode(ids))

    return Sample(read(answer.prompt.tolist()), read(answer.tokens), read(written))


def _recall(
    model: Any,
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase | None,
    length: int,
    count: int,
) -> Iterator[Recall]:
    if task.vocab_size is None and tokenizer is not None:
        filler = [token for row in task.data[split]["input_ids"][:NEEDLES] for token in row]
        hidden = needles(tokenizer, filler, length, count)
        found = _write_all(model, [Answer(needle.prompt, [0] * _DIGITS) for needle in hidden])
        right = [_says(str(tokenizer.decode(ids)), needle.key) for ids, needle in zip(found, hidden)]
        yield Recall(length, statistics.fmean(right), len(right))
    elif task.at_length is not None:
        asked = list(islice(answers(task.at_length(length), split), EXAMPLES))
        right = [ids == answer.tokens for ids, answer in zip(_write_all(model, asked), asked)]
        yield Recall(length, statistics.fmean(right), len(right))


def _says(written: str, key: str) -> bool:
    return re.match(rf"\s*{key}(?!\d)", written) is not None


class _Clock(BaseStreamer):
    """When each token came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt first, then with each token."""
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Called once all are written."""


def _speed(model: Any, length: int) -> Speed:
    drawn = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, length), generator=drawn)
    clock = _Clock()
    _write(model, prompt, _DECODED + 1, clock)
    begun, first, *rest = clock.at
    gaps = [after - before for before, after in zip([first, *rest], rest)]
    cost = cache_cost(model, length)
    return Speed(
        length,
        1e3 * (first - begun),
        1 / statistics.median(gaps),
        cost.bytes_per_token * length + cost.state_bytes,
    )
