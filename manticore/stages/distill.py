"""Let the discretized hybrid learn from a teacher before it is fine-tuned; off unless a recipe has the section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import manticore
from manticore import quantities
from manticore.file_names import MODEL
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.commands import finetune_command
from manticore.stages.records import Record, Step
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan, amount

if TYPE_CHECKING:
    from pathlib import Path

    from manticore.plan.cases import Case, Cases
    from manticore.plan.costing import Costing

SUPERNET = "supernet"
"""The teacher that a run has anyway."""


@dataclass(frozen=True)
class Phase(Record):
    name: str = ""
    steps: int | None = None
    tokens: int | None = None
    student_flops: float | None = None
    teacher_flops: float | None = None
    seconds: float | None = None
    loss_first: float | None = None
    """Of what the phase minimises, as it was first logged, and last."""
    loss_last: float | None = None
    boundaries: tuple[int, ...] = ()


@dataclass(frozen=True)
class DistillRecord(Record):
    teacher: str = ""
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    """The student's and the teacher's."""
    teacher_flops: float | None = None
    seconds: float | None = None
    metrics_before: dict[str, float | None] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    history: tuple[Step, ...] = ()


class Distill(Stage):
    name = "distill"
    note: ClassVar[str] = "distill.json"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        return f"{section.teacher} as teacher, {amount(section, recipe)}"

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        """The student's steps, and the teacher's forward passes."""
        from manticore.plan.cases import Setting
        from manticore.training.distill import BLOCKS, LOGITS, phase_steps

        section, path = self.settings(costing.recipe), costing.paths["costliest"]
        own = costing.setting(section)
        student, supernet = (costing.measure(self.name, own, which) for which in (path, None))
        spaces = self._compared(costing, path)
        answering, peak = self._teacher(costing, student)
        flops = {}
        if spaces and section.phases != LOGITS:
            joined = costing.measure(self.name, Setting("projectors", own.checkpointing, own.bf16, own.dtype), path)
            heads = joined.parts[-1].piece
            # the head reads one position of each example, and nothing comes back from it
            less = heads.forward_flops * (1 - 1 / costing.task.length) + heads.backward_flops
            alone = costing.alone_flops(supernet, spaces) * joined.micro_batch
            flops[BLOCKS] = joined.accumulation * (joined.flops - less + alone)
        if section.phases != BLOCKS:
            flops[LOGITS] = student.accumulation * (student.flops + answering)
        once, kept = 0.0, ""
        if section.keep_answers and LOGITS in flops:
            once, kept = self._kept_answers(costing, answering / student.micro_batch)
            if once:
                flops[LOGITS] = student.accumulation * student.flops
        prices = {name: round(cost) for name, cost in flops.items()}
        steps = phase_steps(section, prices, round(once)) if flops else {}
        costing.save_model(student.held)
        costing.save_checkpoints(student.held)
        yield costing.judged(
            self.name, f"costliest path, teacher {section.teacher}{kept}", student.peak(costing.devices) + peak,
            "a smaller distill.batch_size, or a larger distill.accumulation",
            trained=student.held.trained, step_flops=max(flops.values(), default=None), steps=sum(steps.values()),
            flops=once + sum(count * flops[name] for name, count in steps.items()),
        )  # fmt: skip

    @staticmethod
    def _kept_answers(costing: Costing, answering: float) -> tuple[float, str]:
        """FLOPs of the answers that are kept, and a clause on their bytes.

        Where the number of training examples depends on the text, they are said for each, and FLOPs are those of
        answers in every step: the most that it can be.

        Args:
            costing: whose disk they go to.
            answering: FLOPs of one example.
        """
        from manticore.training.answers import ANSWER_BYTES

        task, rows = costing.task, costing.skeleton.hybrid.config.vocab_size
        each, examples = ANSWER_BYTES * task.length * rows, task.train_examples
        if examples is None:
            return 0.0, f", its answers {quantities.memory(each)} for each training example: not counted on the disk"
        costing.disk_bytes += each * examples
        return answering * examples, f", its answers {quantities.memory(each * examples)} on the disk"

    def _compared(self, costing: Costing, path: list[int]) -> list[tuple[int, int]]:
        """Where a path's blocks are compared with those of the components that the teacher holds."""
        from manticore.hybrid.path import behind_projectors

        teacher, names = self.settings(costing.recipe).teacher, [source.name for source in costing.sources]
        spaces = costing.skeleton.hybrid.config.spaces
        if costing.shape.mixing == "gated" or teacher not in (SUPERNET, *names):
            return []
        return [(k, n) for k, n in behind_projectors(path, spaces) if teacher in (SUPERNET, names[k])]

    def _teacher(self, costing: Costing, student: Case) -> tuple[float, float]:
        """FLOPs and bytes of the teacher's logits for a micro-batch; of a model from elsewhere as of the supernet."""
        teacher, names = self.settings(costing.recipe).teacher, [source.name for source in costing.sources]
        size: dict[str, Any] = {"batch_size": student.micro_batch, "length": costing.task.length}
        cases: Cases
        if teacher in names:
            alone = costing.alone(costing.sources[names.index(teacher)])
            cases, case = costing.without_mixture(alone, "all", [0], **size)
            return case.forward_flops, cases.evaluation([0], **size)
        case = costing.cases.measure(costing.setting(self.settings(costing.recipe)), None, **size)
        return case.forward_flops, costing.cases.evaluation(None, **size)

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.training.saved_models import load_hybrid

        section, student = self.settings(run.recipe), load_hybrid(run.path / "discretize" / MODEL)
        kept = set(run.results_of("discretize")["path"])
        if len(kept) == 1 and not kept & set(run.fresh):
            # its row in the comparison is that of the parent, which nobody has taught
            run.save(student, folder)
            return Outcome(
                {"distill": DistillRecord.written(teacher=section.teacher, steps=0, flops=0)},
                "nothing to do, the path is one component alone",
            )
        result = manticore.distill(
            student,
            self._loaded(run, section.teacher),
            run.task,
            section,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
        )
        run.save(result.model, folder)
        found = DistillRecord.written(**{**result.to_dict(), "teacher": section.teacher})
        before, after = result.metrics_before["loss"], result.metrics["loss"]
        return Outcome({"distill": found}, f"loss {before:.3f} before, {after:.3f} after {result.steps} steps")

    @staticmethod
    def _loaded(run: Run, teacher: str) -> Any:
        if teacher == SUPERNET:
            return run.aligned(run.recipe.seed) if run.by_candidates else run.searched()
        names = [component.name for component in run.recipe.components]
        if teacher not in names:
            return teacher
        from manticore.components.sources import model_folder

        index = names.index(teacher)
        source = run.sources[index]
        return str(model_folder(source, run.recipe.components[index].revision) or source)

    def next_command(self, out: str, task: str) -> str:
        return finetune_command(out, out, task)
