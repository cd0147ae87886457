"""Tiny models and checkpoints for the tests of all packages: a GPT-Neo and a Mamba of unequal width and depth."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

MEMORY = Path("/dev/shm")


def files_in_memory() -> bool:
    """Whether the tests' files have room in memory, from where what they compile can run."""
    if not os.access(MEMORY, os.W_OK):
        return False
    return shutil.disk_usage(MEMORY).free > 4 * 2**30 and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC


# a run makes every file safe on the disk before it counts: ten milliseconds a file, over a thousand files a run
if "TMPDIR" not in os.environ and files_in_memory():
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None

# Triton decides when it is first imported, and transformers imports it: without a GPU its kernels are interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# the first import of this module puts a new module transformers in the place of the old one (since 5.24); a test that
# patches transformers has to patch the one that this package reads
import transformers.processing_utils  # noqa: F401
from tiny_models import gpt_neo_config, mamba_config, seeded
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from manticore.training.tokenizers import train_tokenizer

VOCABULARY = 97
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def pytest_collection_finish() -> None:
    """Sets aside what the libraries imported: every training run collects garbage, which takes longer than the run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_draws_in_any_order() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


def gpt_neo(vocab_size: int = VOCABULARY, seed: int = 1) -> PreTrainedModel:
    """Width 32, 4 layers, local windows shorter than the test sequences, no dropout."""
    local = {"attention_types": [[["global", "local"], 2]], "window_size": 4}
    return seeded(gpt_neo_config(vocab_size, 32, 4, **local, **ENDS), seed).eval()


def mamba(vocab_size: int = VOCABULARY, seed: int = 2) -> PreTrainedModel:
    """Width 24, 6 layers."""
    return seeded(mamba_config(vocab_size, 24, 6, **ENDS), seed).eval()


@pytest.fixture
def tiny_gpt() -> PreTrainedModel:
    """A GPT-Neo in memory, the test's own."""
    return gpt_neo()


@pytest.fixture
def tiny_mamba() -> PreTrainedModel:
    """A Mamba in memory, the test's own."""
    return mamba()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, lossless on any text; id 0 ends a text, id 1 is padding."""
    return train_tokenizer(["def f(x):\n    return x + 1\n"] * 3, 260)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[Path]:
    """Folders of a GPT-Neo and a Mamba with that tokenizer, the second's table padded; read, never write."""
    root = tmp_path_factory.mktemp("checkpoints")
    paths = [root / "gpt", root / "mamba"]
    rows = len(tokenizer)
    for path, model in zip(paths, (gpt_neo(rows), mamba(rows + 4))):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return paths
