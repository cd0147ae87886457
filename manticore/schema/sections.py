"""The sections of a recipe. Field names and defaults are those of the Python functions' keyword arguments.

The text under each field is its help, in ``manticore show schema`` and in ``manticore <verb> --help`` alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from manticore.schema.names import Mixing, Projector, Scalar, SearchMethod, TaskName
from manticore.tasks.beginning import Bos


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        text = f"{values} holds one twice. Fix: give different ones"
        raise PydanticCustomError("held_twice", "{text}", {"text": text})
    return values


Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Text = Annotated[str, Field(min_length=1)]
TextColumn = Annotated[
    Text | None,
    Field(description="Of a table, the column that holds the documents; else text, or the only column of strings."),
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Trainable = Literal["all", "frozen", "projectors", "lora"]
Schedule = Literal["constant", "linear", "cosine"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are not bent into shape."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Component(Section):
    """One pretrained causal language model that goes into the hybrid."""

    name: Name
    """What tables and plots call it."""
    source: Text
    """A folder, a hub id, or the name of an entry of `pretrain`."""
    revision: str | None = None
    """Branch, tag or commit of the hub id."""


class TaskChoice(Section):
    """What the hybrid is searched, fine-tuned and compared on."""

    name: TaskName
    """Name of the task."""
    options: dict[str, Scalar] = {}
    """The task's own options; `manticore show TASK` lists them."""


class Pretrain(Section):
    """A small model pretrained on the spot, kept in the cache and used as a component."""

    name: Name
    """What `components` calls it as a source."""
    family: Text
    """A model_type of transformers, such as gpt_neo or mamba."""
    layers: Count
    """Depth."""
    width: Count
    """Width of the hidden states."""
    config: dict[str, Scalar] = {}
    """Further fields of the family's configuration; the rest is scaled to the width."""
    text: Text = "stdlib"
    """Text files, tables, a folder, a datasets id, or stdlib: the sources of Python's standard library."""
    text_column: TextColumn = None
    max_bytes: Count | None = None
    """Read so much of the text only."""
    tokenizer: Text = "train"
    """Folder or hub id of a tokenizer, or train: a new one, shared by all models with this text and vocab_size."""
    tokenizer_texts: Annotated[list[Text], Field(min_length=1)] | None = None
    """Texts that a new tokenizer is trained on, so that models with different texts share it; left out, the text."""
    vocab_size: Count = 1024
    """Tokens of a new tokenizer."""
    length: Count = 128
    """Tokens per sequence."""
    steps: Amount = 300
    """Optimizer steps; 0 leaves the first weights, for models that the task trains from scratch."""
    batch_size: Count = 16
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
    bos: Bos = "auto"
    """Whether every sequence begins with the tokenizer's BOS token; auto: where it adds one. A new one adds none."""


class Combine(Section):
    """Put the components side by side, block by block, into one hybrid."""

    num_blocks: Count = 4
    """Segments each component is cut into."""
    mixing: Mixing = "translated"
    """How blocks mix the components' features."""
    released: bool = False
    """With gated mixing: the function of the published method's released code, with fresh embeddings tied to heads."""
    projector: Projector = "linear"
    """Kind of map between the components' feature spaces."""
    projector_options: dict[str, Scalar] = {}
    """Options of that kind, such as rank for low-rank."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; left out, the one they were saved in."""
    tokenizer: Text | None = None
    """Where tokenizers differ: the component whose tokenizer is kept; the others are re-embedded for it."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Refuse to re-embed a component that has less than this share of the kept tokenizer's tokens."""


class Align(Section):
    """Fit the projectors in closed form on calibration text."""

    text: Text = "stdlib"
    """Text files, tables, a folder, a datasets id, or stdlib: the sources of Python's standard library.
    In a recipe also task: the task's own inputs."""
    text_column: TextColumn = None
    tokens: Annotated[int, Field(ge=2)] = 65536
    """Calibration tokens, held-out ones included."""
    holdout: Share = 0.1
    """Share of the tokens that is never fitted on."""
    ridge: NotNegative = 1e-4
    """Strength of the ridge, relative to the mean variance of a source channel."""
    batch_size: Count = 16
    """Sequences per forward pass, and per gradient step."""
    length: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence, where text is packed."""
    steps: Amount = 0
    """Gradient steps on the projectors after the closed form."""
    lr: Positive = 1e-3
    """Their first learning rate; it falls linearly to zero."""
    bos: Bos = "auto"
    """Whether every sequence begins with the tokenizer's BOS token; auto: where the tokenizer adds one."""


