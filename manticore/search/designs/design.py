"""``manticore.design``: an architecture search from scratch, from a space and objectives to a front of designs."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from manticore import registry
from manticore.design_settings import Design as DesignSettings
from manticore.errors import ManticoreError, NotFiniteError
from manticore.experiments.side_by_side import useful_workers
from manticore.file_names import STUDY as RECORD
from manticore.keywords import takes
from manticore.paths import expanded
from manticore.processes import process_count
from manticore.runs.ledger import write_record
from manticore.runs.lineage import task_inputs
from manticore.search.designs.method import Batch
from manticore.search.designs.result import StudyResult, result_of
from manticore.search.designs.reuse import TRAINING, earlier_trainings, training_key
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import DesignSpace
from manticore.search.designs.study import STUDY, DesignStudy, baselines
from manticore.search.designs.training import DesignTraining
from manticore.search.storage import Connection
from manticore.training.callbacks import Progress

if TYPE_CHECKING:
    from manticore.stacks.configuration import StackConfig

__all__ = ["StudyResult", "design"]


_SPACE = "the members of manticore.search.designs.space.DesignSpace"


@takes(DesignSettings, by_position=("space", "objectives"))
def design(
    settings: DesignSettings,
    *,
    name: str = "study",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    reuse: str | Path | StudyResult | None = None,
    cpu: bool = False,
    progress: bool | Progress = False,
) -> StudyResult:
    """Search for architectures, each trained from scratch, by one objective or several.

    A design is trained on a text, on MAD tasks, or both, and measured; one trial has every measure there is, so
    objectives and limits may be any of them. What a trial finds depends on the seed, the design and the settings alone:
    any number of workers, killed ones and a resumed study come to the same designs and scores.

    Args:
        settings: the options below in one object, which single ones change.
        name: of the study, in its record.
        seed: of first weights, of the order of the data and of all draws of the method.
        out: folder for ``study.json``, ``designs/`` and the trials; None writes nothing.
        resume: go on with the trials in ``out``, if there are some.
        reuse: another study, or its folder, that has trained designs of the same space in the same way: those that both
            ask for are not trained again, whatever they are judged by; the results are the same.
        cpu: stay on the CPU where an accelerator is present.
        progress: True for a bar on the terminal, or a function of (trials, trials at most, row).

    Raises:
        ManticoreError: impossible options, more trials than designs, the storage of another study, text that cannot be
            read, no design that trains, or a study to reuse whose trainings are others.
    """
    registry.resolve("design", settings.method)
    space = made_space(settings)
    _refuse_workers(settings, out, cpu=cpu)
    folder = None if out is None else expanded(out)
    if folder is not None and not resume and settings.storage is None and (folder / RECORD).exists():
        raise ManticoreError(
            f"design: {folder} holds a study already. Fix: resume it (resume=True), or choose another out"
        )
    with TemporaryDirectory(prefix="manticore-study-") as kept:
        place = Path(kept)
        return _run(settings, space, name, seed, folder, place, resume=resume, reuse=reuse, cpu=cpu, progress=progress)


def made_space(settings: DesignSettings) -> DesignSpace:
    """The space that settings name, or hold.

    Raises:
        ManticoreError: an option that it does not have, or that is missing; what the space itself refuses.
    """
    wanted: Any = settings.space
    if not isinstance(wanted, str):
        if settings.space_options:
            raise ManticoreError("design: space_options beside a space that is made already. Fix: leave them out")
        if missing := _missing(wanted):
            raise ManticoreError(
                f"design: space is {wanted!r:.60}, which has no {missing} (expected a space of designs, {_SPACE}). "
                "Fix: space='layers'"
            )
        space: DesignSpace = wanted
        return space
    space = _called("space", wanted, settings.space_options)
    if missing := _missing(space):
        raise registry.at_fault(
            "space", wanted, f"makes a {type(space).__name__} without {missing} (expected {_SPACE})"
        )
    return space


def _missing(space: Any) -> str:
    """The first member of a space of designs that a thing does not have; empty where it has all."""
    # looked up without being computed: the size of a space may take its list
    members = (name for name in vars(DesignSpace) if not name.startswith("_"))
    return next((name for name in members if inspect.getattr_static(space, name, None) is None), "")


def asking_of(settings: DesignSettings, scores: Scores, seed: int) -> Iterator[Batch]:
    """The batches that the method asks for; the first one is drawn now.

    Raises:
        ManticoreError: an option that the method does not have, or what it refuses; later too, what it asks for is no
            batch of designs.
    """
    asking = _called("design", settings.method, settings.method_options, scores, seed, settings.trials)
    batches = _batches(settings.method, asking, scores.space)
    # what a generator refuses it refuses at the first step
    return chain(list(islice(batches, 1)), batches)


def _batches(method: str, asking: Any, space: DesignSpace) -> Iterator[Batch]:
    """What a method asks for, while it is that."""
    with registry.blaming("design", method):
        for batch in asking:
            wrong = next((each for each in batch if not isinstance(each, tuple) or space.problem(each)), None)
            if wrong is not None:
                why = space.problem(wrong) if isinstance(wrong, tuple) else "expected a tuple of integers"
                raise registry.at_fault("design", method, f"asks for {wrong!r:.60}, which is no design ({why})")
            yield batch


def scores_of(settings: DesignSettings, space: DesignSpace) -> Scores:
    """Empty scores with the goals and limits of settings."""
    goals = [Goal(measure, maximise) for measure, maximise in settings.goals]
    return Scores(space, goals, dict(settings.max), dict(settings.min))


def example_of(space: DesignSpace) -> StackConfig:
    """The stack of some design, for depth and width."""
    whole = space.repaired(tuple(legal[-1] for legal in space.values), random.Random(0))
    return space.config(whole, vocab_size=16, positions=16)


def _called(kind: str, name: str, options: Mapping[str, Any], *arguments: Any) -> Any:
    """What a registered thing makes of options by name.

    Raises:
        ManticoreError: an option that it does not have, or lacks.
    """
    builder = registry.resolve(kind, name)
    with registry.blaming(kind, name):
        parameters = list(inspect.signature(builder).parameters.values())[len(arguments) :]
    where = f"design: {'space' if kind == 'space' else 'method'} {name!r}"
    known = [each.name for each in parameters]
    for option in options:
        if option not in known:
            raise ManticoreError(f"{where} has no option {option!r}{registry.did_you_mean(option, known)}")
    lacks = [each.name for each in parameters if each.default is each.empty and each.name not in options]
    if lacks:
        key = "space_options" if kind == "space" else "method_options"
        raise ManticoreError(f"{where} needs {' and '.join(lacks)}. Fix: {key}: {{{lacks[0]}: …}}")
    with registry.blaming(kind, name):
        return builder(*arguments, **options)


def _refuse_workers(settings: DesignSettings, out: str | Path | None, *, cpu: bool) -> None:
    if process_count() > 1:
        raise ManticoreError(
            f"design: each design trains in one process (got {process_count()}). Fix: --workers instead of --processes"
        )
    if settings.storage is not None and out is None:
        raise ManticoreError("design: a storage needs an out, where its workers meet. Fix: out=FOLDER")
    if settings.workers > 1 and useful_workers(settings.workers, cpu=cpu) == 1:
        raise ManticoreError(
            f"design: workers is {settings.workers}, but these are processes of one CPU on Linux. Fix: leave it out; "
            "for one worker per accelerator start the command once for each, all with the same storage and the same out"
        )


def _run(
    settings: DesignSettings,
    space: DesignSpace,
    name: str,
    seed: int,
    folder: Path | None,
    kept: Path,
    *,
    resume: bool,
    reuse: str | Path | StudyResult | None,
    cpu: bool,
    progress: bool | Progress,
) -> StudyResult:
    training = DesignTraining(settings, seed=seed, cpu=cpu)
    scores = scores_of(settings, space)
    # the method refuses what it cannot do before anything is read or written
    asking = asking_of(settings, scores, seed)
    makes = baselines(example_of(space)) if settings.baselines else {}
    training.prepare()
    tokenizer, inputs = None, {}
    if settings.text is not None:
        task, tokenizer = training.text
        inputs = task_inputs(task)
    chosen = settings.key(
        space=space.key,
        objectives=list(settings.objectives),
        seed=seed,
        steps=settings.training_steps,
        workload=settings.workload,
    )
    trained_by = training_key(chosen, inputs, device=training.device)
    if reuse is not None:
        training.earlier = earlier_trainings(reuse, trained_by)
    method = {"name": settings.method, **settings.method_options}
    about = {"name": name, "method": method, "seed": seed, TRAINING: trained_by}
    alone = folder is None and settings.workers == 1
    database = STUDY if settings.storage is None and not alone else settings.study_name
    place = kept if folder is None else folder
    bar = _Bar(progress, settings.trials)

    def so_far(*, unfinished: bool = True) -> StudyResult:
        found = result_of(study, training, makes, about=about, unfinished=unfinished, tokenizer=tokenizer)
        if folder is not None and found.trials and unfinished:
            write_record(folder / RECORD, found.record)
        elif folder is not None:
            found.save(folder)
        return found

    study = DesignStudy(
        training,
        scores,
        Connection(
            settings.storage,
            None if alone else place,
            database,
            stage="design",
            directions=["maximize" if goal.maximise else "minimize" for goal in scores.goals],
        ),
        place,
        settings=chosen,
        inputs=inputs,
        joins=resume or settings.storage is not None,
        workers=settings.workers,
        told=lambda: bar.tell(study),
    )
    try:
        study.run(asking, makes, so_far)
    finally:
        bar.close()
    if scores.failed and not scores.found:
        raise NotFiniteError(f"design: every design failed; the last one: {list(scores.failed.values())[-1]}")
    found = so_far(unfinished=False)
    study.tidy()
    return found


class _Bar:
    """Progress in trials, with the best so far."""

    def __init__(self, progress: bool | Progress, trials: int) -> None:
        self._report: Callable[..., None] | None = progress if callable(progress) else None
        self._trials = trials
        self._bar = tqdm(total=trials, desc="design", unit="design", disable=not progress or callable(progress))

    def tell(self, study: DesignStudy) -> None:
        best, goal = study.best_so_far(), study.scores.goals[0]
        done = min(study.finished, self._trials)
        if self._report is not None:
            self._report(done, self._trials, {} if best is None else {f"best {goal.measure}": best})
            return
        if best is not None:
            self._bar.set_postfix_str(f"best {goal.measure} {best:.4g}")
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()
