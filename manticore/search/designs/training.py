"""Trains a design from scratch, and measures it: what one trial of a study is.

What a trial gives is a function of the study's seed, the spelled design and the settings alone. First weights are drawn
from a seed of the design's own, and on a CPU one thread computes. Designs see the same batches in the same order, so
that they differ by themselves and not by what they were shown. All that designs share, data above all, is made once per
process.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from manticore.design_settings import Design as DesignSettings
from manticore.errors import ManticoreError, NotFiniteError, in_brief
from manticore.experiments.mad.training import train_runs
from manticore.kernels.mamba import fast_scan
from manticore.search.designs.data import is_autoencoding, mad_data, text_task
from manticore.search.designs.measures import (
    costs,
    mad_measures,
    measured,
    training_flops,
)
from manticore.seeding import derive_seed
from manticore.settings import Finetune
from manticore.stacks.autoencoder import StackForAutoEncoding
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.tasks.mad.score import Run, model_scores
from manticore.training.scoring import score
from manticore.training.trainer import TaskTrainer, training_arguments, with_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.search.designs.reuse import Earlier
    from manticore.search.designs.space import Design, DesignSpace
    from manticore.tasks.task import Task

Made = Callable[..., StackConfig]
"""Makes a design's stack for ``vocab_size`` tokens and sequences of up to ``positions``."""

POINTS = 8
"""Of a learning curve, the end included."""
CURVE_SHARE = 8
"""A curve's points are measured on this part of the held-out examples: scoring stays below a twentieth of training."""
SCORED_AT_ONCE = 128
"""Examples per forward pass in scoring."""


class Failed(Exception):
    """A design has no scores; the study goes on without it."""


