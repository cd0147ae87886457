"""Distillation: a student learns from a teacher, first its new parts from blocks, then all of it from predictions.

The phases, what trains in each and what the teacher's answers cost; the losses are in
:mod:`manticore.training.imitation`, the teacher in :mod:`manticore.training.teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manticore import registry
from manticore.components.loading import own_tokenizer
from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.keywords import takes
from manticore.modes import kept_modes
from manticore.runs.lineage import training_inputs
from manticore.settings import Distill
from manticore.tasks.task import Task, load_task
from manticore.tasks.text_sources import LENGTH
from manticore.training.answers import Answers
from manticore.training.budget import flops_per_step, measured_without_data, steps_within
from manticore.training.callbacks import Progress
from manticore.training.evaluate import evaluate
from manticore.training.finetune import loaded_student
from manticore.training.imitation import BlocksTrainer, LogitsTrainer, variances, with_states
from manticore.training.opening import as_trained, opened
from manticore.training.precision import Precision
from manticore.training.prepare import fit_to_task, positions, resolve_task
from manticore.training.teacher import STAGE, Counterpart, Teacher
from manticore.training.tracking import trackers
from manticore.training.trainable import merge_lora, set_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from manticore.search.result import SearchResult
    from manticore.tasks.corpus import Text

BLOCKS, LOGITS = "blocks", "logits"


@dataclass(frozen=True)
class PhaseResult:
    """What one phase took."""

    name: str
    """``"blocks"`` or ``"logits"``."""
    steps: int
    tokens: int
    """Input tokens seen."""
    student_flops: int
    """Training FLOPs, forward and backward."""
    teacher_flops: int
    """Forward FLOPs of the teacher."""
    seconds: float
    loss_first: float | None
    """The first logged value of what the phase minimises, and the last one."""
    loss_last: float | None
    boundaries: list[int] = field(default_factory=list)
    """Of blocks: where features are compared; n stands for what enters block n, N for what leaves the last."""


@dataclass(frozen=True)
class DistillResult:
    """A student that has learned from a teacher, and what it took."""

    model: PreTrainedModel
    """The student that was given, changed in place."""
    teacher: str
    """Its folder or hub id, or its class."""
    phases: list[PhaseResult]
    steps: int
    tokens: int
    flops: int
    """Training FLOPs of the student and the teacher's forward passes."""
    teacher_flops: int
    seconds: float
    """Training time, earlier sessions of a resumed run included."""
    metrics_before: dict[str, float]
    """Metrics of the student on the test split before it learned."""
    metrics: dict[str, float]
    """The same afterwards, of the weights in the type that they are saved in."""
    history: list[dict[str, Any]]
    """One row per logged step: ``phase``, ``step``, ``loss``, ``learning_rate``, ``grad_norm``, ``epoch``."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """Name of a weight or buffer → the type that it is saved in."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        names = ("teacher", "steps", "tokens", "flops", "teacher_flops", "seconds", "metrics_before", "metrics")
        found = {name: getattr(self, name) for name in (*names, "history")}
        return {**found, "phases": [asdict(phase) for phase in self.phases]}


