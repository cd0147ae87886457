"""Every option once: of the Python functions, of the verbs, of recipes, of what resuming compares and of the plan.

A field has the option's type, range and default; the text under it is its help, in ``help(manticore.finetune)``, in
``manticore show schema`` and in ``manticore <verb> --help`` alike. Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from manticore import option_types
from manticore._moved import names_of
from manticore.boundaries import wrong_rows
from manticore.option_sets import Settings
from manticore.option_types import (
    Amount,
    Bos,
    Budgets,
    Count,
    Decay,
    Depth,
    Drop,
    Edges,
    Ensembles,
    Flops,
    Forgetting,
    InPython,
    Limits,
    Mixing,
    NotNegative,
    Options,
    Output,
    Pair,
    Positive,
    Projector,
    PromptLengths,
    Rates,
    Sampling,
    Schedule,
    SearchMethod,
    Seed,
    Seeds,
    Share,
    Size,
    Text,
    Trackers,
    Trainable,
    TrainingDtype,
    Wanted,
    WorkloadText,
    wrong,
)

__getattr__ = names_of(__name__, option_types.__name__)


class Reading(Settings):
    """What every reading of text has."""

    text: Annotated[Text, InPython("Text")] = "stdlib"
    """Text files, tables, a folder, a datasets id, stdlib (the sources of Python's standard library) or docstrings
    (English out of packages that come along)."""
    text_column: Text | None = None
    """Of a table, the column that holds the documents; else text, or the only column of strings."""
    bos: Bos = "auto"
    """Whether every sequence begins with the tokenizer's BOS token; auto: where it adds one. A new one adds none."""


class Pretrain(Reading):
    """A small model pretrained on the spot, kept in the cache and used as a component."""

    layers: Depth | None = None
    """Depth, of a family."""
    width: Size | None = None
    """Width of the hidden states, of a family."""
    config: Options = {}
    """Further fields of the family's configuration; the rest is scaled to the width."""
    max_bytes: Count | None = None
    """Read so much of the text only."""
    tokenizer: Annotated[Text, InPython("str | Path | PreTrainedTokenizerBase")] = "train"
    """Folder or hub id of a tokenizer, or train: a new one, shared by all models with this text and vocab_size."""
    tokenizer_texts: Annotated[
        Annotated[list[Text], Field(min_length=1)] | None,
        InPython("Sequence[Text] | None"),
        Wanted("a list of texts", "give one or more, each as text is given"),
    ] = None
    """Texts that a new tokenizer is trained on, so that models with different texts share it; left out, the text."""
    vocab_size: Size = 1024
    """Tokens of a new tokenizer."""
    length: Size = 128
    """Tokens per sequence."""
    steps: Amount = 300
    """Optimizer steps; 0 leaves the first weights, for models that the task trains from scratch."""
    batch_size: Size = 16
    """Sequences per step."""
    lr: Positive = 3e-3
    """Peak learning rate: warm-up over a tenth of the steps, then a cosine to zero."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    dtype: TrainingDtype = "auto"
    """What it is trained and saved in; auto is float32."""
    seed: Seed = 0
    """Of the first weights, drawn anew for every entry, and the order of the data; not the run's, so that runs share
    the model."""
    data_seed: Seed = 0
    """Which documents are held out."""

    # the digests of what is read stand for these
    unkeyed = frozenset({"text_column", "max_bytes", "tokenizer_texts", "vocab_size", "bos"})


FORGETTING = 0.01
"""What output bayes forgets where nothing is given: texts that change inside lose far less, others nearly nothing."""


class Combine(Settings):
    """Put the components side by side, block by block, into one hybrid."""

    num_blocks: Depth = 4
    """Segments each component is cut into."""
    boundaries: list[Edges] | None = None
    """Where each component is cut, instead of evenly: per component the layers that its segments start at, and its
    number of layers, such as [[0, 1, 6], [0, 4, 8]] for two blocks."""
    mixing: Mixing | None = None
    """How blocks mix the components' features; left out, translated, and with output bayes routed at R = I, where every
    component reads its own features alone."""
    output: Output = "logits"
    """How the components' predictions become one: weighted logits, probabilities, probabilities weighted by the
    likelihood of the text so far (bayes), or by a linear gate on the features of each token."""
    forgetting: Forgetting | None = None
    """With output bayes: the share of the weights that goes back to the output weights after each token, so that a text
    may change its source inside; left out, 0.01, and 0 with drop_below."""
    drop_below: Drop | None = None
    """With output bayes, routed at R = I: a component whose weight falls below this stops reading that sequence, for
    good; at least one stays. Below 1 / components; left out, none is dropped, and none while a model trains."""
    drop_after: Count = 32
    """How many tokens of a sequence, padding not counted, every component reads before any is dropped."""
    released: bool = False
    """With gated mixing: the function of the published method's released code, with fresh embeddings tied to heads."""
    projector: Projector = "linear"
    """Kind of map between the components' feature spaces."""
    projector_options: Options = {}
    """Options of that kind, such as rank for low-rank."""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, InPython("torch.dtype | str | None", also=("float64",))
    ] = None
    """Type of the weights; left out, the one they were saved in."""
    tokenizer: Annotated[Text | None, InPython("PreTrainedTokenizerBase | str | Path | int | None")] = None
    """Where tokenizers differ: the component whose tokenizer is kept; the others are re-embedded for it."""
    min_coverage: Annotated[float, Field(ge=0, le=1), Wanted("a share", "give 0 to 1")] = 0.25
    """Refuse to re-embed a component that has less than this share of the kept tokenizer's tokens."""

    @model_validator(mode="after")
    def _boundaries_fit(self) -> Self:
        if self.boundaries:
            if "num_blocks" not in self.model_fields_set:
                # not a value that was given: other boundaries may be of more blocks
                self.__dict__["num_blocks"] = len(self.boundaries[0]) - 1
            for text, fix in wrong_rows(self.boundaries, len(self.boundaries), self.num_blocks):
                raise wrong(f"{text}. Fix: {fix}", at="boundaries")
        return self

    @model_validator(mode="after")
    def _output_fits(self) -> Self:
        if self.mixing is None:
            # not a value that was given: other settings may change the output
            self.__dict__["mixing"] = "routed" if self.output == "bayes" else "translated"
        if self.forgetting is None:
            # what is dropped cannot come back
            forgets = self.output == "bayes" and self.drop_below is None
            self.__dict__["forgetting"] = FORGETTING if forgets else 0.0
        if self.forgetting and self.output != "bayes":
            text = f"only with output bayes, got output {self.output!r}. Fix: output: bayes, or leave it out"
            raise wrong(text, at="forgetting")
        if self.drop_below is not None and (self.output, self.mixing) != ("bayes", "routed"):
            text = (
                f"of weights that follow the text at R = I, got output {self.output!r}, mixing {self.mixing!r}. "
                "Fix: output: bayes, mixing: routed, or leave it out"
            )
            raise wrong(text, at="drop_below")
        if self.drop_below is not None and self.forgetting:
            text = f"what is dropped cannot come back, got forgetting {self.forgetting}. Fix: leave one of the two out"
            raise wrong(text, at="drop_below")
        if self.released and self.output != "logits":
            text = f"the released function mixes logits, got {self.output!r}. Fix: leave one of the two out"
            raise wrong(text, at="output")
        return self

    @model_validator(mode="after")
    def _released_is_gated(self) -> Self:
        if self.released and self.mixing != "gated":
            text = f"only with gated mixing, got mixing {self.mixing!r}. Fix: mixing: gated"
            raise wrong(text, at="released")
        return self


