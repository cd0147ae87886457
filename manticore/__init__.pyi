"""Public names. Made by tests/builders/public_stub.py; tests/test_public_stub.py keeps it fresh."""

import torch
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from manticore.design_settings import Design
from manticore.errors import ManticoreError as ManticoreError
from manticore.experiments import fits as fits
from manticore.experiments.compare import Comparison
from manticore.experiments.models import Source
from manticore.hybrid.classification import ManticoreForPairClassification as ManticoreForPairClassification
from manticore.hybrid.classification import ManticoreForSequenceClassification as ManticoreForSequenceClassification
from manticore.hybrid.classification import ManticoreForTokenClassification as ManticoreForTokenClassification
from manticore.hybrid.configuration import ManticoreConfig as ManticoreConfig
from manticore.hybrid.discretize import discretize as discretize
from manticore.hybrid.export import export as export
from manticore.hybrid.lora import lora_table as lora_table
from manticore.hybrid.lora import lora_targets as lora_targets
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.hybrid.modeling import ManticoreForCausalLM as ManticoreForCausalLM
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.report.sharing import share as share
from manticore.search.designs.result import StudyResult
from manticore.search.designs.space import DesignSpace
from manticore.search.result import SearchResult
from manticore.settings import Align
from manticore.settings import Combine
from manticore.settings import Compare
from manticore.settings import Distill
from manticore.settings import Evaluate
from manticore.settings import Finetune
from manticore.settings import Pretrain
from manticore.settings import Search
from manticore.stacks.autoencoder import StackForAutoEncoding as StackForAutoEncoding
from manticore.stacks.classification import StackForPairClassification as StackForPairClassification
from manticore.stacks.classification import StackForSequenceClassification as StackForSequenceClassification
from manticore.stacks.classification import StackForTokenClassification as StackForTokenClassification
from manticore.stacks.configuration import StackConfig as StackConfig
from manticore.stacks.modeling import StackForCausalLM as StackForCausalLM
from manticore.tasks.corpus import Text
from manticore.tasks.task import Task
from manticore.training.alignment import AlignmentReport
from manticore.training.begun import Begun
from manticore.training.callbacks import Progress
from manticore.training.distill import DistillResult
from manticore.training.finetune import FinetuneResult
from manticore.twin_settings import Twin
from manticore.twins.configuration import TwinConfig as TwinConfig
from manticore.twins.modeling import TwinForCausalLM
from manticore.twins.modeling import TwinForCausalLM as TwinForCausalLM
from pathlib import Path
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase
from typing import Any
from typing import Literal

__version__: str
__all__: list[str]

