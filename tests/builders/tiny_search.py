"""A tiny supernet and a small task, for all tests of the search."""

from functools import cache

from tiny_models import NO_ENDS, gpt_neo_config, mamba_config, seeded

import manticore
from manticore.search.shared import SharedTrainer
from manticore.settings import Finetune
from manticore.tasks.task import load_task
from manticore.training.opening import opened
from manticore.training.precision import Precision
from manticore.training.trainable import set_trainable
from manticore.training.trainer import TaskTrainer

VOCABULARY = 8
TUNING = Finetune(batch_size=16, lr=2e-3, warmup_steps=2, weight_decay=0.1)


def tiny_gpt(seed, dropout):
    sizes = {"max_position_embeddings": 32, "intermediate_size": 32, "resid_dropout": dropout}
    return seeded(gpt_neo_config(VOCABULARY, 16, 2, **sizes, **NO_ENDS), seed)


def tiny_mamba(seed):
    return seeded(mamba_config(VOCABULARY, 12, 3, time_step_rank=2, pad_token_id=None, **NO_ENDS), seed)


def make_hybrid(mixing="translated", num_blocks=2, seed=0, dropout=0.0):
    """A supernet of a GPT-Neo and a Mamba (component 0 and 1) of unequal width and depth."""
    return manticore.combine(
        [tiny_gpt(seed, dropout), tiny_mamba(seed)], num_blocks=num_blocks, mixing=mixing, check=False, seed=seed
    )


@cache
def recall():
    """In-context recall, small; its vocabulary is the components'."""
    return load_task(
        "mad/in-context-recall",
        vocab_size=VOCABULARY,
        seq_len=12,
        num_train_examples=64,
        num_validation_examples=8,
        num_test_examples=8,
    )


def trained(hybrid, paths, steps=None, **changes):
    """Train a supernet on these paths, a step each, or a path by itself; the trainer."""
    settings = TUNING.model_copy(update={"steps": steps or len(paths), **changes})
    set_trainable(hybrid, "all")
    precision = Precision(hybrid, "auto", bf16=False, cpu=True, stage="search")
    with opened(
        hybrid, recall(), settings, precision, stage="search", draws="shared", seed=0, out=None, resume=False, cpu=True
    ) as training:
        common = (hybrid, training.args, recall())
        trainer = SharedTrainer(*common, paths=paths, stage="search") if paths else TaskTrainer(*common)
        trainer.run()
    return trainer
