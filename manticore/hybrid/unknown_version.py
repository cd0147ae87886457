"""What an unknown version of transformers has to show before anything is built with it: text with a cache as without.

A later version may hand over its cache under another name or in another form. Nothing fails then; a hybrid only
reads no cache and writes other text.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from manticore.components.quiet import quiet_loading
from manticore.components.runner import Runner
from manticore.components.transformers_version import END, FIRST, is_known
from manticore.errors import ManticoreError, in_brief
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM, build
from manticore.hybrid.verdicts import Verdict
from manticore.seeding import derive_seed

_ROWS, _TOKENS, _NEW = 61, 5, 6
_ROUNDING = 1e-4
_SIZE: dict[str, Any] = {"vocab_size": _ROWS, "hidden_size": 16, "num_hidden_layers": 2}
_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def check_transformers() -> None:
    """Refuse a version of transformers that is unknown and with which decoding goes wrong.

    Raises:
        ManticoreError: a tiny hybrid gives other logits with a cache than without, or cannot generate at all.
    """
    if is_known():
        return
    verdict = Verdict("transformers", {"transformers": transformers.__version__})
    if verdict.is_known():
        return
    known = f"transformers>={FIRST[0]}.{FIRST[1]},<{END[0]}.{END[1]}"
    try:
        with quiet_loading(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "unknown version"))
            error = _error_of_decoding()
    except Exception as fault:
        # a version that nobody has seen may fail in any way
        why = f"a hybrid cannot generate with it ({type(fault).__name__}: {in_brief(fault, 160)})"
    else:
        if error <= _ROUNDING:
            verdict.keep()
            return
        why = f"with it a hybrid decodes otherwise with a cache than without (by {error:.2g} of the largest logit)"
    raise ManticoreError(
        f"transformers {transformers.__version__} is unknown here, and {why}. Fix: pip install '{known}'"
    )


def _error_of_decoding() -> float:
    """The largest difference of any logit between decoding with and without a cache, relative to the largest."""
    components: list[PreTrainedModel] = [
        LlamaForCausalLM(LlamaConfig(**_SIZE, **_IDS, num_attention_heads=2, intermediate_size=24)).float().eval(),
        MambaForCausalLM(MambaConfig(**_SIZE, **_IDS, state_size=4)).float().eval(),
    ]
    configurations: dict[str, Any] = {f"component_{k}": each.config for k, each in enumerate(components)}
    config = ManticoreConfig(
        num_components=2,
        num_blocks=2,
        layer_outputs=[Runner(component).tuple_sizes for component in components],
        vocab_size=_ROWS,
        dtype=torch.float32,
        pad_token_id=0,
        **configurations,
    )
    hybrid = build(config, components).eval()
    input_ids = torch.randint(1, _ROWS, (2, _TOKENS))
    return max(_error(hybrid, input_ids, left) for left in (0, 2))


def _error(hybrid: ManticoreForCausalLM, input_ids: torch.Tensor, left: int) -> float:
    mask = torch.ones_like(input_ids)
    mask[0, :left] = 0
    how: dict[str, Any] = {"max_new_tokens": _NEW, "do_sample": False, "output_logits": True}
    logits = []
    for use_cache in (True, False):
        written: Any = hybrid.generate(
            input_ids, attention_mask=mask, use_cache=use_cache, return_dict_in_generate=True, **how
        )
        logits.append(torch.stack(written.logits))
    return float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())