class Align(Reading):
    """Fit the projectors in closed form on calibration text."""

    tokens: Pair = 65536
    """Calibration tokens, held-out ones included."""
    holdout: Share = 0.1
    """Share of the tokens that is never fitted on."""
    ridge: NotNegative | None = None
    """Strength of the ridge, relative to the mean variance of a source channel; left out, each projector takes what
    does best on held-out text, of several strengths and lower ranks."""
    withdraw: bool = True
    """Keep what was before wherever held-out text says that it was better; false writes every fitted map."""
    batch_size: Size = 16
    """Sequences per forward pass, and per gradient step."""
    length: Pair = 128
    """Tokens per sequence, where text is packed."""
    steps: Amount = 0
    """Gradient steps on the projectors after the closed form."""
    lr: Positive = 1e-3
    """Their first learning rate; it falls linearly to zero."""


class Training(Settings):
    """What every training on a task shares, so that a comparison trains as fine-tuning does."""

    batch_size: Size = 32
    """Examples per optimizer step."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    decay: Literal["maps", "all"] = "maps"
    """What it falls on: maps and tables, so no bias, no norm and nothing that sets a recurrence (A_log, D); or all."""
    adam_betas: Annotated[
        list[Decay],
        Field(min_length=2, max_length=2),
        Wanted("two numbers from 0 to below 1", "for instance 0.9 and 0.999"),
    ] = [0.9, 0.999]
    """AdamW's decay rates of the first and second moment."""
    adam_eps: Annotated[Positive, Wanted("a number above 0", "for instance 1e-8")] = 1e-8
    """AdamW's epsilon."""
    schedule: Schedule = "constant"
    """Course of the learning rate after warm-up."""
    warmup_steps: Amount | None = None
    """Steps over which the learning rate rises from zero; left out, a tenth of the steps, at least 10."""
    accumulation: Size = 1
    """Micro-batches that one optimizer step is cut into."""
    max_grad_norm: NotNegative = 1.0
    """Longer gradients are scaled down to this norm; 0: none are."""
    trainable: Trainable = "all"
    """What trains: everything; projectors and heads (frozen); projectors; projectors and the mixers that twins have in
    place of attention; or LoRA."""
    lora_rank: Size = 8
    """Rank of the LoRA updates."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more FLOPs."""
    dtype: TrainingDtype = "auto"
    """auto trains in float32, on accelerators with bfloat16 as autocast for half-precision weights, and saves in the
    type that the weights came in; float32 and bfloat16 train and save in that type alone."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe (autocast), on every device."""

    @model_validator(mode="after")
    def _one_type(self) -> Self:
        if self.bf16 and self.dtype == "bfloat16":
            text = "dtype=bfloat16 has no float32 weights to compute beside. Fix: leave one of them out"
            raise wrong(text, at="bf16")
        return self

    def shared(self) -> dict[str, Any]:
        """The options that every training has: another one that takes them trains in the same way."""
        return {name: getattr(self, name) for name in Training.model_fields}


