"""Verbs that use a model and leave it as it is: evaluate, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manticore.cli.parameters import Model, Seed, Task, TaskOptions
from manticore.cli.task_options import checked_task
from manticore.cli.terminal import done, quiet_libraries, say, say_metrics, say_quantization, say_text
from manticore.errors import ManticoreError
from manticore.option_types import LONGEST_PROMPT
from manticore.paths import expanded
from manticore.writing import refuse_existing, write_json

if TYPE_CHECKING:
    from manticore.tasks.task import Task as LoadedTask


def evaluate(
    model: Model,
    task: Task,
    task_option: TaskOptions = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Examples per forward pass.", min=1)] = 64,
    max_examples: Annotated[int | None, typer.Option(help="Score only the first ones.", min=1)] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Score what it writes too: exact match, recall by length, speed.")
    ] = False,
    lengths: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="With --generate: tokens of prompts. Default: 128,256,512,1024,2048,4096."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="JSON file to write; must not exist yet.")] = None,
) -> None:
    """Score a model or a hybrid on a task, by likelihood, and if asked for by what it writes.

    Example: manticore evaluate tuned --task text

    Example: manticore evaluate tuned --task text --generate --lengths 128,512
    """
    if out is not None:
        refuse_existing(out)
    chosen, prompts = checked_task(task, task_option), _lengths(lengths, generate)
    say(f"evaluate: {model} on {task}, {split}")
    quiet_libraries()
    import manticore
    from manticore.components.checkpoint_folder import quantization_of
    from manticore.stages.commands import finetune_command, task_words
    from manticore.tasks.task import load_task
    from manticore.training.saved_models import load_model

    loaded, tokenizer = load_model(model)
    say_quantization(model, loaded)
    problem = load_task(task, tokenizer=tokenizer, **chosen)
    metrics = manticore.evaluate(loaded, problem, split=split, batch_size=batch_size, max_examples=max_examples)
    scored = min(len(problem.data[split]), max_examples or len(problem.data[split]))
    say(f"{scored:,} of the {len(problem.data[split]):,} examples of {split}:")
    say_metrics(metrics)
    record: dict[str, Any] = {"model": model, "task": task, "split": split, "examples": scored, "metrics": metrics}
    if (kind := quantization_of(loaded)) is not None:
        record["dequantized_from"] = kind
    if generate:
        record["generated"] = _say_generated(loaded, problem, tokenizer, split, max_examples, prompts)
    again = finetune_command(model, Path(model).name, task_words(task, chosen))
    if out is None:
        say(f"next: {again}")
    else:
        file = expanded(out)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        done(out, again)


def _lengths(given: str | None, generate: bool) -> list[int] | None:
    if given is None:
        return None
    if not generate:
        raise ManticoreError("--lengths is for what a model writes. Fix: add --generate")
    try:
        lengths = [int(part) for part in given.split(",")]
    except ValueError:
        lengths = []
    if not lengths or not all(1 < length <= LONGEST_PROMPT for length in lengths):
        raise ManticoreError(
            f"--lengths: wrong value (got {given!r}, expected whole numbers from 2 to {LONGEST_PROMPT:,}). Fix: 128,512"
        )
    return sorted(set(lengths))


def _say_generated(
    model: Any,
    problem: LoadedTask,
    tokenizer: Any,
    split: str,
    max_examples: int | None,
    lengths: list[int] | None,
) -> dict[str, Any]:
    from manticore.experiments.generating import EXAMPLES, LENGTHS, generated
    from manticore.quantities import memory

    found = generated(
        model,
        problem,
        tokenizer,
        split=split,
        examples=min(max_examples or EXAMPLES, EXAMPLES),
        lengths=lengths or LENGTHS,
        say=say,
    )
    say(f"exact match {found.exact_match:.3f} of {found.examples} answers, written greedily")
    for recall in found.recall:
        say(f"recall at {recall.length:,} tokens: {recall.share:.3f} of {recall.examples}")
    for speed in found.speed:
        say(
            f"after {speed.context:,} tokens: first token {speed.first_token_ms:,.0f} ms, then "
            f"{speed.tokens_per_second:,.1f} tokens/s, cache {memory(speed.cache_bytes)}"
        )
    for sample in found.samples:
        say(f"after {sample.prompt[-80:]!r} it writes {sample.written!r}, and should {sample.expected!r}")
    return found.to_dict()


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token.", min=0.0)] = 0.0,
    seed: Seed = 0,
) -> None:
    """Continue a text with a model or a hybrid.

    Example: manticore generate tuned "import os"
    """
    quiet_libraries()
    quiet_libraries()
    import torch

    from manticore.stages.commands import evaluate_command, noted_task, words_for
    from manticore.stages.finetune import Finetune
    from manticore.training.prepare import check_tokens, positions
    from manticore.training.saved_models import load_model

    loaded, tokenizer = load_model(model)
    if not loaded.can_generate():
        raise ManticoreError(f"{model}: a {type(loaded).__name__} writes no text. Fix: give a causal language model")
    if tokenizer is None:
        raise ManticoreError(f"{model}: carries no tokenizer, so it reads no text. Fix: give a model that has one")
    encoded = tokenizer(prompt, return_tensors="pt")
    if encoded.input_ids.shape[1] == 0:
        raise ManticoreError("generate: the prompt is empty. Fix: give at least one word")
    check_tokens(encoded.input_ids.max().item(), loaded, f"{model}: its tokenizer")
    limit, total = positions(loaded), encoded.input_ids.shape[1] + max_new_tokens
    # the last token is not read again
    if limit is not None and total - 1 > limit:
        raise ManticoreError(
            f"generate: prompt and new tokens make {total}, but {model} has {limit} positions. "
            "Fix: a shorter prompt, or a smaller --max-new-tokens"
        )
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    tokens = loaded.generate(  # type: ignore[operator]
        input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=max_new_tokens, **sampling
    )
    say_text(str(tokenizer.decode(tokens[0], skip_special_tokens=True)))
    say_text("")
    words = noted_task(Path(model) / Finetune.note, as_text=True) or words_for(loaded)
    say(f"next: {evaluate_command(model, words)}")