def align(
    hybrid: ManticoreForCausalLM,
    text: Text = 'stdlib',
    settings: Align | None = None,
    *,
    text_column: str | None = None,
    bos: Literal['auto', 'always', 'never'] = 'auto',
    tokens: int = 65536,
    holdout: float = 0.1,
    ridge: float | None = None,
    withdraw: bool = True,
    batch_size: int = 16,
    length: int = 128,
    steps: int = 0,
    lr: float = 0.001,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> AlignmentReport: ...

def combine(
    models: Sequence[str | Path | PreTrainedModel],
    settings: Combine | None = None,
    *,
    num_blocks: int = 4,
    boundaries: Sequence[Sequence[int]] | None = None,
    mixing: str | None = None,
    output: str = 'logits',
    forgetting: float | None = None,
    drop_below: float | None = None,
    drop_after: int = 32,
    released: bool = False,
    projector: str = 'linear',
    projector_options: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | int | None = None,
    min_coverage: float = 0.25,
    vocab_size: int | None = None,
    revisions: Sequence[str | None] | None = None,
    seed: int = 0,
    check: bool = True,
) -> ManticoreForCausalLM: ...

def compare(
    models: Mapping[str, Source] | Sequence[Source],
    task: str | Task,
    settings: Compare | None = None,
    *,
    budgets: Sequence[float] | None = None,
    larger: PreTrainedModel | str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    ensemble: Sequence[str] | bool = True,
    workers: int = 1,
    generate: bool = False,
    lengths: Sequence[int] | None = None,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    decay: Literal['maps', 'all'] = 'maps',
    adam_betas: Sequence[float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    schedule: Literal['constant', 'linear', 'cosine'] = 'constant',
    warmup_steps: int | None = None,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    trainable: Literal['all', 'frozen', 'projectors', 'mixers', 'lora'] = 'all',
    lora_rank: int = 8,
    gradient_checkpointing: bool = False,
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto',
    bf16: bool = False,
    budget_flops: float | None = None,
    learning_rates: Sequence[float] = (0.0003, 0.001, 0.003),
    test_examples: int | None = None,
    spent_flops: Mapping[str, int] | None = None,
    cpu: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool | Callable[[int, int, str], None] = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Comparison: ...

def design(
    space: DesignSpace | str = 'layers',
    objectives: Sequence[str] = ('loss', 'parameters'),
    settings: Design | None = None,
    *,
    text: Text | None = 'stdlib',
    text_column: str | None = None,
    max_bytes: int | None = 2000000,
    tokenizer: str = 'bytes',
    length: int = 32,
    batch_size: int = 32,
    steps: int = 200,
    tokens: int | None = None,
    lr: float = 0.003,
    schedule: Literal['constant', 'linear', 'cosine'] = 'cosine',
    weight_decay: float = 0.01,
    validation_examples: int = 512,
    data_seed: int = 0,
    space_options: Mapping[str, Any] | None = None,
    max: Mapping[str, Any] | None = None,
    min: Mapping[str, Any] | None = None,
    workload: str = 'tokens=4096,batch=1',
    method: str = 'evolution',
    method_options: Mapping[str, Any] | None = None,
    trials: int = 64,
    repeats: int = 1,
    mad_tasks: Sequence[str] = (),
    mad_tier: Literal['smoke', 'baseline', 'full'] = 'smoke',
    mad_epochs: int | None = None,
    stop: Literal['median', 'asha'] | None = None,
    stop_after: int = 8,
    baselines: bool = True,
    workers: int = 1,
    storage: str | None = None,
    study_name: str | None = None,
    name: str = 'study',
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    reuse: str | Path | StudyResult | None = None,
    cpu: bool = False,
    progress: bool | Progress = False,
) -> StudyResult: ...

def distill(
    student: PreTrainedModel | SearchResult | str | Path,
    teacher: PreTrainedModel | str | Path,
    data: str | Task | Text,
    settings: Distill | None = None,
    *,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    decay: Literal['maps', 'all'] = 'maps',
    adam_betas: Sequence[float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    schedule: Literal['constant', 'linear', 'cosine'] = 'constant',
    warmup_steps: int | None = None,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    trainable: Literal['all', 'frozen', 'projectors', 'mixers', 'lora'] = 'all',
    lora_rank: int = 8,
    gradient_checkpointing: bool = False,
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto',
    bf16: bool = False,
    steps: int | None = None,
    budget_flops: float | None = None,
    lr: float = 0.001,
    save_steps: int | None = None,
    report_to: str | Sequence[str] | None = None,
    log_steps: int | None = None,
    test_examples: int | None = None,
    phases: Literal['auto', 'blocks', 'logits', 'both'] = 'auto',
    block_share: float = 0.25,
    block_lr: float = 0.001,
    temperature: float = 1.0,
    alpha: float = 0.5,
    keep_answers: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> DistillResult: ...

def evaluate(
    model: PreTrainedModel,
    task: str | Task,
    settings: Evaluate | None = None,
    *,
    batch_size: int = 64,
    max_examples: int | None = None,
    split: str = 'test',
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, float]: ...

def finetune(
    model: PreTrainedModel | Begun | SearchResult | str | Path,
    task: str | Task,
    settings: Finetune | None = None,
    *,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    decay: Literal['maps', 'all'] = 'maps',
    adam_betas: Sequence[float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    schedule: Literal['constant', 'linear', 'cosine'] = 'constant',
    warmup_steps: int | None = None,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    trainable: Literal['all', 'frozen', 'projectors', 'mixers', 'lora'] = 'all',
    lora_rank: int = 8,
    gradient_checkpointing: bool = False,
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto',
    bf16: bool = False,
    steps: int | None = None,
    budget_flops: float | None = None,
    lr: float = 0.001,
    save_steps: int | None = None,
    report_to: str | Sequence[str] | None = None,
    log_steps: int | None = None,
    test_examples: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FinetuneResult: ...

def pretrain(
    family: str | Path,
    settings: Pretrain | None = None,
    *,
    text: Text = 'stdlib',
    text_column: str | None = None,
    bos: Literal['auto', 'always', 'never'] = 'auto',
    layers: int | None = None,
    width: int | None = None,
    config: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase = 'train',
    tokenizer_texts: Sequence[Text] | None = None,
    vocab_size: int = 1024,
    length: int = 128,
    steps: int = 300,
    batch_size: int = 16,
    lr: float = 0.003,
    weight_decay: float = 0.01,
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto',
    seed: int = 0,
    data_seed: int = 0,
    index: int = 0,
    out: str | Path | None = None,
    cache: bool = True,
    cpu: bool = False,
    progress: bool | Progress = False,
) -> Path: ...

def search(
    hybrid: ManticorePreTrainedModel,
    task: str | Task,
    settings: Search | None = None,
    *,
    weights_from: SearchResult | str | Path | None = None,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    decay: Literal['maps', 'all'] = 'maps',
    adam_betas: Sequence[float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    schedule: Literal['constant', 'linear', 'cosine'] = 'constant',
    warmup_steps: int | None = None,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    trainable: Literal['all', 'frozen', 'projectors', 'mixers', 'lora'] = 'all',
    lora_rank: int = 8,
    gradient_checkpointing: bool = False,
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto',
    bf16: bool = False,
    steps: int | None = None,
    budget_flops: float | None = None,
    lr: float = 0.001,
    save_steps: int | None = None,
    report_to: str | Sequence[str] | None = None,
    method: str = 'auto',
    finetune_flops: float | None = None,
    validation_examples: int = 256,
    gap: float | None = None,
    max_handovers: int | None = None,
    candidates: int | None = None,
    sampling: Literal['uniform', 'weighted', 'layouts'] | None = None,
    shared_units: float | None = None,
    top: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    study_name: str | None = None,
    order: Literal['simultaneous', 'alternating', 'bilevel'] = 'simultaneous',
    mixture_lr: float | None = None,
    mixture_weight_decay: float | None = None,
    mixture_schedule: Literal['constant', 'linear', 'cosine'] = 'constant',
    mixture_warmup_steps: int = 0,
    temperature: float | None = None,
    final_temperature: float | None = None,
    start: str | Tensor | Sequence[Sequence[float]] | Sequence[int] | None = None,
    start_floor: float | None = None,
    max: Mapping[str, Any] | None = None,
    workload: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SearchResult: ...

def twin(
    parent: str | Path | PreTrainedModel,
    mixer: Literal['gated-delta-net', 'mamba-2', 'linear-attention', 'sliding-attention'] = 'gated-delta-net',
    settings: Twin | None = None,
    *,
    layers: Sequence[int] | None = None,
    rotary: bool | None = None,
    window: int | None = None,
    text: Text | None = None,
    text_column: str | None = None,
    bos: Literal['auto', 'always', 'never'] = 'auto',
    tokens: int = 262144,
    holdout: float = 0.05,
    length: int = 512,
    batch_size: int = 4,
    lr: float = 0.001,
    save_steps: int = 50,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> TwinForCausalLM: ...