class OneTraining(Training):
    """A training with a length of its own."""

    steps: Count | None = None
    """Optimizer steps; without steps and budget_flops, 300 in fine-tuning and distillation, 120 in a search that learns
    weights."""
    budget_flops: Flops | None = None
    """Training FLOPs to spend, instead of steps: as many whole steps are made as they pay for."""
    lr: Positive = 1e-3
    """Peak learning rate; in a search, of the network."""
    save_steps: Count | None = None
    """Steps between checkpoints that a killed run resumes from; left out, ten per run."""
    report_to: Trackers | None = None
    """Experiment trackers told every logged row, by transformers' names: tensorboard, trackio, wandb, …"""

    default_steps: ClassVar[int]
    unkeyed = frozenset({"budget_flops", "save_steps", "report_to", "gradient_checkpointing"})

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.budget_flops is not None:
            raise wrong("steps and budget_flops are both given. Fix: give one of them, and None for the other")
        for name in ("warmup_steps", "mixture_warmup_steps"):
            rising, steps = getattr(self, name, None), self.steps or self.default_steps
            # how long candidates of a search train is not known here
            open_ended = self.budget_flops is not None or (self.steps is None and isinstance(self, Search))
            if rising is not None and rising > steps and not open_ended:
                raise wrong(f"longer than the training (got {rising}, steps is {steps}). Fix: at most {steps}", at=name)
        return self


_OF_METHODS = ("gap", "max_handovers", "candidates", "sampling", "shared_units", "top")

METHOD_OPTIONS = {
    "mixture_lr": "lr",
    "mixture_weight_decay": "weight_decay",
    "temperature": "temperature",
    "final_temperature": "final_temperature",
    "start_floor": "start_floor",
    **{name: name for name in _OF_METHODS},
}
"""Option of a search → what methods call it, those that have it."""

LEARNING_OPTIONS = (
    "order",
    "mixture_schedule",
    "mixture_warmup_steps",
    "start",
    "weights_from",
    "steps",
    "budget_flops",
    "save_steps",
    "report_to",
)
"""Options of a search that only methods have that learn mixture weights."""
SHARING_OPTIONS = ("workers", "storage", "study_name")
"""Options of a search that say who does its work: its result does not depend on them."""
RACING_OPTIONS = ("finetune_flops", *SHARING_OPTIONS, "max", "workload")
"""Options of a search that only methods have that train candidates."""


