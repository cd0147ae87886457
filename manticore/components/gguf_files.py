"""GGUF files as checkpoints: dequantised once, by transformers' own reader, into an ordinary folder in the cache.

The folder holds safetensors, the tokenizer with its chat template, and in config.json under ``dequantized_from`` which
quantisation the weights came out of, so that whoever scores the model can say so. Weights are bfloat16 where every one
of them is exactly a bfloat16 number, else float32: nothing is rounded on the way.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from manticore.cache import cache_folder, content_key, fault_of, file_digest, seal
from manticore.components.checkpoint_folder import (
    GGUF,
    causal_families,
    family_problem,
    gguf_file,
    refuse_gguf_family,
)
from manticore.components.gguf_header import Header, read_header
from manticore.components.sources import file_of, refuse_missing_folder, unreachable
from manticore.errors import ManticoreError, told
from manticore.machine import machine_memory
from manticore.writing import partial_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_LAYOUT = 1
"""Of the folders in the cache; a folder of another is made again."""

_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_SHOWN_BY_SIZES = ("attention.key_length", "attention.value_length", "vocab_size")
_BYTES = 4
# the tensors that the reader has made, and the model that they are put into
_COPIES = 2
_SPLITS_LIKE_GPT_2 = ("gpt-2", "default", "smollm")
"""Ways of cutting text before merging that end in the same tokens as GPT-2's, with the vocabularies made for them."""


def checkpoint_folder(name: str, *, revision: str | None = None, local_files_only: bool = False) -> str:
    """The folder of an ordinary checkpoint for what ``name`` means: of a GGUF the one in the cache, else ``name``.

    Args:
        name: folder, hub id, or a GGUF file: ``model.gguf``, ``folder:model.gguf``, ``hub/id:model.gguf``, or a folder
            without other weights.
        revision: branch, tag or commit on the hub.
        local_files_only: take a file of the hub only where it was downloaded before.

    Raises:
        ManticoreError: no such file, one that is damaged or hostile, or of a family that transformers cannot read.
    """
    path = gguf_file(name) or _from_hub(name, revision, local_files_only)
    if path is None:
        return name
    with told(name, "cannot be read", "check the file, or make room in the cache (MANTICORE_CACHE)", OSError):
        state = path.stat()
        return str(_converted(path.resolve(), name, (state.st_size, state.st_mtime_ns, state.st_ino)))


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> Path | None:
    repository, colon, file = name.rpartition(":")
    if not colon or not file.lower().endswith(GGUF):
        return None
    refuse_missing_folder(repository)
    try:
        found = file_of(repository, file, revision=revision, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        why = "the hub cannot be reached" if unreachable(error) else "the hub has no such file"
        raise ManticoreError(f"{name}: {why}. Fix: check the id and the file, or go online") from error
    if found is None:
        raise ManticoreError(f"{name}: no such folder here, and no such file on the hub. Fix: check both names")
    return found


@lru_cache(maxsize=64)
def _converted(path: Path, name: str, state: tuple[int, ...]) -> Path:
    """The folder of a file in this ``state``, which is there and whole; once per process."""
    import transformers

    digest = file_digest(path)
    key = content_key({"file": digest, "layout": _LAYOUT, "transformers": transformers.__version__})
    folder = cache_folder("gguf") / f"{path.stem[:60]}-{key}"
    if (fault := fault_of(folder, key)) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        # another process may have made it meanwhile
        if (fault := fault_of(folder, key)) is None:
            return folder
        if folder.exists():
            logger.warning("%s is damaged (%s); it is made again", folder, fault)
            shutil.rmtree(folder)
        with partial_path(folder, folder=True) as aside:
            _convert(path, name, digest, aside)
            if file_digest(path) != digest:
                raise ManticoreError(f"{name}: changed while it was read. Fix: wait until it is written, try again")
            seal(aside, key)
            os.rename(aside, folder)
    return folder


def _convert(path: Path, name: str, digest: str, folder: Path) -> None:
    header = read_header(path, name)
    with tempfile.TemporaryDirectory(prefix="manticore-") as alone:
        # nothing that lies beside the file is looked at
        os.symlink(path, Path(alone, f"model{GGUF}"))
        config = _config(alone, name, header)
        model, tokenizer = _model(alone, name, header, config), _tokenizer(alone, name, header)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    stated = header.fields.get("general.license")
    matter = {"license": stated} if isinstance(stated, str) else {}
    kind = header.quantization
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(matter)}---\n\nMade of the GGUF file with the sha256 {digest}"
        f"{f', dequantised from {kind}' if kind else ''}.\n",
        encoding="utf-8",
    )


def _config(alone: str, name: str, header: Header) -> PreTrainedConfig:
    """The configuration that transformers makes of the header, checked against the tensors."""
    from transformers import AutoConfig, PreTrainedConfig

    from manticore.components.weight_files import refuse_absurd_depth

    refuse_gguf_family(header.architecture, name)
    _refuse_scaled_positions(name, header)
    no_model = told(name, "its header describes no model", "give a GGUF file of one language model")
    with no_model:
        raw, _ = PreTrainedConfig.get_config_dict(alone, gguf_file=f"model{GGUF}")
        refuse_absurd_depth(name, raw)
        known = causal_families().get(raw["model_type"])
        problem = family_problem(raw.get, None if known is None else set(known))
        if problem is not None:
            raise ManticoreError(f"{name}: {problem}")
        raw.pop("_model_name_or_path", None)
        config = AutoConfig.for_model(**raw)
    for token, field in _TOKENS.items():
        # a family's usual ones are not this checkpoint's
        value = header.fields.get(f"tokenizer.ggml.{field}_token_id")
        setattr(config, f"{token}_token_id", value if isinstance(value, int) else None)
    if header.quantization is not None:
        config.dequantized_from = header.quantization
    _refuse_other_sizes(name, header, config)
    if unread := _unread(header, config.model_type):
        logger.warning(
            "%s: transformers does not read %s from GGUF; the usual values of the family %s hold",
            name,
            ", ".join(unread),
            config.model_type,
        )
    return config