@dataclass
class Trained:
    """What one trial has found out about a design."""

    measures: dict[str, float] = field(default_factory=dict)
    """Every measure that is known, means over the trainings."""
    repeats: list[dict[str, float]] = field(default_factory=list)
    """Those that training gives, one mapping per training."""
    curve: list[list[float]] = field(default_factory=list)
    """``[tokens, held-out loss]``, means over the trainings."""
    flops: int = 0
    """Of all trainings, forward and backward."""
    seconds: float = 0.0
    """Of everything."""
    stopped: int | None = None
    """Tokens after which a poor design was stopped; its measures are those of that moment."""
    taken_over: bool = False
    """Whether another study has trained it: the FLOPs were spent there."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Trained:
        """From :meth:`to_dict`."""
        return cls(**values)


class _Curve(TrainerCallback):
    """Scores a design on the way, and stops it where its loss is above what is asked for there."""

    def __init__(self, at: Sequence[int], loss: Callable[[], float], most: Mapping[int, float]) -> None:
        self._at, self._loss, self._most = at, loss, most
        self.points: list[tuple[int, float]] = []
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self._at:
            return
        loss = self._loss()
        if not math.isfinite(loss):
            raise NotFiniteError(f"design: the held-out loss is {loss} at step {state.global_step}")
        self.points.append((state.global_step, loss))
        if loss > self._most.get(len(self.points), math.inf) and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True


class DesignTraining:
    """Trains and measures designs.

    Args:
        settings: how, and on what; spaces and methods do not matter here.
        seed: of the study.
        cpu: stay on the CPU where an accelerator is present.

    Raises:
        ManticoreError: text that cannot be read, or settings that no training can have.
    """

    def __init__(self, settings: DesignSettings, *, seed: int = 0, cpu: bool = False) -> None:
        self.settings, self.seed, self.cpu = settings, seed, cpu
        self.earlier: Mapping[str, Earlier] = {}
        """Name → a training of another study, which is taken over where it is this one's."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> None:
        """Read and generate all data now, which processes that are forked later share."""
        if self.settings.text is not None:
            _ = self.text
        if self.settings.mad_tasks:
            self._mad()
        # each training ends in a full collection, which would look at all that was imported and read
        gc.collect()
        gc.freeze()

    @cached_property
    def text(self) -> tuple[Task, PreTrainedTokenizerBase]:
        """The text as a task, and its tokenizer; read at the first look."""
        return text_task(self.settings)

    @property
    def task(self) -> Task:
        """The text."""
        return self.text[0]

    @property
    def tokens_per_step(self) -> int:
        """Of training on the text."""
        return self.settings.batch_size * self.settings.length

    @cached_property
    def marks(self) -> list[int]:
        """Steps at which a learning curve has its points."""
        steps = self.settings.training_steps
        return sorted({max(1, round(steps * point / POINTS)) for point in range(1, POINTS + 1)})

    def of(self, space: DesignSpace, design: Design, *, most: Mapping[int, float] | None = None) -> Trained:
        """Train and measure a design of a space; see :meth:`of_config`."""
        return self.of_config(partial(space.config, design), space.spelled(design), most=most)

    def of_config(self, make: Made, name: str, *, most: Mapping[int, float] | None = None) -> Trained:
        """Train and measure a stack.

        Args:
            make: its configuration.
            name: its seeds are derived from that.
            most: point of its curve, from 1 → the loss above which it is stopped there.

        Raises:
            Failed: it diverged, there is not enough memory for it, or it cannot be built.
        """
        begun, threads = time.perf_counter(), torch.get_num_threads()
        if self.device == "cpu":
            # sums over several threads differ in their last bits, and workers beside each other have one
            torch.set_num_threads(1)
        try:
            config = self.config(make, tokens=self.settings.at.tokens)
            counted = costs(config, self.settings.at)
            earlier = self.earlier.get(name)
            taken_over = earlier and earlier.taken_over(config, most or {})
            found = taken_over or self._trained(make, name, most or {})
            means = {each: fmean(values[each] for values in found.repeats) for each in found.repeats[0]}
            found.measures = {**counted, **means}
            timed = [measure for measure in self.settings.wanted if measure not in found.measures]
            if timed:
                found.measures |= measured(self._built(config, name, 0), timed, self.settings.at)
        except NotFiniteError as error:
            raise Failed(f"diverged: {in_brief(error)}") from error
        except ManticoreError as error:
            raise Failed(in_brief(error)) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise Failed("out of memory") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise Failed("out of memory") from error
        finally:
            torch.set_num_threads(threads)
        found.seconds = time.perf_counter() - begun
        return found

    @property
    def device(self) -> str:
        """The kind of device that trains."""
        accelerator = None if self.cpu else torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type

    def _trained(self, make: Made, name: str, most: Mapping[int, float]) -> Trained:
        """What all trainings of a design find out."""
        found, curves = Trained(), []
        for repeat in range(self.settings.repeats):
            values: dict[str, float] = {}
            if self.settings.text is not None:
                curves.append(self._on_text(make, name, repeat, most, found, values))
            if self.settings.mad_tasks:
                values |= self._on_mad(make, name, repeat, found)
            found.repeats.append(values)
        found.curve = [[points[0][0], fmean(loss for _, loss in points)] for points in zip(*curves)]
        return found

    def config(self, make: Made, *, tokens: int = 0) -> StackConfig:
        """A stack with the vocabulary of the text, for its sequences and for longer ones."""
        vocab_size = 16 if self.settings.text is None else self.task.vocab_size or 16
        return make(vocab_size=vocab_size, positions=max(tokens, self.settings.length))

    def _built(self, config: StackConfig, name: str, repeat: int, kind: type = StackForCausalLM) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, f"design weights {name}", repeat))
            return kind(config)

    def _on_text(
        self, make: Made, name: str, repeat: int, most: Mapping[int, float], found: Trained, values: dict[str, float]
    ) -> list[tuple[int, float]]:
        settings, task = self.settings, self.task
        config = self.config(make)
        model = self._built(config, name, repeat)
        step_flops = training_flops(config, settings.length) * settings.batch_size
        trains = with_length(
            Finetune(
                batch_size=settings.batch_size,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                schedule=settings.schedule,
                steps=settings.training_steps,
            ),
            step_flops,
            stage="design",
        )
        args = training_arguments(
            self._place,
            trains,
            log_steps=settings.training_steps,
            saves=False,
            seed=derive_seed(self.seed, f"design {name}", repeat),
            # the same for all designs
            data_seed=derive_seed(self.seed, "design data order", repeat),
            bf16=False,
            cpu=self.cpu,
        )

        def held_out(examples: int) -> dict[str, float]:
            return score(model, task, "validation", batch_size=SCORED_AT_ONCE, max_examples=examples)[0]

        share = max(1, settings.validation_examples // CURVE_SHARE)
        curve = _Curve(self.marks, lambda: held_out(share)["loss"], most)
        with fast_scan(model):
            trainer = TaskTrainer(model, args, task, stage="design", decay="maps", callbacks=[curve])
            trainer.run()
        metrics = held_out(settings.validation_examples)
        steps = trainer.state.global_step
        found.flops += steps * step_flops
        if curve.stopped:
            found.stopped = steps * self.tokens_per_step
        values |= {measure: metrics[measure] for measure in ("loss", "bits_per_byte") if measure in metrics}
        return [(step * self.tokens_per_step, loss) for step, loss in curve.points]

    def _on_mad(self, make: Made, name: str, repeat: int, found: Trained) -> dict[str, float]:
        protocol, data = self._mad()
        device = torch.device(self.device)
        runs: list[Run] = []
        for setting, arrays in data.items():
            positions, vocabulary = int(setting.options["seq_len"]), int(setting.options["vocab_size"])
            config = make(vocab_size=vocabulary, positions=positions)
            encodes = is_autoencoding(setting)
            try:
                built = self._built(
                    config, f"{name} {setting.name}", repeat, StackForAutoEncoding if encodes else StackForCausalLM
                )
            except ManticoreError as error:
                raise ManticoreError(f"mad:{setting.task} cannot be measured for it ({error})") from error
            order = derive_seed(self.seed, "design data order", repeat)
            for outcome in train_runs(built.to(device), arrays, protocol.grid, protocol, seed=order):
                where = (name, setting.task, setting.name, outcome.hyper.lr, outcome.hyper.weight_decay)
                scores = (split.get("mad_macro", math.nan) for split in (outcome.selection, outcome.test))
                runs.append(Run(*where, *scores))
                read = len(outcome.history) * len(arrays["train"][0])
                found.flops += read * training_flops(config, positions)
        return mad_measures(model_scores(runs)[0])

    def _mad(self) -> Any:
        return mad_data(self.settings.mad_tier, tuple(self.settings.mad_tasks), self.settings.mad_epochs)

    @property
    def _place(self) -> Path:
        """Where transformers' Trainer may make folders that nothing is kept in."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="manticore-design-")
        return Path(self._folder.name)
