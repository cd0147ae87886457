"""The options of an architecture search from scratch, once; as :mod:`manticore.settings` has those of everything else.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from manticore import registry
from manticore.option_sets import Settings
from manticore.option_types import (
    Amount,
    Count,
    Depth,
    DesignMethod,
    InPython,
    NotNegative,
    Pair,
    Positive,
    Schedule,
    Seed,
    Size,
    SpaceName,
    Text,
    Wanted,
    Workload,
    WorkloadText,
    limits_of,
    wrong,
)

MAD_TASKS = (
    "in-context-recall",
    "noisy-in-context-recall",
    "fuzzy-in-context-recall",
    "selective-copying",
    "compression",
    "memorization",
)
OF_MAD = "mad:"
"""What a measure of one MAD task begins with: ``mad:compression``."""
DIRECTIONS: dict[str, bool] = {
    "loss": False,
    "bits_per_byte": False,
    "mad": True,
    **{f"{OF_MAD}{task}": True for task in MAD_TASKS},
    "parameters": False,
    "flops": False,
    "cache_bytes": False,
    "state_bytes": False,
    "prefill_ms": False,
    "decode_ms": False,
    "peak_bytes": False,
}
"""What designs can be judged by → whether more is better."""
OF_TEXT = ("loss", "bits_per_byte")
"""Measures of a design that was trained on text."""
TIMED = ("prefill_ms", "decode_ms")
"""Measures that another machine, or another moment, gives another value of."""
BYTES = "bytes"
"""Value of ``tokenizer``: a token for every byte."""

Stopping = Literal["median", "asha"]
_WAYS = {"minimise": False, "maximise": True}


def goal_of(text: str) -> tuple[str, bool]:
    """A measure, and whether more of it is better, from an objective such as ``loss`` or ``maximise parameters``.

    Raises:
        PydanticCustomError: no such measure.
    """
    way, _, measure = text.rpartition(" ")
    if measure not in DIRECTIONS:
        raise wrong(f"no measure is called {measure!r}{registry.did_you_mean(measure, list(DIRECTIONS))}")
    if way not in ("", *_WAYS):
        raise wrong(f"{text!r}: {way!r} is no direction. Fix: minimise {measure}, or maximise {measure}")
    return measure, _WAYS.get(way, DIRECTIONS[measure])


def _objectives(values: Any) -> Any:
    given = [values] if isinstance(values, str) else values
    if isinstance(given, list) and all(isinstance(each, str) for each in given):
        measures = [goal_of(each)[0] for each in given]
        for measure in measures:
            if measures.count(measure) > 1:
                raise wrong(f"{measure} is there twice. Fix: name each measure once")
    return given


def _mad_tasks(values: Any) -> Any:
    given = [values] if isinstance(values, str) else values
    for name in given if isinstance(given, list) else ():
        if name not in MAD_TASKS:
            raise wrong(f"no MAD task is called {name!r}{registry.did_you_mean(str(name), list(MAD_TASKS))}")
    return given


Limits = Annotated[
    dict[str, float], limits_of(DIRECTIONS, "measure"), Wanted("a mapping", "for instance {'cache_bytes': 2e6}")
]
_Objectives = Annotated[
    list[Text],
    Field(min_length=1),
    BeforeValidator(_objectives),
    Wanted("names of measures, one or more", "for instance loss and parameters"),
]
_MadTasks = Annotated[list[Text], BeforeValidator(_mad_tasks), Wanted("names of MAD tasks", "for instance compression")]
_Made = Annotated[dict[str, Any], Wanted("a mapping", "for instance {'layers': 6}")]


class TextRead(Settings):
    """What designs are trained on, and how long."""

    text: Annotated[Text | None, InPython("Text | None")] = "stdlib"
    """What designs learn to predict: text files, tables, a folder, a datasets id, stdlib (the sources of Python's
    standard library) or docstrings (English out of packages that come along); null: no training on text."""
    text_column: Text | None = None
    """Of a table, the column that holds the documents; else text, or the only column of strings."""
    max_bytes: Count | None = 2_000_000
    """Read so much of the text only."""
    tokenizer: Text = BYTES
    """bytes: a token for every byte; or the folder or hub id of a tokenizer."""
    length: Pair = 32
    """Tokens per sequence."""
    batch_size: Size = 32
    """Sequences per step."""
    steps: Count = 200
    """Optimizer steps of a training."""
    tokens: Count | None = None
    """Instead of steps: as many whole steps are made as these tokens are read in, at least one."""
    lr: Positive = 3e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after a warm-up of a tenth of the steps."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    validation_examples: Count = 512
    """Held-out sequences that loss and bits per byte are measured on."""
    data_seed: Seed = 0
    """Which documents are held out."""

    @property
    def training_steps(self) -> int:
        """Optimizer steps, from ``tokens`` where they are given."""
        return self.steps if self.tokens is None else max(1, self.tokens // (self.batch_size * self.length))


class Design(TextRead):
    """Search for architectures, each trained from scratch."""

    space: Annotated[SpaceName, InPython("DesignSpace | str")] = "layers"
    """What designs are: lists of layers, or genomes."""
    space_options: _Made = {}
    """Options of that space, such as primitives, layers and width; `manticore show layers` lists them."""
    objectives: _Objectives = ["loss", "parameters"]
    """What designs are judged by, each in its natural direction or as in `maximise parameters`: loss, bits_per_byte,
    mad, mad:TASK, parameters (without embeddings), flops (of reading a token), cache_bytes, state_bytes, prefill_ms,
    decode_ms, peak_bytes."""
    max: Limits = {}
    """The most that a design may have of measures, objectives or not."""
    min: Limits = {}
    """The least that it must have."""
    workload: WorkloadText = "tokens=4096,batch=1"
    """What flops, cache_bytes, state_bytes, prefill_ms, decode_ms and peak_bytes are those of."""
    method: DesignMethod = "evolution"
    """How designs are chosen."""
    method_options: _Made = {}
    """Options of that method, such as population for evolution."""
    trials: Count = 64
    """Distinct designs to train, at most."""
    repeats: Depth = 1
    """Trainings per design, each with a seed of its own; measures are their means."""
    mad_tasks: _MadTasks = []
    """MAD tasks that each design is trained on beside the text, for the measure mad and those of single tasks."""
    mad_tier: Literal["smoke", "baseline", "full"] = "smoke"
    """The settings of these tasks: smoke is smaller than any of MAD's, full has all of them."""
    mad_epochs: Count | None = None
    """Fewer or more epochs than the tier's."""
    stop: Stopping | None = None
    """Stop poor designs early, by their learning curves against those of finished batches: where the loss is above
    their median, or not among their better third; left out, every design is trained whole."""
    stop_after: Amount = 8
    """How many finished designs that takes."""
    baselines: bool = True
    """Train hand-made stacks of the same depth and width too: Transformer++, striped Mamba, sandwich, MambaFormer."""
    workers: Depth = 1
    """On a CPU, designs trained at the same time, each in a process with one thread."""
    storage: Text | None = None
    """URL of the database of trials, for workers on many machines: postgresql://USER@HOST/DATABASE, its password best
    in PGPASSWORD; left out, an SQLite file in the output folder."""
    study_name: Text | None = None
    """Name of the study in that database; left out, one that follows from what is searched."""

    unkeyed = frozenset({"workers", "storage", "study_name", "baselines", "text", "text_column", "max_bytes", "tokens"})
    judging: ClassVar = frozenset(
        {"space_options", "objectives", "max", "min", "workload", "method", "method_options"}
        | {"trials", "stop", "stop_after"}
    )
    """Options that no training depends on; the space, which options make, stands for itself."""

    @property
    def goals(self) -> list[tuple[str, bool]]:
        """Measures, and whether more of each is better."""
        return [goal_of(each) for each in self.objectives]

    @property
    def wanted(self) -> list[str]:
        """Every measure that designs are judged or limited by."""
        return list(dict.fromkeys([*(measure for measure, _ in self.goals), *self.max, *self.min]))

    @property
    def at(self) -> Workload:
        """What costs are those of."""
        return Workload.read(self.workload)

    @model_validator(mode="after")
    def _computable(self) -> Self:
        where = dict.fromkeys(self.max, "max") | dict.fromkeys(self.min, "min")
        where |= {measure: "objectives" for measure, _ in self.goals}
        for measure in self.wanted:
            if measure in OF_TEXT and self.text is None:
                raise wrong(f"{measure} is that of a text, and text is null. Fix: text: stdlib", at=where[measure])
            if measure == "mad" and not self.mad_tasks:
                raise wrong("mad is a mean over mad_tasks. Fix: mad_tasks: [compression]", at=where[measure])
            task = measure.removeprefix(OF_MAD)
            if measure.startswith(OF_MAD) and task not in self.mad_tasks:
                raise wrong(f"{measure}: the task is not in mad_tasks. Fix: mad_tasks: [{task}]", at=where[measure])
        if self.stop is not None and (self.text is None or self.repeats > 1):
            raise wrong("of one training on a text, the loss on which it looks at. Fix: leave it out", at="stop")
        if self.storage is not None and (timed := [name for name in TIMED if name in self.wanted]):
            text = (
                f"{timed[0]} is timed, and the machines that share a storage would each time another. "
                "Fix: leave one of the two out"
            )
            raise wrong(text, at=where[timed[0]])
        return self