def _unread(header: Header, family: str) -> list[str]:
    """Fields of the family that transformers' reader leaves out and that sizes do not show."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    read: Any = GGUF_CONFIG_MAPPING.get(header.architecture, GGUF_CONFIG_MAPPING.get(family))
    own = [key.removeprefix(f"{header.architecture}.") for key in header.fields if key.startswith(header.architecture)]
    # of the families that are read in another way it is not told
    return [key for key in own if read is not None and key not in read and key not in _SHOWN_BY_SIZES]


def _refuse_scaled_positions(name: str, header: Header) -> None:
    """transformers' reader passes over what scales rotary positions, and the model would be another."""
    scaling = header.of_family("rope.scaling.type")
    factors = next((tensor for tensor in header.tensors if tensor.startswith("rope_")), None)
    read = header.architecture == "gpt-oss"
    if not read and (factors is not None or scaling not in (None, "none")):
        raise ManticoreError(
            f"{name}: its rotary positions are scaled ({factors or scaling}), which transformers does not read from "
            "GGUF. Fix: give the checkpoint as safetensors"
        )


def _refuse_other_sizes(name: str, header: Header, config: PreTrainedConfig) -> None:
    """Refuse a configuration whose model has other weights than the file holds, before memory is taken for either."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with told(name, "its header describes no model", "give a GGUF file of one language model"):
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        needed = sum(parameter.numel() for parameter in model.parameters())
    # llama.cpp's files may repeat the embeddings as the head
    repeated = header.tensors.get("output.weight", (0, ""))[0] if config.tie_word_embeddings else 0
    if needed not in (header.weights, header.weights - repeated):
        raise ManticoreError(
            f"{name}: it holds {header.weights:,} weights, the {config.model_type} that transformers makes of it has "
            f"{needed:,}, so that some would be left out. Fix: give the checkpoint as safetensors"
        )
    room, taken = machine_memory(), _COPIES * _BYTES * needed
    if room is not None and taken > room:
        raise ManticoreError(
            f"{name}: dequantising takes {taken / 2**30:,.1f} GiB, this machine has {room / 2**30:,.1f} GiB. "
            "Fix: a smaller model, or a machine with more memory"
        )


def _model(alone: str, name: str, header: Header, config: PreTrainedConfig) -> PreTrainedModel:
    """The dequantised model, in the precision that keeps every weight."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    from manticore.components.loaded_weights import in_precision, keeping_loaded_weights, refuse_not_finite
    from manticore.components.quiet import quiet_loading

    no_model = told(name, "its weights cannot be read", "give a GGUF file that llama.cpp runs, or safetensors")
    with no_model, quiet_loading(), _bar_on_terminals_alone(), keeping_loaded_weights():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone,
            gguf_file=f"model{GGUF}",
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    wrong = sorted(map(str, [*info["mismatched_keys"], *info["missing_keys"], *info["unexpected_keys"]]))
    if wrong:
        raise ManticoreError(
            f"{name}: {len(wrong)} weights do not fit its header (first: {wrong[0]:.80}). Fix: give an intact file"
        )
    refuse_not_finite(model, name)
    model.hf_quantizer = None
    for note in ("quantization_config", "_pre_quantization_dtype"):
        vars(model.config).pop(note, None)
    model.config.name_or_path = ""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    ends = [header.fields.get(f"tokenizer.ggml.{field}_token_id") for field in ("eos", "eot")]
    stops = list(dict.fromkeys(end for end in ends if isinstance(end, int)))
    model.generation_config.eos_token_id = stops if len(stops) > 1 else model.config.eos_token_id
    exact = all(torch.equal(p, p.to(torch.bfloat16).float()) for p in model.parameters())
    return in_precision(model, torch.bfloat16) if exact else model


@contextmanager
def _bar_on_terminals_alone() -> Iterator[None]:
    """The reader's bar, which nothing else switches off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=None)
    try:
        yield
    finally:
        reader.tqdm = bar


def _tokenizer(alone: str, name: str, header: Header) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the file, None where it holds none."""
    from transformers import AutoTokenizer

    if not header.fields.get("tokenizer.ggml.tokens"):
        return None
    cut = header.fields.get("tokenizer.ggml.pre")
    with told(name, "its tokenizer cannot be read", "give the checkpoint as safetensors, with its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=f"model{GGUF}", trust_remote_code=False)
    if header.fields.get("tokenizer.ggml.model") == "gpt2" and not _cuts(cut):
        logger.warning("%s: text is cut as for GPT-2 before it is merged; transformers does not know %r", name, cut)
    return tokenizer


def _cuts(kind: Any) -> bool:
    """Whether transformers knows how text is cut into words before tokens are merged."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return kind is None or kind in _SPLITS_LIKE_GPT_2 or kind in GGUF_PRE_TOKENIZER_SPLITS
