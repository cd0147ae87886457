"""Tiny configurations of the families that benchmarks and tests run: vocabulary 97, widths 24 to 48, 4 to 6 layers.

Windows, state sizes and expert counts are small enough that a dozen tokens reach every branch of a family's code.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
POSITIONS = {"max_position_embeddings": 64}
# what most decoder families call their shape
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    **POSITIONS,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
GPT2_SHAPE = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MAMBA2_MIXER = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_SHAPE,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 48,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
        **POSITIONS,
    },
    "gpt_neox": {**SHAPE, "rotary_pct": 0.5},
    "gptj": {**GPT2_SHAPE, "rotary_dim": 4},
    "codegen": {**GPT2_SHAPE, "rotary_dim": 4},
    "gpt_bigcode": GPT2_SHAPE,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        **POSITIONS,
    },
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "biogpt": SHAPE,
    "xglm": {"d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 48, **POSITIONS},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen2_moe": {
        **GROUPED,
        **EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3": {**GROUPED, "head_dim": 8},
    "qwen3_moe": {**GROUPED, **EXPERTS, "head_dim": 8, "moe_intermediate_size": 16},
    "qwen3_next": {
        **GROUPED,
        **EXPERTS,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "phi": SHAPE,
    "phi3": GROUPED,
    "phimoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "cohere": GROUPED,
    "cohere2": {**GROUPED, "sliding_window": 4},
    "granite": {**GROUPED, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
    "granitemoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "stablelm": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, "sliding_window": 4},
    "olmoe": {**GROUPED, **EXPERTS},
    "smollm3": GROUPED,
    "starcoder2": {**GROUPED, "sliding_window": 4},
    "nemotron": GROUPED,
    "helium": {**GROUPED, "head_dim": 8},
    "glm": {**GROUPED, "head_dim": 8},
    "glm4": {**GROUPED, "head_dim": 8},
    "persimmon": SHAPE,
    "modernbert-decoder": {**SHAPE, "local_attention": 4},
    "ministral": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "gpt_oss": {**GROUPED, "head_dim": 8, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **SHAPE,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "mamba": {"hidden_size": 24, "num_hidden_layers": 6, "state_size": 4},
    "falcon_mamba": {"hidden_size": 24, "num_hidden_layers": 6, "state_size": 4},
    "mamba2": {
        "hidden_size": 48,
        "num_hidden_layers": 6,
        "state_size": 8,
        "num_heads": 6,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "jamba": {
        **GROUPED,
        **EXPERTS,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "bamba": {**GROUPED, **MAMBA2_MIXER, "attn_layer_indices": [1, 3]},
    "zamba2": {
        **GROUPED,
        "attention_hidden_size": 64,
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "use_mem_eff_path": False,
    },
    "granitemoehybrid": {
        **GROUPED,
        **MAMBA2_MIXER,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"] * 2,
    },
    "falcon_h1": {**GROUPED, **MAMBA2_MIXER, "mamba_d_ssm": 64, "head_dim": 8},
    "nemotron_h": {
        **GROUPED,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "n_routed_experts": 4,
    },
    "olmo_hybrid": GROUPED,
    "lfm2": {**GROUPED, "block_multiple_of": 8, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {
        **GROUPED,
        **EXPERTS,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"] * 2,
    },
}
"""Family → what its tiny configuration sets beyond :data:`TOKENS`."""

REFUSED: dict[str, dict[str, Any]] = {
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32},
    "recurrent_gemma": {**GROUPED, "head_dim": 8, "lru_width": 32, "attention_window_size": 4},
    "bart": {"d_model": 32, "decoder_layers": 4, "decoder_ffn_dim": 48, "decoder_attention_heads": 4},
    "bert": SHAPE,
    "xlnet": {"d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48},
    "xlstm": {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 4},
    "gemma3n_text": {
        **GROUPED,
        "head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        **GROUPED,
        "head_dim": 8,
        "global_head_dim": 8,
        "num_global_key_value_heads": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
"""Families that are no component, each with a model that transformers can build."""


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A fresh configuration of ``family``."""
    settings = {**TOKENS, **(FAMILIES.get(family) or REFUSED[family]), **changes}
    return AutoConfig.for_model(family, **settings)


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of ``family`` in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()