@takes(Distill)
def distill(
    student: PreTrainedModel | SearchResult | str | Path,
    teacher: PreTrainedModel | str | Path,
    data: str | Task | Text,
    settings: Distill,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> DistillResult:
    """Train `student` towards what `teacher` computes on the training split of `data`.

    Phase blocks: the projectors of a discretized hybrid alone, towards the features that the components hold at the
    same boundaries when they run alone; everything that came from a parent is frozen. The teacher is the supernet, or
    one of the parents: then only the boundaries of its blocks count. Phase logits: what ``trainable`` says, towards
    the teacher's distributions of the next token.

    Args:
        student: a hybrid or any causal LM of transformers, or the folder or hub id of one; changed in place.
        teacher: a causal LM with the same vocabulary: a parent, a supernet, a hybrid of any output, or a folder or hub
            id. It stays as it is, in its own precision.
        data: a task, the name of a registered one, or text as :func:`manticore.align` takes it, which the task
            ``text`` then packs.
        settings: the options below in one object, which single ones change.
        seed: of the data order, dropout and fresh parameters.
        out: folder for ``metrics.jsonl`` and ``checkpoints/`` of each phase; None writes nothing.
        resume: go on from the last complete checkpoint in `out`, if there is one.
        cpu: stay on the CPU where an accelerator is present.
        progress: True for a bar on the terminal, or a function of (step, steps, row).
        tokenizer: for tasks that read text; None takes the student's.

    Raises:
        ManticoreError: a teacher with another vocabulary, that is the student or predicts no tokens, a phase without
            anything to compare, a task with classes, a budget below one step, or a loss that is not finite.
    """
    if settings.report_to:
        # refused before anything is loaded
        trackers(settings.report_to, out, stage=STAGE)
    student = loaded_student(student)
    task = _as_task(data, student, tokenizer, seed)
    if task.num_classes is not None:
        raise ManticoreError(
            f"{STAGE}: {task.name} has classes, and distillation compares predictions of tokens. "
            "Fix: fine-tune on it, or distil on a task without classes"
        )
    student = fit_to_task(student, task, seed)
    master = Teacher(teacher, student, task)
    compared = _compared(settings.phases, master, student)
    before = evaluate(student, task, batch_size=settings.batch_size, max_examples=settings.test_examples)
    run = _Run(student, master, task, settings, compared, seed=seed, out=out, resume=resume, cpu=cpu)
    phases, history = run.train(progress)
    if settings.trainable == "lora":
        merge_lora(student)
    return DistillResult(
        model=student,
        teacher=master.name,
        phases=phases,
        steps=sum(phase.steps for phase in phases),
        tokens=sum(phase.tokens for phase in phases),
        flops=sum(phase.student_flops + phase.teacher_flops for phase in phases),
        teacher_flops=sum(phase.teacher_flops for phase in phases),
        seconds=sum(phase.seconds for phase in phases),
        metrics_before=before,
        metrics=evaluate(student, task, batch_size=settings.batch_size, max_examples=settings.test_examples),
        history=history,
        dtypes=dict(run.precision.saved),
    )


def _as_task(data: Any, student: PreTrainedModel, tokenizer: Any, seed: int) -> Task:
    if not isinstance(data, Task) and not (isinstance(data, str) and data in registry.entries("task")):
        limit = positions(student)
        length = LENGTH if limit is None else min(LENGTH, limit)
        reader = tokenizer or own_tokenizer(student)
        data = load_task("text", tokenizer=reader, seed=seed, source=data, length=length)
    return resolve_task(data, student, tokenizer, seed, stage=STAGE)


def _compared(phases: str, teacher: Teacher, student: PreTrainedModel) -> list[Counterpart]:
    """Where blocks are compared; empty where that phase is left out."""
    if phases == LOGITS:
        return []
    found, why = teacher.counterparts(student)
    if why and phases != "auto":
        raise ManticoreError(f"{STAGE}: no block can be compared with the teacher's: {why}. Fix: phases=logits")
    return found


def phase_steps(settings: Distill, costs: Mapping[str, int], once: int = 0) -> dict[str, int]:
    """The steps of each phase.

    Args:
        settings: with steps, or with a budget.
        costs: phase → FLOPs of a step, teacher included, in the order in which phases are made.
        once: what is spent beside the steps of the last phase.

    Raises:
        ManticoreError: a budget or a number of steps that leaves none for a phase.
    """
    names = list(costs)
    if settings.budget_flops is None:
        steps = settings.steps or settings.default_steps
        if len(names) == 1:
            return {names[0]: steps}
        if steps < 2:
            raise ManticoreError(f"{STAGE}: steps is {steps}, and each of two phases takes one. Fix: 2 or more")
        first = min(max(1, round(settings.block_share * steps)), steps - 1)
        return {names[0]: first, names[1]: steps - first}
    found, left = {}, settings.budget_flops
    for name, cost in costs.items():
        share = left - once if name == names[-1] else settings.block_share * left
        found[name] = steps_within(share, cost, stage=f"{STAGE} {name}")
        left -= found[name] * cost
    return found


class _Run:
    """The phases of one distillation, one after the other."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher,
        task: Task,
        settings: Distill,
        compared: list[Counterpart],
        *,
        seed: int,
        out: str | Path | None,
        resume: bool,
        cpu: bool,
    ) -> None:
        self.student, self.teacher, self.task, self.settings, self.compared = student, teacher, task, settings, compared
        self.seed, self.out, self.resume, self.cpu = seed, out, resume, cpu
        self.precision = Precision(student, settings.dtype, bf16=settings.bf16, cpu=cpu, stage=STAGE)
        self.names = [BLOCKS] * bool(compared) + [LOGITS] * (settings.phases != BLOCKS)
        self.flops: dict[str, tuple[int, int]] = {}
        """Phase → FLOPs of a step: the student's, the teacher's."""
        self._count()
        self.once = self._answered_once() if settings.keep_answers and LOGITS in self.names else 0
        """FLOPs of answers that are computed before the phase logits, for all of its steps."""
        self.steps = phase_steps(settings, {name: sum(self.flops[name]) for name in self.names}, self.once)

    def _count(self) -> None:
        """What a step of each phase costs; and afterwards the parameters are there that the last phase trains."""
        student, settings, size = self.student, self.settings, (self.settings.batch_size, self.task.length)
        mixing = getattr(student, "mixing", None)
        for weights in mixing.mixture_parameters() if mixing is not None else ():
            weights.requires_grad_(False)
        if LOGITS in self.names:
            set_trainable(
                student,
                settings.trainable,
                fresh_vocabulary=self.task.vocab_size is not None,
                lora_rank=settings.lora_rank,
                seed=self.seed,
            )
        self._trained = [p for p in student.parameters() if p.requires_grad]
        with as_trained(student, settings):
            if LOGITS in self.names:
                self.flops[LOGITS] = flops_per_step(student, *size), self.teacher.logits_flops(*size)
            if BLOCKS in self.names:
                self._choose(BLOCKS)
                learning = measured_without_data(student, lambda m: blocks_flops(m, self.compared, *size))
                self.flops[BLOCKS] = learning, self.teacher.features_flops(self.compared, *size)

    def _answered_once(self) -> int:
        """What the teacher's answers to every training example cost; in the steps, they then cost nothing."""
        learning, answering = self.flops[LOGITS]
        self.flops[LOGITS] = learning, 0
        return round(answering * len(self.task.data["train"]) / self.settings.batch_size)

    def _choose(self, phase: str) -> None:
        """Set what trains in a phase."""
        self.student.requires_grad_(False)
        if phase == BLOCKS:
            self.student.mixing.projectors.requires_grad_(True)  # type: ignore[union-attr]
        else:
            for parameter in self._trained:
                parameter.requires_grad_(True)

    def train(self, progress: bool | Progress) -> tuple[list[PhaseResult], list[dict[str, Any]]]:
        """Every phase to its last step; what each took, and the logged rows."""
        results: list[PhaseResult] = []
        history: list[dict[str, Any]] = []
        whole = sum(self.steps.values())
        for name in self.names:
            done = sum(phase.steps for phase in results)
            shown = partial(_told, progress, done, whole) if callable(progress) else progress
            result, rows = self._phase(name, shown)
            results.append(result)
            history += [{"phase": name, **row} for row in rows]
        return results, history

    def _phase(self, name: str, progress: bool | Progress) -> tuple[PhaseResult, list[dict[str, float]]]:
        steps = self.steps[name]
        settings = self.settings.model_copy(
            update={
                "steps": steps,
                "budget_flops": None,
                "lr": self.settings.block_lr if name == BLOCKS else self.settings.lr,
            }
        )
        self._choose(name)
        folder = None if self.out is None else Path(self.out) / name
        with opened(
            self.student,
            self.task,
            settings,
            self.precision,
            stage=STAGE,
            draws=f"distill {name}",
            seed=self.seed,
            out=folder,
            resume=self.resume,
            cpu=self.cpu,
            log_steps=settings.log_steps,
            key={"phase": name},
            inputs={**training_inputs(self.student, self.task), "teacher": self.teacher.digest},
        ) as training:
            device = training.args.device
            with self.teacher.answering(device):
                common: dict[str, Any] = {
                    "stage": f"{STAGE} {name}",
                    "checkpoint": training.checkpoint,
                    "decay": settings.decay,
                    "metrics_file": None if folder is None else training.folder / "metrics.jsonl",
                    "progress": progress,
                    "callbacks": trackers(settings.report_to, folder, stage=STAGE),
                    "teacher": self.teacher,
                }
                positional = (self.student, training.args, self.task)
                if name == BLOCKS:
                    spread = variances(self.teacher, self.compared, self.task, device)
                    trainer: Any = BlocksTrainer(*positional, **common, counterparts=self.compared, variances=spread)
                else:
                    kept = self._answers(training.folder, device) if settings.keep_answers else None
                    trainer = LogitsTrainer(
                        *positional, **common, temperature=settings.temperature, alpha=settings.alpha, answers=kept
                    )
                rows = trainer.run()
        learning, answering = self.flops[name]
        return PhaseResult(
            name=name,
            steps=steps,
            tokens=steps * settings.batch_size * self.task.tokens_per_example,
            student_flops=steps * learning,
            teacher_flops=steps * answering + (self.once if name == LOGITS else 0),
            seconds=trainer.stopwatch.seconds,
            loss_first=rows[0]["loss"] if rows else None,
            loss_last=rows[-1]["loss"] if rows else None,
            boundaries=sorted(n for part in self.compared for n in part.boundaries) if name == BLOCKS else [],
        ), rows

    def _answers(self, folder: Path, device: torch.device) -> Answers:
        return Answers(folder / "answers", self.teacher, self.task, batch_size=self.settings.batch_size, device=device)


def _told(progress: Progress, done: int, whole: int, step: int, _: int, row: dict[str, Any]) -> None:
    """Steps of one phase, counted from the first step of all."""
    progress(done + step, whole, row)


def blocks_flops(student: Any, compared: list[Counterpart], batch_size: int, length: int) -> int:
    """FLOPs of a step of the phase blocks: the student's pass, and the way back to what ``requires_grad``."""
    device = next(student.parameters()).device
    ids = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    with kept_modes(student), torch.enable_grad(), counted_flops() as counter:
        student.train()
        states = with_states(student, {"input_ids": ids}).hidden_states
        total = torch.stack([states[n].sum() for part in compared for n in part.boundaries]).sum()
        trained = [p for p in student.parameters() if p.requires_grad]
        torch.autograd.grad(total, trained, allow_unused=True)
    return counter.get_total_flops()
