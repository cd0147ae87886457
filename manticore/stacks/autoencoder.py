"""The auto-encoder of MAD's compression task: a stack reads a sequence into one vector, a decoder writes it back.

    z = pool(stack(x_1 … x_T));   logits_i = W norm(f2(f1(z + p_i))),   f(x) = gelu(W norm(x) + b)

The stack is embeddings and layers without a last norm, so z is pooled from the raw stream. p_i are fixed sines and
cosines of position i; the decoder sees nothing but z, and no residual goes around it (Poli et al., "Mechanistic
Design", 2024, and its public code).

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, MaskedLMOutput

from manticore.components.extra_arguments import loss_arguments
from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackModel, StackPreTrainedModel, make_norm

_DECODER_LAYERS = 2
_LONGEST_WAVE = 10000.0


class StackForAutoEncoding(StackPreTrainedModel):
    """A stack as encoder, and a decoder that writes all tokens of the sequence at once.

    Saved and loaded by its own class: it is not a language model, so no ``Auto`` class leads to it.
    """

    backbone = "autoencoder"
    """What tasks ask for that are not made for causal models."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        if config.hidden_size % 2 or config.hidden_size < 4:
            raise ManticoreError(
                f"auto-encoder: hidden_size is {config.hidden_size} (expected an even number, 4 or more, "
                "for sines and cosines). Fix: another width"
            )
        self.model = StackModel(_encoder_config(config), last_norm=False)
        self.cls = nn.Parameter(torch.empty(config.hidden_size)) if config.pooling == "cls" else None
        self.decoder_norms = nn.ModuleList(make_norm(config) for _ in range(_DECODER_LAYERS))
        self.decoder_layers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(_DECODER_LAYERS)
        )
        # not `norm`: the stack inside has one, and transformers would load both from either
        self.head_norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    @property
    def positions(self) -> int:
        """The most tokens of one sequence."""
        return self.config.max_position_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Logits of every token of the sequence that was read.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]`` of ones, or None: sequences of a batch have one length.
            labels: ``[B, T]``, not shifted; -100 is ignored.
            return_dict: False returns a tuple.
            kwargs: ``num_items_in_batch``, the labels that a step of several batches has in all; what tools add that
                changes nothing.

        Raises:
            ManticoreError: more tokens than positions, padding, or unknown arguments.
        """
        for_loss = loss_arguments(type(self).forward, kwargs, packed=False)
        tokens = input_ids.shape[1]
        if tokens > self.positions:
            raise ManticoreError(
                f"auto-encoder: a sequence of {tokens} tokens (expected at most {self.positions}, "
                "max_position_embeddings). Fix: a stack with more positions"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ManticoreError("auto-encoder: padded sequences cannot be read. Fix: sequences of one length")
        pooled = self._encode(input_ids)
        hidden = pooled[:, None] + positions(tokens, self.config.hidden_size, pooled)
        for norm, layer in zip(self.decoder_norms, self.decoder_layers):
            hidden = F.gelu(layer(norm(hidden)))
        logits = self.lm_head(self.head_norm(hidden))
        loss = None
        if labels is not None:
            count = for_loss.get("num_items_in_batch")
            summed = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
            loss = summed / (count if count is not None else (labels != -100).sum().clamp_min(1))
        output = MaskedLMOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _encode(self, input_ids: Tensor) -> Tensor:
        """One vector ``[B, D]`` per sequence."""
        embedded = self.model.embed_tokens(input_ids)
        if self.cls is not None:
            embedded = torch.cat([embedded, self.cls.expand(len(embedded), 1, -1)], 1)
        body = cast(BaseModelOutputWithPast, self.model(inputs_embeds=embedded, use_cache=False))
        hidden = body.last_hidden_state
        assert hidden is not None
        return hidden.mean(1) if self.config.pooling == "mean" else hidden[:, -1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load an auto-encoder; see transformers for the arguments.

        Raises:
            ManticoreError: it was saved when the stack still had a last norm, without which it computes something else.
        """
        asked = kwargs.pop("output_loading_info", False)
        # transformers' annotation knows the model alone
        found: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if any(name.startswith("model.norm.") for name in found[1]["unexpected_keys"]):
            raise ManticoreError(
                f"auto-encoder {pretrained_model_name_or_path}: was saved with a norm after the stack's last layer, "
                "which auto-encoders no longer have. Fix: train it again"
            )
        return found if asked else found[0]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.cls is not None:
            init.normal_(self.cls)


def _encoder_config(config: StackConfig) -> StackConfig:
    """The same configuration; with a learned token at the end the layers have a position for it."""
    if config.pooling != "cls":
        return config
    longer = copy.deepcopy(config)
    longer.max_position_embeddings += 1
    return longer


def positions(tokens: int, width: int, like: Tensor) -> Tensor:
    """Fixed positions ``[T, D]`` in dtype and device of ``like``: sines in the first half, cosines in the second."""
    half = width // 2
    places = torch.arange(tokens, dtype=torch.float32, device=like.device)
    steps = torch.arange(half, dtype=torch.float32, device=like.device) / (half - 1)
    angles = places[:, None] * _LONGEST_WAVE**-steps
    return torch.cat([angles.sin(), angles.cos()], -1).to(like.dtype)
