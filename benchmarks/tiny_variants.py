"""Tiny configurations beyond one per family: multipliers, windows, ropes, flags, as real checkpoints set them.

Windows are shorter, and positions after which a rotary embedding switches fewer, than the tokens that benchmarks run.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import tiny_model
from transformers import PreTrainedModel

TRAINED = 6
"""Positions that a scaled rotary embedding was trained on, fewer than any sequence here has."""

_TURNS = {"rope_theta": 10000.0}
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": TRAINED}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": TRAINED,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # multipliers and soft caps
    "granite, all multipliers": (
        "granite",
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "granitemoe, all multipliers": (
        "granitemoe",
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
        },
    ),
    "granitemoehybrid, all multipliers": (
        "granitemoehybrid",
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "cohere, logit_scale": ("cohere", {"logit_scale": 0.25}),
    "cohere2, logit_scale": ("cohere2", {"logit_scale": 0.25}),
    "gemma2, soft caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text, final soft cap": ("gemma3_text", {"final_logit_softcapping": 1.5}),
    "falcon_h1, all multipliers": (
        "falcon_h1",
        {
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "mlp_multipliers": [0.5, 2.0],
            "key_multiplier": 0.5,
            "attention_out_multiplier": 0.7,
            "attention_in_multiplier": 1.3,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.8,
        },
    ),
    "xglm, scaled embeddings": ("xglm", {"scale_embedding": True}),
    "biogpt, plain embeddings": ("biogpt", {"scale_embedding": False}),
    # windows
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, window in every layer": ("qwen2", {"max_window_layers": 0}),
    "qwen3, window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "phi3, window": ("phi3", {"sliding_window": 4}),
    "mixtral, window": ("mixtral", {"sliding_window": 4}),
    "gpt_neo, local layers only": ("gpt_neo", {"attention_types": [[["local"], 4]]}),
    "gemma3_text, window pattern of 2": ("gemma3_text", {"sliding_window_pattern": 2}),
    "smollm3, window": ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
    "gpt_oss, full attention": ("gpt_oss", {"layer_types": ["full_attention"] * 4}),
    # rotary embeddings
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **_TURNS}}),
    "llama, dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **_TURNS}},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": TRAINED,
                **_TURNS,
            }
        },
    ),
    "llama, llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", **_LLAMA3, **_TURNS}}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": TRAINED, "rope_parameters": {**_LONG, **_TURNS}},
    ),
    "phimoe, longrope": (
        "phimoe",
        {
            "original_max_position_embeddings": TRAINED,
            "rope_parameters": {**_LONG, "short_mscale": 1.1, "long_mscale": 1.2, **_TURNS},
        },
    ),
    "stablelm, partial": ("stablelm", {"partial_rotary_factor": 0.5}),
    "gpt_neox, every feature turns": ("gpt_neox", {"rotary_pct": 1.0}),
    "glm4, partial": ("glm4", {"partial_rotary_factor": 0.25}),
    "gemma3_text, two ropes": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    "smollm3, layers without positions": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "deepseek_v3, yarn": (
        "deepseek_v3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": TRAINED,
                **_TURNS,
            }
        },
    ),
    # biases, norms, residuals, ties
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "gemma, untied": ("gemma", {"tie_word_embeddings": False}),
    "gpt_neox, sequential residual, no attention bias": (
        "gpt_neox",
        {"use_parallel_residual": False, "attention_bias": False},
    ),
    "falcon, new decoder": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "parallel_attn": True},
    ),
    "falcon, sequential": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "opt, no final norm": ("opt", {"_remove_final_layer_norm": True, "enable_bias": False}),
    "bloom, residual after norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "mpt, no alibi": ("mpt", {"attn_config": {"alibi": False}}),
    "stablelm, QK norm, parallel residual": (
        "stablelm",
        {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    ),
    "phi, QK norm": ("phi", {"qk_layernorm": True}),
    "persimmon, no QK norm": ("persimmon", {"qk_layernorm": False}),
    "cohere, QK norm": ("cohere", {"use_qk_norm": True}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.05}),
    "gpt_bigcode, heads apart": ("gpt_bigcode", {"multi_query": False}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "starcoder2, no biases": ("starcoder2", {"use_bias": False}),
    # experts
    "mixtral, router logits": ("mixtral", {"output_router_logits": True}),
    "olmoe, router logits, normed": ("olmoe", {"output_router_logits": True, "norm_topk_prob": True}),
    "qwen2_moe, dense between": (
        "qwen2_moe",
        {"decoder_sparse_step": 2, "mlp_only_layers": [3], "output_router_logits": True},
    ),
    "qwen3_moe, normed": ("qwen3_moe", {"norm_topk_prob": True, "output_router_logits": True}),
    "granitemoe, router logits": ("granitemoe", {"output_router_logits": True}),
    "gpt_oss, router logits": ("gpt_oss", {"output_router_logits": True}),
    "deepseek_v3, groups of experts": (
        "deepseek_v3",
        {"n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "q_lora_rank": None},
    ),
    "jamba, router logits": ("jamba", {"output_router_logits": True}),
    # recurrent layers
    "mamba, biases": ("mamba", {"use_bias": True}),
    "mamba, no convolution bias": ("mamba", {"use_conv_bias": False}),
    "mamba, residual in its own precision": ("mamba", {"residual_in_fp32": False}),
    "mamba, rescaled start": ("mamba", {"rescale_prenorm_residual": True}),
    "mamba, untied": ("mamba", {"tie_word_embeddings": False}),
    "falcon_mamba, biases": ("falcon_mamba", {"use_bias": True}),
    "falcon_mamba, rescaled start": ("falcon_mamba", {"rescale_prenorm_residual": True}),
    "mamba2, biases": ("mamba2", {"use_bias": True}),
    "mamba2, rescaled start": ("mamba2", {"rescale_prenorm_residual": True}),
    "mamba2, tied, groups": ("mamba2", {"tie_word_embeddings": True, "n_groups": 2, "norm_before_gate": False}),
    "jamba, biases": ("jamba", {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    "bamba, biases": ("bamba", {"mamba_proj_bias": True, "attention_bias": True}),
    "falcon_h1, biases": (
        "falcon_h1",
        {"mamba_proj_bias": True, "projectors_bias": True, "attention_bias": True, "mlp_bias": True},
    ),
    "falcon_h1, norm in the mixer": ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    "granitemoehybrid, biases": ("granitemoehybrid", {"mamba_proj_bias": True, "attention_bias": True}),
    "granitemoehybrid, no positions": ("granitemoehybrid", {"position_embedding_type": "nope", "num_local_experts": 0}),
    "nemotron_h, biases, rescaled start": (
        "nemotron_h",
        {"use_bias": True, "mamba_proj_bias": True, "mlp_bias": True, "rescale_prenorm_residual": True},
    ),
    "zamba2, biases": ("zamba2", {"add_bias_linear": True, "use_mem_rope": True}),
    "lfm2, convolution bias": ("lfm2", {"conv_bias": True}),
    "lfm2_moe, convolution bias": ("lfm2_moe", {"conv_bias": True}),
    "qwen3_next, dense between": ("qwen3_next", {"mlp_only_layers": [1], "norm_topk_prob": True}),
    "olmo_hybrid, no negative eigenvalues": ("olmo_hybrid", {"linear_allow_neg_eigval": False}),
}
"""Name → family, and what its configuration sets beyond that family's tiny one."""

REFUSED_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2, bounded time steps": ("mamba2", {"time_step_limit": (0.01, 0.1)}),
}
"""Those that are no component, likewise."""


def variant(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a variant, or of a family by its name, in evaluation mode; no bias is zero."""
    family, changes = {**VARIANTS, **REFUSED_VARIANTS}.get(name, (name, {}))
    model = tiny_model(family, seed=seed, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            # what families start as zeros or ones would hide what it does
            if parameter.dim() == 1 and bool((parameter == parameter[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
