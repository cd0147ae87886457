"""Verbs on models, one per stage: pretrain, combine, align, search, discretize, finetune, compare."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.launching import Processes, start_processes
from manticore.cli.parameters import Model, Out, Seed, Task, TaskOptions, takes
from manticore.cli.task_options import check_options, checked_task
from manticore.cli.terminal import console, done, progress_bar, quiet_libraries, say, say_metrics, say_quantization
from manticore.cli.unfinished import Resume, refuse_begun, unfinished, unfinished_by_several
from manticore.errors import ManticoreError
from manticore.file_names import RESULTS, SCHEMA_VERSION
from manticore.processes import is_first
from manticore.settings import Align, Combine, Compare, Discretize, Finetune, Pretrain, Search
from manticore.writing import new_folder, refuse_existing, write_bytes, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from manticore.tasks.task import Task as LoadedTask


Hybrid = Annotated[str, typer.Argument(metavar="HYBRID", help="A folder that `manticore combine` or align wrote.")]
_SEARCHED = "search"
"""The folder of candidates and of the study."""


@takes(Pretrain)
def pretrain(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY|FOLDER",
            help="A model_type of transformers: gpt_neo, mamba, …; or the folder of a stack, trained from its first "
            "weights.",
        ),
    ],
    out: Out,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where an accelerator is present.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped one, as it does anyway.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a small causal language model from scratch on a text; a killed one goes on from its last checkpoint.

    Example: manticore pretrain gpt_neo --layers 4 --width 64 --text notes.jsonl -o gpt

    Example: manticore pretrain study/designs/MAAM --text notes.jsonl -o grown
    """
    refuse_existing(out)
    sizes = "" if settings["layers"] is None else f" of {settings['layers']} layers, width {settings['width']}"
    say(f"pretrain: {family}{sizes} on {settings['text']}")
    quiet_libraries()
    import manticore
    from manticore.stages.pretrain import Pretrain
    from manticore.training.pretrain import read_record

    try:
        with progress_bar("pretrain") as progress:
            folder = manticore.pretrain(family, **settings, out=out, cpu=cpu, progress=progress)
    except KeyboardInterrupt as stop:
        again = shlex.join(["manticore", *sys.argv[1:]])
        say("stopped; checkpoints are kept in the cache, the same command goes on from them")
        say(f"next: {again}")
        raise SystemExit(exit_code_of(stop)) from None
    record = read_record(folder)
    if record["heldout"]:
        say(f"held-out loss {record['heldout']['loss']:.3f} after {record['tokens']:,} tokens")
    else:
        say("first weights, nothing was trained")
    done(out, Pretrain().next_command(out, settings))


