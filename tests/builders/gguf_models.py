"""Tiny GGUF files, written with the package gguf as llama.cpp's converter would."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from small_tokenizers import byte_level
from tiny_models import seeded
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

HEADS, KEY_VALUE_HEADS = 4, 2
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens."""
    return byte_level(vocab_size=320)


def llama(seed: int = 0) -> PreTrainedModel:
    """Width 64, 2 layers, 4 heads that share 2 keys and values; the head is the embeddings."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return seeded(config, seed).eval()


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    *,
    tokens: PreTrainedTokenizerFast | None = None,
    architecture: str = "llama",
    add: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
) -> PreTrainedModel:
    """Write a llama as GGUF, its maps as ``kind`` and its norms as float32.

    Args:
        path: of the file.
        model: which :func:`llama` made.
        kind: ``F32``, ``BF16``, ``Q8_0``, ``Q4_1``.
        tokens: the tokenizer to put in.
        architecture: what the file calls the family.
        add: puts more fields or tensors in.

    Returns:
        The model with the weights that the file holds.
    """
    held, config = copy.deepcopy(model), model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    if tokens is not None:
        _add_tokenizer(writer, tokens)
    add(writer)
    for name, parameter in held.named_parameters():
        weight = parameter.detach()
        heads = {"q_proj": HEADS, "k_proj": KEY_VALUE_HEADS}.get(name.split(".")[-2], 0)
        wanted = GGMLQuantizationType[kind] if weight.dim() > 1 else GGMLQuantizationType.F32
        stored = gguf.quantize(np.ascontiguousarray(_turned(weight, heads)), wanted)
        writer.add_tensor(_name(name), stored, raw_dtype=wanted)
        read = torch.tensor(gguf.dequantize(stored, wanted)).reshape(weight.shape)
        parameter.data = _turned_back(read, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _name(name: str) -> str:
    for theirs, gguf_name in _NAMES.items():
        name = name.replace(theirs, gguf_name)
    return name


def _turned(weight: torch.Tensor, heads: int) -> np.ndarray:
    """Rows of a head as llama.cpp rotates them: pairs side by side, not half a head apart."""
    if not heads:
        return weight.numpy()
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width).numpy()


def _turned_back(weight: torch.Tensor, heads: int) -> torch.Tensor:
    if not heads:
        return weight
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width).contiguous()


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: PreTrainedTokenizerFast) -> None:
    inner = json.loads(tokens.backend_tokenizer.to_str())
    listed = sorted(tokens.get_vocab(), key=tokens.get_vocab().__getitem__)
    special = set(tokens.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(listed)
    writer.add_token_types([3 if token in special else 1 for token in listed])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
