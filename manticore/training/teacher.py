"""The model that a student learns from: loaded, checked against the student, asked for logits and features, counted.

It is never changed: it answers in evaluation mode, without gradients, in the precision that its weights have.
Shapes: B batch, T tokens, D width, V vocabulary, N blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.components.loaded_weights import refuse_not_finite
from manticore.components.loading import own_tokenizer
from manticore.components.runner import Runner
from manticore.components.token_matching import same_tokenizer
from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.hybrid.path import behind_projectors
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.kernels.mamba import fast_scan
from manticore.modes import kept_modes
from manticore.runs.lineage import weights_digest
from manticore.training.alignment import held_alone
from manticore.training.batches import model_inputs
from manticore.training.budget import flops_per_step, measured_without_data
from manticore.training.classifiers import is_classifier
from manticore.training.prepare import check_backbone, check_length, check_targets
from manticore.training.saved_models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

STAGE = "distill"


@dataclass(frozen=True)
class Counterpart:
    """Which model of the teacher's a component of the student came from, and where that is compared."""

    component: int
    """Of the student."""
    model: int | None
    """The component of a teacher that is a supernet; None: the teacher itself."""
    edges: tuple[int, ...]
    """The layers before each boundary, up to the last one that is compared."""
    boundaries: tuple[int, ...]
    """n: what enters block n of the student; N: what leaves its last block."""