@takes(Combine)
def combine(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Folders, GGUF files or hub ids, two or more.")],
    out: Out,
    seed: Seed = 0,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task with its own vocabulary: fresh embeddings and heads.")
    ] = None,
    task_option: TaskOptions = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Put two or more causal language models side by side, block by block, into one hybrid.

    Example: manticore combine ./gpt ./mamba --num-blocks 2 -o hybrid
    """
    refuse_existing(out)
    chosen = checked_task(task, task_option) if task else None
    check_options("--projector-option", "projector", settings["projector"], settings["projector_options"])
    mixing = Combine(**settings).mixing
    say(f"combine: {' + '.join(models)}, {settings['num_blocks']} blocks, {mixing}, output {settings['output']}")
    quiet_libraries()
    import manticore
    from manticore.hybrid.vocabularies import matched_tokens
    from manticore.stages.combine import Combine as Stage
    from manticore.stages.commands import task_words
    from manticore.tasks.task import load_task

    vocab_size = load_task(task, seed=seed, **chosen).vocab_size if task and chosen is not None else None
    hybrid = manticore.combine(models, vocab_size=vocab_size, seed=seed, **settings)
    with new_folder(out) as folder:
        hybrid.save_pretrained(folder)
    for line in matched_tokens(hybrid, models):
        say(line)
    if vocab_size is not None:
        say(f"{task} has a vocabulary of its own, {vocab_size} tokens: fresh embeddings and heads, no tokenizer")
    words = None if task is None or chosen is None else task_words(task, chosen)
    done(out, Stage().next_command(out, hybrid, words))


@takes(Align)
def align(hybrid: Hybrid, out: Out, seed: Seed = 0, *, settings: dict[str, Any]) -> None:
    """Fit a hybrid's projectors in closed form on calibration text, so that its components understand each other.

    Example: manticore align hybrid --text notes.txt -o aligned
    """
    refuse_existing(out)
    say(f"align: {hybrid} on {settings['tokens']:,} tokens of {settings['text']}")
    quiet_libraries()
    import manticore
    from manticore.stages.align import Align, AlignRecord, left_as_it_was
    from manticore.training.saved_models import load_hybrid

    model: Any = load_hybrid(hybrid, supernet=True)
    with progress_bar("align") as progress:
        report = manticore.align(model, seed=seed, progress=progress, **settings)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        write_json(folder / Align.note, AlignRecord.written(text=settings["text"], **report.to_dict()))
    say(f"loss at equal weights {report.loss_before:.3f} before, {report.loss_after:.3f} after")
    for line in left_as_it_was(report):
        say(line)
    done(out, Align().next_command(out, model, settings))


@takes(Search)
def search(
    hybrid: Hybrid,
    task: Annotated[str, typer.Option("--task", "-t", help="Name of the task; see `manticore ls tasks`.")] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to write; must not exist yet.", metavar="DIR")] = "",
    task_option: TaskOptions = None,
    seed: Seed = 0,
    processes: Processes = None,
    resume: Resume = False,
    resolve: Annotated[
        bool,
        typer.Option("--resolve", help="HYBRID is a finished search: choose again within --max, without training."),
    ] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Find out on a task which component each block of a hybrid should use; fine-tuning goes on with what was found.

    Example: manticore search aligned --task text -o searched
    """
    if resolve:
        from manticore.search.resolve import resolve as chosen_again

        say(str(chosen_again(hybrid, settings["max"])))
        return
    for flag, given in {"--task": task, "--out": out}.items():
        if not given:
            raise ManticoreError(f"search: {flag} is missing. Fix: add {flag}, or --resolve for a finished search")
    several = settings["storage"] is not None
    refuse_begun(out, resume, kept=_SEARCHED if several else None)
    chosen = checked_task(task, task_option)
    start_processes(processes)
    say(f"search: {settings['method']} on {task} in {hybrid}")
    quiet_libraries()
    import manticore
    from manticore.search.objective import CANDIDATES
    from manticore.stages.commands import task_words
    from manticore.stages.search import Search, SearchRecord
    from manticore.tasks.task import load_task
    from manticore.training.begun import BEGUN
    from manticore.training.saved_models import load_hybrid

    model = load_hybrid(hybrid, supernet=True)
    loaded = load_task(task, tokenizer=model.tokenizer, seed=seed, **chosen)
    say_replaced(hybrid, model, model.tokenizer, loaded)
    say_quantization(hybrid, model)
    place = unfinished_by_several(out, _SEARCHED) if several else unfinished(out, resume)
    with place as (kept, folder):
        with progress_bar("search") as progress:
            result = manticore.search(
                model, loaded, seed=seed, out=kept / _SEARCHED, resume=resume, progress=progress, **settings
            )
        if is_first():
            result.model.save_pretrained(folder)
            if result.begun is not None:
                shutil.copytree(result.begun.checkpoints, folder / BEGUN)
                if not several:
                    # others may be about to read them, now or later
                    shutil.rmtree(kept / _SEARCHED / CANDIDATES)
            how = SearchRecord.of(result, settings["method"], settings["order"])
            about = {"seed": seed, "task": {"name": task, "options": chosen}}
            write_json(folder / Search.note, {**about, **how})
    say(result.verdict)
    say(f"path {result.path}")
    done(out, Search().next_command(out, task_words(task, chosen) if result.candidates else None))


@takes(Discretize)
def discretize(hybrid: Hybrid, out: Out, *, settings: dict[str, Any]) -> None:
    """Keep one component per block of a hybrid, drop the rest: as cheap as one component.

    Example: manticore discretize searched -o small
    """
    refuse_existing(out)
    elsewhere = settings.pop("weights_from")
    said = settings["path"] or ("its best path" if elsewhere is None else f"what was found in {elsewhere}")
    say(f"discretize: {hybrid} to {said}")
    quiet_libraries()
    import manticore
    from manticore.hybrid.found import path_found
    from manticore.stages.discretize import Discretize
    from manticore.training.begun import BEGUN, begun_beside
    from manticore.training.saved_models import load_hybrid

    found: Any = load_hybrid(hybrid)
    if elsewhere is not None:
        settings["path"] = path_found(elsewhere, found.config)
    begun = getattr(begun_beside(found, hybrid), "checkpoints", None)
    # what a search has trained is discretized already, to the path that it found
    whole = settings["path"] in (None, found.config.path)
    small = found if begun is not None and whole else manticore.discretize(found, **settings)
    with new_folder(out) as folder:
        small.save_pretrained(folder)
        if begun is not None and whole:
            shutil.copytree(begun, folder / BEGUN)
    say(f"path {small.config.path}")
    done(out, Discretize().next_command(out, small, hybrid))


