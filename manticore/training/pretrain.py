"""Pretrains small language models from scratch, as ordinary checkpoints with their tokenizer.

They stand in for downloaded checkpoints where there is no network: for trying things out, for tests of claims, for
models of two families that share one tokenizer. Nothing is trained twice: a result is kept in the cache under the hash
of everything that determines it, and a run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import manticore
from manticore.cache import MANIFEST, cache_folder, content_key, is_whole, seal
from manticore.components.loading import load_tokenizer
from manticore.errors import ManticoreError
from manticore.keywords import takes
from manticore.option_types import Bos
from manticore.paths import expanded
from manticore.seeding import derive_seed
from manticore.settings import Finetune, Pretrain
from manticore.stacks.configuration import StackConfig
from manticore.tasks.beginning import beginning
from manticore.tasks.corpus import Text, corpus_digest, read_corpus
from manticore.tasks.task import Task
from manticore.tasks.text import packed_task, split_documents
from manticore.tasks.text_sources import find_text
from manticore.training.callbacks import Progress
from manticore.training.finetune import finetune
from manticore.training.shapes import build, shape_of
from manticore.training.tokenizers import train_tokenizer
from manticore.writing import new_folder

logger = logging.getLogger(__name__)

TRAIN = "train"
"""Value of ``tokenizer``: train one on the text."""

RECORD = "pretraining.json"
"""Lies beside the model: what determined it, and how it does on held-out text."""

_SCORED_PACKS = 32
_NOT_OF_A_STACK = frozenset(
    {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "architectures", "dtype"}
)
"""Fields of a stack's configuration that training replaces."""


@takes(Pretrain)
def pretrain(
    family: str | Path,
    settings: Pretrain,
    *,
    index: int = 0,
    out: str | Path | None = None,
    cache: bool = True,
    cpu: bool = False,
    progress: bool | Progress = False,
) -> Path:
    """Train a small causal language model on the training part of a text; returns the folder of its checkpoint.

    The text is split as the task ``text`` splits it, so what that task holds out was never seen here. It is what
    ``read_corpus`` reads; each text that a new tokenizer is trained on is read and split as it is. Training a tokenizer
    is repeatable: models with the same text and size share theirs. ``tokenizer`` may also be one in memory.

    Args:
        family: a ``model_type`` of transformers, for instance ``"gpt_neo"`` or ``"mamba"``; or the folder of a stack's
            configuration, as ``manticore design`` and ``manticore scale`` write it: sizes are its own, no weights are
            read.
        settings: the options below in one object, which single ones change.
        index: which of several models with this seed it is: each has first weights of its own. In a recipe the place
            among the entries of ``pretrain``.
        out: folder for the checkpoint; None: it stays in the cache.
        cache: take the model from the cache, and put it there.
        cpu: stay on the CPU where an accelerator is present.
        progress: True for a bar on the terminal, or a function of (step, steps, row).

    Raises:
        ManticoreError: a family that is not a causal LM, a folder that holds no stack, a shape it cannot have, bad
            text, ``out`` exists.
    """
    wanted: Any = settings.tokenizer
    given = None if isinstance(wanted, str) and wanted == TRAIN else _loaded_tokenizer(wanted)
    shape = shape_of(family, settings)
    read: dict[str, Any] = {"text_column": settings.text_column, "max_bytes": settings.max_bytes}
    documents = read_corpus(settings.text, **read)
    learned_on = None
    if settings.tokenizer_texts is not None:
        learned_on = _corpora(settings.tokenizer_texts, **read, given=given)
    record = settings.key(
        manticore=manticore.__version__,
        family=shape.model_type,
        text=corpus_digest(documents),
        tokenizer=_tokenizer_key(settings.vocab_size, learned_on) if given is None else _fingerprint(given),
        index=index,
    )
    if isinstance(shape, StackConfig):
        # whatever folder it lies in; the vocabulary is the tokenizer's
        record["stack"] = {name: value for name, value in shape.to_diff_dict().items() if name not in _NOT_OF_A_STACK}
    bos = settings.bos
    if bos == "always" if given is None else beginning(given, bos, stage="pretrain") is not None:
        # absent where there is none: what was pretrained before there was a choice stays valid
        record["bos"] = True
    name = f"{shape.model_type}-{content_key(record)}"
    folder = _destination(name, out, cache)
    work = folder.parent / f".{name}.part"
    cached = cache or out is None
    finished = partial(is_whole, folder, name) if cached else folder.exists
    if not finished():
        with _exclusive(work, folder):
            # While this process waited, another one may have finished the same model.
            if not finished():
                if cached and folder.exists():
                    logger.warning("%s is damaged; it is pretrained again", folder)
                    shutil.rmtree(folder)
                splits = split_documents(documents, data_seed=settings.data_seed)
                parts = [splits["train"]]
                if learned_on is not None:
                    parts = [split_documents(corpus, data_seed=settings.data_seed)["train"] for corpus in learned_on]
                used = train_tokenizer([*chain(*parts)], settings.vocab_size) if given is None else given
                model, learned = (
                    _new_model(shape, used, derive_seed(settings.seed, "pretrain weights", index)),
                    {"tokens": 0, "heldout": {}},
                )
                if settings.steps:
                    shared = Pretrain.model_fields.keys() & Finetune.model_fields.keys()
                    result = finetune(
                        model,
                        _task(splits, used, settings.length, bos),
                        Finetune(
                            **{name: getattr(settings, name) for name in shared},
                            schedule="cosine",
                            warmup_steps=settings.steps // 10,
                        ),
                        seed=settings.seed,
                        out=work,
                        resume=True,
                        cpu=cpu,
                        progress=progress,
                    )
                    model, learned = result.model, {"tokens": result.tokens, "heldout": result.metrics}
                _publish(model, used, {**record, **learned}, work / "model", folder, name if cached else None)
            shutil.rmtree(work, ignore_errors=True)
    return folder if out is None or not cache else _copy(folder, expanded(out, "--out"))


