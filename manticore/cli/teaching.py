"""The verb that lets a model learn from another one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from manticore.cli.launching import Processes, start_processes
from manticore.cli.parameters import Model, Out, Seed, Task, TaskOptions, takes
from manticore.cli.stages import say_replaced
from manticore.cli.task_options import checked_task
from manticore.cli.terminal import done, progress_bar, quiet_libraries, say
from manticore.cli.unfinished import Resume, refuse_begun, unfinished
from manticore.processes import is_first
from manticore.settings import Distill
from manticore.writing import write_json


@takes(Distill)
def distill(
    student: Model,
    teacher: Annotated[
        str,
        typer.Argument(metavar="TEACHER", help="Folder or hub id: a parent, the supernet, any model of its tokens."),
    ],
    task: Task,
    out: Out,
    task_option: TaskOptions = None,
    seed: Seed = 0,
    processes: Processes = None,
    resume: Resume = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Let a model or a hybrid learn from a teacher: its new parts from blocks, then all of it from predictions.

    Example: manticore distill small aligned --task text --steps 100 -o taught
    """
    refuse_begun(out, resume)
    chosen = checked_task(task, task_option)
    start_processes(processes)
    say(f"distill: {student} learns from {teacher} on {task}")
    quiet_libraries()
    import manticore
    from manticore.stages.combine import TaskInfo
    from manticore.stages.commands import task_words
    from manticore.stages.distill import Distill, DistillRecord
    from manticore.tasks.task import load_task
    from manticore.training.saved_models import load_model
    from manticore.training.sharding import save_model

    loaded, tokenizer = load_model(student)
    problem = load_task(task, tokenizer=tokenizer, seed=seed, **chosen)
    say_replaced(student, loaded, tokenizer, problem)
    with unfinished(out, resume) as (kept, folder):
        with progress_bar("distill") as progress:
            result = manticore.distill(
                loaded, teacher, problem, seed=seed, out=kept / "distill", resume=resume, progress=progress, **settings
            )
        save_model(result.model, folder, result.dtypes)
        if is_first():
            if tokenizer is not None and problem.vocab_size is None:
                tokenizer.save_pretrained(folder)
            about = TaskInfo.of(problem, chosen, test_examples=settings["test_examples"])
            write_json(
                folder / Distill.note, {"seed": seed, "task": about, **DistillRecord.written(**result.to_dict())}
            )
    share = result.teacher_flops / result.flops
    say(f"{' and '.join(phase.name for phase in result.phases)}, {share:.0%} of the FLOPs for the teacher's answers")
    say(f"loss {result.metrics_before['loss']:.3f} before, {result.metrics['loss']:.3f} after")
    done(out, Distill().next_command(out, task_words(task, chosen)))