class FromElsewhere(Settings):
    """What takes over what a search has found on another task."""

    weights_from: Annotated[Text | None, InPython("SearchResult | str | Path | None")] = None
    """Folder of a search or of a run on the same parents: its path, or mixture weights, are set here."""


class Search(OneTraining, FromElsewhere):
    """Find out which component each block should use."""

    method: SearchMethod = "auto"
    """auto races up to four paths and goes block by block over more; darts, dash and gaea learn mixture weights."""
    finetune_flops: Flops | None = None
    """A unit, for methods that train candidates: training FLOPs of fine-tuning one path; left out, 300 steps' worth."""
    validation_examples: Count = 256
    """Held-out examples that paths are scored on."""
    gap: Positive | None = None
    """race, oneshot: lead in held-out loss that ends it, in nats per scored position; left out, 0.2."""
    max_handovers: Amount | None = None
    """blockwise: leave out paths that change components more often."""
    candidates: Count | None = None
    """random: how many paths are drawn; left out, 2."""
    sampling: Sampling | None = None
    """oneshot: how the path of a step is drawn: every block alike (the default), as often as mixture weights say, or
    how many blocks each component has, then which."""
    shared_units: Positive | None = None
    """oneshot: what training the shared weights costs, in units; left out, half a unit for each component."""
    top: Count | None = None
    """oneshot: how many paths train for real, beside the parents; left out, 3."""
    workers: Depth = 1
    """On a CPU, candidates trained at the same time, each in a process with one thread."""
    storage: Text | None = None
    """URL of the database of trials, for workers on many machines: postgresql://USER@HOST/DATABASE, its password best
    in PGPASSWORD; left out, an SQLite file in the output folder."""
    study_name: Text | None = None
    """Name of the study in that database; left out, one that follows from what is searched."""
    order: Literal["simultaneous", "alternating", "bilevel"] = "simultaneous"
    """When mixture weights learn: with the network, in turns on the same data, or in turns on a held-out half."""
    warmup_steps: Amount | None = None
    """Steps over which the learning rate rises from zero; left out, none where weights are learned, else as in
    fine-tuning."""
    mixture_lr: Positive | None = None
    """Learning rate of the mixture weights; left out, the method's own."""
    mixture_weight_decay: NotNegative | None = None
    """Weight decay of their logits, where the method has logits."""
    mixture_schedule: Schedule = "constant"
    """Course of their learning rate after warm-up."""
    mixture_warmup_steps: Amount = 0
    """Steps over which it rises from zero."""
    temperature: Positive | None = None
    """dash: temperature of the first sample."""
    final_temperature: Positive | None = None
    """dash: temperature of the last sample."""
    start: Annotated[
        Literal["current"] | None, InPython("str | Tensor | Sequence[Sequence[float]] | Sequence[int] | None")
    ] = None
    """current keeps the hybrid's mixture weights; left out, the mixing's own start."""
    start_floor: Share | None = None
    """Smallest probability to start from."""
    max: Limits = {}
    """Limits that the path found must keep: cache_bytes, state_bytes, parameters, flops_per_token, decode_ms,
    prefill_ms; numbers, or percentages of what the first component has alone, such as 60%."""
    workload: WorkloadText | None = None
    """What costs are measured at, such as tokens=4096,batch=1; left out, 4096 tokens, or as many as all components
    have positions for."""

    def method_options(self) -> dict[str, Any]:
        """The options of the method that are given, by its own names for them."""
        given = {option: getattr(self, name) for name, option in METHOD_OPTIONS.items()}
        return {option: value for option, value in given.items() if value is not None}

    default_steps = 120
    # what a search that learns weights does not depend on
    unkeyed = OneTraining.unkeyed | {*RACING_OPTIONS, *_OF_METHODS, "validation_examples", "weights_from"}

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start is not None and self.weights_from is not None:
            raise wrong("start and weights_from are both given. Fix: give one of them")
        return self


class Discretize(FromElsewhere):
    """Keep one component per block, drop the rest."""

    path: list[Amount] | None = None
    """One component index per block; left out, what the search found."""

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if self.path is not None and self.weights_from is not None:
            raise wrong("path and weights_from are both given. Fix: give one of them")
        return self