def read_record(folder: str | Path) -> dict[str, Any]:
    """What a pretraining has noted beside its model: settings, ``tokens`` seen, ``heldout`` metrics."""
    return dict(json.loads((Path(folder) / RECORD).read_text(encoding="utf-8")))


def _corpora(
    texts: Sequence[Text], text_column: str | None, max_bytes: int | None, given: PreTrainedTokenizerBase | None
) -> list[list[str]]:
    """The texts of a new tokenizer, in an order that does not depend on how they are listed."""
    if isinstance(texts, str | Path | Dataset) or not texts:
        raise ManticoreError("pretrain: tokenizer_texts is not a list of texts. Fix: give each as text is given")
    if given is not None:
        raise ManticoreError("pretrain: tokenizer_texts beside a given tokenizer. Fix: leave one of them out")
    read = []
    for text in texts:
        plain = isinstance(text, str | Path) and not find_text(text).has_columns
        read.append(read_corpus(text, text_column=None if plain else text_column, max_bytes=max_bytes))
    return sorted({corpus_digest(corpus): corpus for corpus in read}.values(), key=corpus_digest)


def _tokenizer_key(vocab_size: int, corpora: Sequence[Sequence[str]] | None) -> dict[str, Any]:
    texts = {} if corpora is None else {"texts": [corpus_digest(corpus) for corpus in corpora]}
    return {"train": vocab_size, **texts}


def _destination(name: str, out: str | Path | None, cache: bool) -> Path:
    if out is None and not cache:
        raise ManticoreError("pretrain: neither out nor the cache may hold the model. Fix: give out, or cache=True")
    if out is not None and expanded(out, "--out").exists():
        raise ManticoreError(f"pretrain: {out} exists already. Fix: choose another folder or remove it")
    return cache_folder("pretrained") / name if cache or out is None else expanded(out, "--out")


@contextmanager
def _exclusive(work: Path, folder: Path) -> Iterator[None]:
    """Makes ``work``, for one process at a time; the others wait."""
    lock = FileLock(work.with_suffix(".lock"))
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise ManticoreError(
            f"pretrain: {work} cannot be made ({error.strerror or error}). "
            "Fix: give another out, or another folder for the cache in MANTICORE_CACHE"
        ) from error
    try:
        yield
    finally:
        # Once the result is there nobody needs the lock, whoever may still wait for it.
        if folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _loaded_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    loaded = load_tokenizer(tokenizer)
    if loaded is None:
        raise ManticoreError(f"pretrain: no tokenizer in {tokenizer}. Fix: give its folder, or tokenizer='train'")
    return loaded


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return content_key([tokenizer.get_vocab(), special, type(tokenizer).__name__])


def _new_model(shape: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """With weights drawn from a seed of their own."""
    shape.vocab_size = len(tokenizer)
    shape.bos_token_id = tokenizer.bos_token_id
    shape.eos_token_id = tokenizer.eos_token_id
    shape.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(shape)


def _task(splits: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase, length: int, bos: Bos) -> Task:
    """The text as a task whose test split is a little of the validation part: a number to look at, at low cost."""
    task = packed_task({name: splits[name] for name in ("train", "validation")}, tokenizer, length, bos=bos)
    held_out = task.data["validation"]
    task.data["validation"] = task.data["test"] = held_out.select(range(min(_SCORED_PACKS, len(held_out))))
    return task


def _publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    aside: Path,
    folder: Path,
    entry: str | None,
) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if entry is not None:
        seal(aside, entry)
    os.rename(aside, folder)


def _copy(folder: Path, out: Path) -> Path:
    with new_folder(out) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    return out