class Teacher:
    """A causal LM that a student learns from.

    Args:
        model: a loaded model, or the folder or hub id of one.
        student: what learns from it.
        task: the data of both.

    Raises:
        ManticoreError: it predicts no tokens, or others than the student does, or is the student.
    """

    def __init__(self, model: PreTrainedModel | str | Path, student: PreTrainedModel, task: Task) -> None:
        self.name = str(model) if isinstance(model, str | Path) else type(model).__name__
        tokenizer: PreTrainedTokenizerBase | None = None
        if isinstance(model, str | Path):
            model, tokenizer = load_model(model)
        if not isinstance(model, PreTrainedModel):
            raise ManticoreError(
                f"{STAGE}: the teacher is a {type(model).__name__} (expected a causal language model, or the folder or "
                "hub id of one). Fix: give a model"
            )
        self.model: PreTrainedModel = model
        if is_classifier(model):
            raise ManticoreError(
                f"{STAGE}: the teacher is a {type(model).__name__}, which predicts no tokens. "
                "Fix: give a causal language model"
            )
        check_backbone(model, task, stage=f"{STAGE}: the teacher")
        check_length(model, task, stage=f"{STAGE}: the teacher")
        check_targets(model, task, stage=f"{STAGE}: the teacher")
        refuse_not_finite(model, f"{STAGE}: the teacher")
        self.rows = self._common_rows(student, task, tokenizer or own_tokenizer(model))
        self.digest = weights_digest(model)
        if model is student or self.digest == weights_digest(student):
            raise ManticoreError(
                f"{STAGE}: the teacher is the student itself, which has nothing to learn from it. "
                "Fix: give a parent, the supernet or another model"
            )
        self._runners = {k: runner for k, runner in enumerate(_runners(model)) if runner is not None}

    def _common_rows(self, student: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> int:
        """How many tokens both predict; rows that only fill up a table are left out."""
        rows = [model.config.get_text_config().vocab_size for model in (self.model, student)]
        if task.vocab_size is not None:
            wrong = None if rows[0] == task.vocab_size else f"{task.name} has {task.vocab_size} tokens"
        else:
            theirs = own_tokenizer(student)
            known = tokenizer is not None and theirs is not None
            if known and not same_tokenizer(tokenizer, theirs):  # type: ignore[arg-type]
                wrong = "the student has another tokenizer, so that token ids do not mean the same"
            else:
                wrong = None if known or rows[0] == rows[1] else f"the student has one of {rows[1]}"
        if wrong is not None:
            raise ManticoreError(
                f"{STAGE}: the teacher {self.name} has another vocabulary: {rows[0]} tokens, and {wrong}. "
                "Fix: a teacher with the student's vocabulary, such as one of its parents or its supernet"
                + (", trained on the task" if task.vocab_size is not None else "")
            )
        return min(rows)

    @contextmanager
    def answering(self, device: torch.device) -> Iterator[None]:
        """The teacher on the student's device, ready to answer; afterwards as it was."""
        before = next(self.model.parameters()).device
        spread = getattr(self.model, "hf_device_map", None) is not None
        with ExitStack() as stack:
            stack.enter_context(kept_modes(self.model))
            stack.enter_context(fast_scan(self.model))
            self.model.eval()
            if before != device and not spread:
                self.model.to(device)  # type: ignore[arg-type]
                stack.callback(self.model.to, before)  # type: ignore[arg-type]
            yield

    @contextmanager
    def _in_its_precision(self) -> Iterator[None]:
        with torch.no_grad(), torch.autocast(next(self.model.parameters()).device.type, enabled=False):
            yield

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """``[B, T, V]`` of the tokens that both know."""
        with self._in_its_precision():
            logits: Tensor = self.model(**model_inputs(batch), use_cache=False).logits
            return logits[..., : self.rows]

    def features(self, counterparts: list[Counterpart], batch: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Boundary → ``[B, T, D]``, as each component holds it when it runs alone."""
        with self._in_its_precision():
            return _features(self._runners, counterparts, batch)

    def logits_flops(self, batch_size: int, length: int) -> int:
        """What the logits of a batch cost."""
        with fast_scan(self.model):
            return flops_per_step(self.model, batch_size, length, backward=False)

    def features_flops(self, counterparts: list[Counterpart], batch_size: int, length: int) -> int:
        """What the features of a batch cost."""
        sizes = {k: runner.tuple_sizes for k, runner in self._runners.items()}

        def count(model: PreTrainedModel) -> int:
            runners = {k: r for k, r in enumerate(_runners(model, sizes)) if r is not None}
            ids = torch.zeros(batch_size, length, dtype=torch.long, device=next(model.parameters()).device)
            model.eval()
            with torch.no_grad(), counted_flops() as counter:
                _features(runners, counterparts, {"input_ids": ids})
            return counter.get_total_flops()

        with fast_scan(self.model):
            return measured_without_data(self.model, count)

    def counterparts(self, student: PreTrainedModel) -> tuple[list[Counterpart], str]:
        """Where blocks of the student can be compared with those of the components that they came from.

        Behind the first projector, since before it nothing trains: at boundaries whose component the teacher has.

        Returns:
            One entry per component, and, where there is none, why.
        """
        if not isinstance(student, ManticorePreTrainedModel):
            return [], f"the student is a {type(student).__name__} and no hybrid, so it has no blocks"
        config = student.config
        path = config.path
        if path is None:
            return [], "the student is a supernet, whose blocks hold several components"
        spaces = behind_projectors(path, config.spaces)
        if not spaces or not len(student.mixing.projectors):
            return [], f"the student's path {path} has no projector, which is all that this phase trains"
        found, why = [], ""
        for k in sorted({k for k, _ in spaces}):
            model, reason = self._counterpart(student, k)
            if reason:
                why = why or reason
                continue
            at = tuple(n for m, n in spaces if m == k)
            found.append(Counterpart(k, model, tuple(config.boundaries[k][: at[-1] + 1]), at))
        return found, "" if found else why

    def _counterpart(self, student: Any, k: int) -> tuple[int | None, str]:
        """The component of the teacher that component k came from, and, where there is none, why."""
        if getattr(self.model.config, "path", None) is not None:
            return None, "the teacher is discretized, so that its components cannot run alone"
        if getattr(self.model.config, "released", False):
            return None, "the teacher computes the released function, whose components have no embeddings of their own"
        shape = _shape(student.config.components[k])
        alike = [j for j, runner in self._runners.items() if _shape(runner.model.config) == shape]
        if not alike:
            return None, f"the teacher has no component like {student._named(k)}"
        if not isinstance(self.model, ManticorePreTrainedModel):
            twins = [m for m in sorted(set(student.config.path)) if _shape(student.config.components[m]) == shape]
            if len(twins) > 1:
                twins = [m for m in twins if _has_its_layers(student, m, self._runners[0])]
            return None, "" if twins == [k] else f"it is not to be told which component the teacher {self.name} is"
        return (k, "") if k in alike else (None, f"component {k} of the teacher is not like that of the student")


def _runners(model: Any, sizes: Mapping[int, list[int]] | None = None) -> list[Runner | None]:
    """The components of a model that run alone: of a supernet all of them, of another model itself."""
    own: list[Runner | None] | None = getattr(model, "runners", None)
    return [Runner(model, None if sizes is None else sizes[0])] if own is None else own


def _features(
    runners: Mapping[int, Runner], counterparts: list[Counterpart], batch: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    held: dict[int, Tensor] = {}
    for part in counterparts:
        k = part.model or 0
        wanted = {(k, n) for n in part.boundaries}
        found = held_alone(runners[k], k, part.edges, wanted, batch["input_ids"], batch.get("attention_mask"))
        held |= {space.boundary: value for space, value in found.items()}
    return held


def _shape(config: Any) -> tuple[Any, ...]:
    return config.model_type, config.hidden_size, config.num_hidden_layers


def _has_its_layers(student: Any, k: int, teacher: Runner) -> bool:
    """Whether component k still has the weights of the teacher, in the layers that the path has kept."""
    theirs = teacher.layers
    ours = student._runner(k).layers
    return all(
        torch.equal(a, b)
        for index in student._kept_layers(k)
        for a, b in zip(ours[index].parameters(), theirs[index].parameters())
    )