class Judged(OneTraining):
    """A training whose model is scored on the test split."""

    log_steps: Count | None = None
    """Steps between logged losses; left out, about two hundred per run."""
    test_examples: Count | None = None
    """Score only so many examples of the test split; left out, all."""

    default_steps = 300
    unkeyed = OneTraining.unkeyed | {"log_steps", "test_examples"}


class Finetune(Judged):
    """Train the discretized hybrid end to end."""


class Distill(Judged):
    """Let the discretized hybrid learn from a teacher: first its new parts from the parents' blocks, then all of it
    from the teacher's predictions."""

    phases: Literal["auto", "blocks", "logits", "both"] = "auto"
    """blocks: new parts alone, towards the features of the components that the blocks came from; logits: towards the
    teacher's predictions; both: one after the other; auto: both where the student has new parts and the teacher holds
    its parents, else logits."""
    block_share: Share = 0.25
    """Share of the steps, or of the FLOPs, that goes to blocks where both phases are made."""
    block_lr: Positive = 1e-3
    """Peak learning rate of the phase blocks."""
    temperature: Positive = 1.0
    """Of both distributions in the phase logits; their divergence is multiplied by its square."""
    alpha: Annotated[Decay, Wanted("a share below 1", "give 0 to below 1")] = 0.5
    """Share of the true targets in the loss of the phase logits, beside the teacher's distribution."""
    keep_answers: bool = False
    """Keep the teacher's logits of all training examples on the disk, exact, each computed once: saves its FLOPs from
    the second pass over the data on, and takes 4 bytes for each token and entry of the vocabulary."""


def rates_around(lr: float) -> list[float]:
    """The learning rates that a comparison tries where none are given: each model takes the one that suits it."""
    return [float(f"{factor * lr:.6g}") for factor in (0.3, 1.0, 3.0)]


class Comparing(Settings):
    """What every comparison has."""

    budgets: Budgets | None = None
    """Compare at several budgets: shares of the fine-tuning budget, or FLOPs from 1e6 on; 0: before any training. At a
    constant learning rate one run passes them all."""
    larger: Annotated[Text | None, InPython("PreTrainedModel | str | Path | None")] = None
    """A larger single model to show beside the others, NAME=FOLDER names it: no parent to the verdict."""

    seeds: Seeds = [0, 1, 2]
    """One fine-tuning per seed and model; three or more show a spread worth the name."""
    ensemble: Ensembles = True
    """Ensembles to add of all models that are not hybrids, by their outputs: logits, probabilities, bayes or gate;
    true: those that need no training, probabilities and bayes on text, else logits; false: none."""
    workers: Depth = 1
    """On a CPU, runs made at the same time, each in a process with one thread."""
    generate: bool = False
    """Score what every model writes too, before any training and after the largest budget of fine-tuning: exact match,
    recall by length, speed. No part of the verdict."""
    lengths: PromptLengths | None = None
    """With generate: tokens of prompts for recall and speed; left out, 128 to 4,096, doubled, as far as a model has
    positions."""

    @model_validator(mode="after")
    def _lengths_are_written_after(self) -> Self:
        if self.lengths is not None and not self.generate:
            raise wrong("only with generate, since they are of what a model writes. Fix: generate: true", at="lengths")
        return self


class Compare(Training, Comparing):
    """Fine-tune models at the same training FLOPs."""

    budget_flops: Flops | None = None
    """Training FLOPs of fine-tuning; left out, what 300 steps of the costliest model take."""
    learning_rates: Rates = rates_around(OneTraining.model_fields["lr"].default)
    """Each model takes, at each budget, the one that scores best on the validation split."""
    test_examples: Count | None = None
    """Score only so many examples of the test split, and of the validation split; left out, all."""

    # a run of a comparison says in its name how long it is, which model and which seed it has
    unkeyed = frozenset({"budget_flops", "budgets", "larger", "seeds", "ensemble", "workers", "generate", "lengths"})


class Evaluate(Settings):
    """Score a model on a split of a task."""

    batch_size: Size = 64
    """Examples per forward pass; it does not change the result."""
    max_examples: Count | None = None
    """Score only the first ones."""