class Training(Section):
    """What every training on a task shares, so that a comparison trains as fine-tuning does."""

    batch_size: Count = 32
    """Examples per optimizer step."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    decay: Literal["maps", "all"] = "maps"
    """What it falls on: maps and tables, so no bias, no norm and nothing that sets a recurrence (A_log, D); or all."""
    adam_betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's decay rates of the first and second moment."""
    adam_eps: Positive = 1e-8
    """AdamW's epsilon."""
    schedule: Schedule = "constant"
    """Course of the learning rate after warm-up."""
    warmup_steps: Amount | None = None
    """Steps over which the learning rate rises from zero; left out, a tenth of the steps, at least 10."""
    accumulation: Count = 1
    """Micro-batches that one optimizer step is cut into."""
    max_grad_norm: NotNegative = 1.0
    """Longer gradients are scaled down to this norm; 0: none are."""
    trainable: Trainable = "all"
    """What trains: everything, only what the hybrid adds, projectors and heads, or LoRA."""
    lora_rank: Count = 8
    """Rank of the LoRA updates."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more FLOPs."""
    dtype: TrainingDtype = "auto"
    """auto trains in float32, on accelerators with bfloat16 as autocast for half-precision weights, and saves in the
    type that the weights came in; float32 and bfloat16 train and save in that type alone."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe (autocast), on every device."""


class Search(Training):
    """Learn which component each block should use."""

    method: SearchMethod = "darts"
    """How the mixture weights are learned."""
    order: Literal["simultaneous", "alternating", "bilevel"] = "simultaneous"
    """When they are: with the network, in turns on the same data, or in turns on a held-out half."""
    steps: Count | None = None
    """Optimizer steps; without steps and budget_flops, 120."""
    budget_flops: Positive | None = None
    """Training FLOPs to spend, instead of steps."""
    lr: Positive = 1e-3
    """Peak learning rate of the network."""
    warmup_steps: Amount = 0
    """Steps over which it rises from zero."""
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
    start: Literal["current"] | None = None
    """current keeps the hybrid's mixture weights; left out, the mixing's own start."""
    start_floor: Share | None = None
    """Smallest probability to start from."""
    save_steps: Count | None = None
    """Steps between checkpoints that a killed run resumes from; left out, ten per search."""
    report_to: list[Text] | None = None
    """Experiment trackers told every logged row, by transformers' names: tensorboard, trackio, wandb, …"""


class Discretize(Section):
    """Keep one component per block, drop the rest."""

    path: list[Amount] | None = None
    """One component index per block; left out, what the search found."""


class Finetune(Training):
    """Train the discretized hybrid end to end."""

    start: Literal["aligned", "searched"] = "aligned"
    """Weights to start from: those before the search (it then costs what a parent's costs), or after it."""
    steps: Count | None = None
    """Optimizer steps; without steps and budget_flops, 300."""
    budget_flops: Positive | None = None
    """Training FLOPs to spend, instead of steps."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    save_steps: Count | None = None
    """Steps between checkpoints that a killed run resumes from; left out, ten per run."""
    log_steps: Count | None = None
    """Steps between logged losses; left out, about two hundred per run."""
    report_to: list[Text] | None = None
    """Experiment trackers told every logged row, by transformers' names: tensorboard, trackio, wandb, …"""
    test_examples: Count | None = None
    """Score only so many examples of the test split; left out, all."""


class Compare(Section):
    """Fine-tune parents, ensemble, soft supernet and hybrid at the same training FLOPs, with finetune's settings."""

    seeds: Seeds = [0, 1, 2]
    """One fine-tuning per seed and model; three or more show a spread worth the name."""
    learning_rates: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Each model takes the one that scores best on the validation split; left out, finetune's."""
    ensemble: bool = True
    """Add the average of the parents' logits."""
    workers: Count = 1
    """On a CPU, runs made at the same time, each in a process with one thread."""


class CompareModels(Training):
    """Fine-tune models at the same training FLOPs."""

    budget_flops: Positive | None = None
    """Training FLOPs of fine-tuning; left out, what 300 steps of the costliest model take."""
    seeds: Seeds = [0, 1, 2]
    """One fine-tuning per seed and model; three or more show a spread worth the name."""
    learning_rates: Annotated[list[Positive], Field(min_length=1)] = [1e-3]
    """Each model takes the one that scores best on the validation split."""
    ensemble: bool = True
    """Add the average of the logits of all models that are no hybrids."""
    test_examples: Count | None = None
    """Score only so many examples of the test split, and of the validation split; left out, all."""
    workers: Count = 1
    """On a CPU, runs made at the same time, each in a process with one thread."""


class Report(Section):
    """The page that shows it all. It has no settings; `null` leaves it out."""