@takes(Finetune)
def finetune(
    model: Model,
    task: Task,
    out: Out,
    task_option: TaskOptions = None,
    seed: Seed = 0,
    processes: Processes = None,
    resume: Resume = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a model or a hybrid end to end on a task, and score it.

    Example: manticore finetune small --task text --steps 240 -o tuned
    """
    refuse_begun(out, resume)
    chosen = checked_task(task, task_option)
    start_processes(processes)
    say(f"finetune: {model} on {task}")
    quiet_libraries()
    import manticore
    from manticore.report.results import as_results
    from manticore.report.rounding import rounding_notes
    from manticore.stages.combine import TaskInfo
    from manticore.stages.commands import task_words
    from manticore.stages.finetune import Finetune, FinetuneRecord
    from manticore.tasks.task import load_task
    from manticore.training.begun import begun_beside
    from manticore.training.saved_models import load_model
    from manticore.training.sharding import save_model

    loaded, tokenizer = load_model(model)
    problem = load_task(task, tokenizer=tokenizer, seed=seed, **chosen)
    say_replaced(model, loaded, tokenizer, problem)
    say_quantization(model, loaded)
    with unfinished(out, resume) as (kept, folder):
        with progress_bar("finetune") as progress:
            result = manticore.finetune(
                begun_beside(loaded, model),
                problem,
                seed=seed,
                out=kept / "finetune",
                resume=resume,
                progress=progress,
                **settings,
            )
        save_model(result.model, folder, result.dtypes)
        if is_first():
            _keep_tokenizer(tokenizer if problem.vocab_size is None else None, folder)
            about = TaskInfo.of(problem, chosen, test_examples=settings["test_examples"])
            write_json(
                folder / Finetune.note, {"seed": seed, "task": about, **FinetuneRecord.written(**result.to_dict())}
            )
    say_metrics(result.metrics)
    for note in rounding_notes(as_results({"schema_version": SCHEMA_VERSION, "finetune": result.to_dict()})):
        say(note)
    done(out, Finetune().next_command(out, task_words(task, chosen)))


@takes(Compare)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Folders or hub ids of models or hybrids; NAME=FOLDER names one."),
    ],
    task: Task,
    out: Out,
    task_option: TaskOptions = None,
    resume: Resume = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Fine-tune models on a task with the same training FLOPs each, and score them, parents also as they are.

    Example: manticore compare ./gpt ./mamba hybrid=small --task text -o comparison
    """
    refuse_begun(out, resume)
    chosen = checked_task(task, task_option)
    say(f"compare: {', '.join(models)} on {task}")
    quiet_libraries()
    import manticore
    from manticore.experiments.models import named
    from manticore.report import render_comparison
    from manticore.report.cautions import warnings
    from manticore.report.figures import draw_figures
    from manticore.report.results import as_results
    from manticore.report.verdict import verdict
    from manticore.stages.combine import TaskInfo
    from manticore.stages.commands import task_words
    from manticore.stages.compare import Compare
    from manticore.tasks.task import load_task
    from manticore.training.begun import BEGUN
    from manticore.training.saved_models import load_model

    sources = {name: str(source) for name, source in named(models).items()}
    loaded = {name: load_model(source) for name, source in sources.items()}
    own = next((tokenizer for _, tokenizer in loaded.values() if tokenizer is not None), None)
    problem = load_task(task, tokenizer=own, **chosen)
    for name, source in sources.items():
        if (Path(source) / BEGUN).is_dir():
            say(
                f"{name} was trained on a task by a search, which its parents were not; for a comparison from the same "
                "start: manticore discretize ALIGNED --path …"
            )
    for name, (model, tokenizer) in loaded.items():
        say_replaced(name, model, tokenizer, problem)
    with unfinished(out, resume) as (kept, folder):
        with progress_bar("compare") as progress:
            comparison = manticore.compare(
                {name: model for name, (model, _) in loaded.items()},
                problem,
                out=kept / "compare",
                resume=resume,
                progress=lambda done, runs, what: progress(done, runs, {}),
                **settings,
            )
        about = TaskInfo.of(problem, chosen, test_examples=settings["test_examples"])
        if comparison.primary_metric != problem.primary_metric:
            about |= {"primary_metric": comparison.primary_metric, "higher_is_better": False, "chance": None}
        kept_of = {"schema_version": SCHEMA_VERSION, "task": about, "compare": comparison.to_dict()}
        write_json(folder / RESULTS, kept_of)
        results = as_results(kept_of)
        for drawing in draw_figures(results).values():
            write_bytes(folder / f"{drawing.name}.svg", drawing.svg.encode("utf-8"))
    console.print(render_comparison(results))
    for warning in warnings(results):
        say(f"warning: {warning}")
    if len(comparison.budgets) > 1:
        say(verdict(results).sentence)
    sign = 1 if comparison.higher_is_better else -1
    trained = [row for row in comparison.rows if row.model in loaded and row.budget == comparison.main_budget]
    best = max(trained, key=lambda row: sign * row.mean).model
    done(out, Compare().next_command(best, sources[best], task_words(task, chosen)))


def say_replaced(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, task: LoadedTask
) -> None:
    """Where a pretrained vocabulary makes room for the task's own: what the model knew of its tokens is gone."""
    if tokenizer is None or task.vocab_size is None or task.vocab_size == model.config.vocab_size:
        return
    say(
        f"{name}: {task.name} has a vocabulary of its own, {task.vocab_size} tokens: the {model.config.vocab_size:,} "
        "pretrained embeddings and the head are replaced by fresh ones, the tokenizer is dropped "
        "(to keep them: --task text)"
    )


def _keep_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
