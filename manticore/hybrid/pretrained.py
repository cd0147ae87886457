"""The hybrid: components cut into blocks that run side by side, joined by projectors and mixture weights.

Shapes: B batch, T tokens, D width, V vocabulary, K components, N blocks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.adapters import AdapterGuard
from manticore.components.cache_argument import CACHE_NAMES
from manticore.components.generation_settings import SPECIAL
from manticore.components.loaded_weights import keeping_loaded_weights
from manticore.components.loading import align_memory, load_tokenizer
from manticore.components.pruning import prune_component
from manticore.components.resizing import resize_vocabulary
from manticore.components.runner import Runner
from manticore.components.transformers_version import is_known
from manticore.components.vocabulary import with_vocabulary
from manticore.errors import ManticoreError, in_brief
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.mixing import Mixing, check_weights
from manticore.hybrid.outputs import Output
from manticore.hybrid.path import PathMixing
from manticore.hybrid.placement import forget_addresses, hold_mixture
from manticore.hybrid.released import fresh_tables
from manticore.hybrid.shared_weights import ties
from manticore.making import checked, make
from manticore.option_types import Count
from manticore.projectors.projector import Projector

logger = logging.getLogger(__name__)

_WHERE_FILES_ARE = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


class ManticorePreTrainedModel(AdapterGuard):
    """What all hybrids are: components, mixing, and the way through the blocks; what reads the last features differs.

    Components are whole models of transformers and direct attributes (``component_0`` …), so that names, ties and
    sharding rules of their families hold.

    Args:
        config: the hybrid's configuration.
        components: K loaded models to use as they are; None builds them from their configurations.
    """

    config_class = ManticoreConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True
    _skip_keys_device_placement = [*CACHE_NAMES, "layer_past"]  # noqa: RUF012
    # probabilities in half precision would no longer sum to 1
    _keep_in_fp32_modules_strict = {"mixing.weights", "mixing.routing"}  # noqa: RUF012

    keeps_lm_heads = True
    """Whether the components' own heads are read; where they are not, they are left out."""

    def __init__(self, config: ManticoreConfig, components: Sequence[PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        kept = set(range(config.num_components)) if config.path is None else set(config.path)
        self.runners: list[Runner | None] = []
        self._boundaries = config.boundaries
        for k, component_config in enumerate(config.components):
            if k not in kept:
                setattr(self, f"component_{k}", None)
                self.runners.append(None)
                continue
            component = self._built(k, component_config) if components is None else components[k]
            setattr(self, f"component_{k}", component)
            runner = Runner(component, config.layer_outputs[k] if config.layer_outputs else None)
            self.runners.append(runner)
            if config.path is not None or not self.keeps_lm_heads:
                prune_component(
                    component,
                    runner.layers,
                    keep=self._kept_layers(k),
                    embeddings=config.path is None or config.path[0] == k,
                    head=self.keeps_lm_heads and (config.path is None or config.path[config.head_block] == k),
                )
        limits = {k: runner.positions for k, runner in enumerate(self.runners) if runner is not None}
        self._limits = {k: limit for k, limit in limits.items() if limit is not None}
        self.mixing: Mixing = make("mixing", config.mixing, config) if config.path is None else PathMixing(config)
        self.output = self._make_output()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._add_heads()
        # what saving knows of ties
        self._tied_weights_keys = self.get_expanded_tied_weights_keys()
        self.post_init()

    def _built(self, k: int, config: Any) -> PreTrainedModel:
        try:
            return AutoModelForCausalLM.from_config(config)
        except (ImportError, ValueError) as error:
            # such as an implementation of attention that the family has not, or that is not installed
            raise ManticoreError(
                f"{self._named(k)} cannot be built: {in_brief(error)} Fix: choose for each component, such as "
                f'attn_implementation={{"component_{k}": "eager"}}'
            ) from error

    def set_attn_implementation(
        self, attn_implementation: str | dict[Any, Any], allow_all_kernels: bool = False
    ) -> None:
        """Run attention by another implementation, one for all components that have attention, or by component.

        Args:
            attn_implementation: a name of transformers, or names by ``component_k``.
            allow_all_kernels: see transformers.

        Raises:
            ManticoreError: a component has no such implementation; then all stay as they were.
        """
        wanted: Any = self.config.per_component(attn_implementation, "attn_implementation")
        configs = [self.config, *self.config.components]
        before = [config._attn_implementation for config in configs]
        try:
            for k, runner in enumerate(self.runners):
                name = wanted.get(f"component_{k}", before[k + 1])
                if runner is not None and name != before[k + 1] and not runner.model._can_set_attn_implementation():
                    # transformers would say so in a warning, and go on
                    raise ValueError(f"{self._named(k)} has {before[k + 1]} attention only.")
            super().set_attn_implementation(wanted, allow_all_kernels)
        except (ImportError, ValueError) as error:
            for config, name in zip(configs, before):
                config._attn_implementation_internal = name
            raise ManticoreError(
                f"set_attn_implementation: {in_brief(error)} Fix: choose for each component, such as "
                '{"component_0": "eager"}'
            ) from error

    def _make_output(self) -> Output:
        """What makes one prediction of those of the components."""
        if self.config.output != "logits" and not self.keeps_lm_heads:
            raise ManticoreError(
                f"classifier: this hybrid's output is {self.config.output!r}, of predictions of the next token, and "
                "heads for classes make none. Fix: combine with output logits"
            )
        widths = [0 if runner is None or not self.keeps_lm_heads else runner.head_width for runner in self.runners]
        made: Output = make("output", self.config.output, self.config, widths)
        return made

    def _add_heads(self) -> None:
        """What a kind of hybrid adds to components and mixing, before weights are initialised."""

    def _kept_layers(self, k: int) -> list[int]:
        """Layers of component k that the hybrid's path goes through."""
        edges = self._boundaries[k]
        path = self.config.path if self.config.path is not None else [k] * self.config.num_blocks
        return [i for n, m in enumerate(path) if m == k for i in range(edges[n], edges[n + 1])]

    def _check_positions(self, tokens: int, cached: int, position_ids: Tensor | None) -> None:
        """Refuse more tokens than one of the components in use has positions for.

        After a cached prompt given positions count instead of the length: padding takes none. They are read only where
        the length alone does not settle it, since reading waits for the device.
        """
        for k in self.mixing.route().used:
            limit = self._limits.get(k)
            if limit is None or cached + tokens <= limit:
                continue
            if tokens > limit or position_ids is None or int(position_ids.max()) >= limit:
                part = f" ({cached} of them cached)" if cached else ""
                raise ManticoreError(
                    f"forward: {cached + tokens} tokens{part}, but {self._named(k)} has positions for {limit}. "
                    "Fix: shorter sequences, or a component without a table of positions"
                )

    def _named(self, k: int) -> str:
        return f"component {k} ({self.config.components[k].model_type})"

    def _runner(self, k: int) -> Runner:
        runner = self.runners[k]
        if runner is None:
            raise ManticoreError(
                f"component {k} was dropped when this hybrid was discretized to {self.config.path}. "
                "Fix: use the supernet it was made from"
            )
        return runner

    def component(self, k: int) -> PreTrainedModel:
        """Component k, the whole model.

        Raises:
            ManticoreError: it was dropped.
        """
        return self._runner(k).model

    @property
    def mixture_weights(self) -> Tensor:
        """``[N, K]``: the share of each component in each block; rows on the simplex, no gradient."""
        return self.mixing.mixture_weights()

    def set_mixture_weights(self, weights: Tensor | Sequence[Sequence[float]] | Sequence[int]) -> None:
        """Set ``[N, K]`` weights, or a vertex given as N component indices.

        Raises:
            ManticoreError: wrong shape, rows that do not sum to 1, or weights that a discretized hybrid cannot take.
        """
        checked = check_weights(weights, self.config.num_blocks, self.config.num_components)
        self.mixing.set_mixture_weights(checked)
        if isinstance(self, ComponentGenerationMixin):
            self.update_ends()

    @property
    def is_discretized(self) -> bool:
        """Whether each block holds one component only."""
        return self.config.path is not None

    def with_vocabulary(self, vocab_size: int, *, seed: int = 0) -> ManticorePreTrainedModel:
        """Fresh embeddings and heads, in place, for a task with its own vocabulary.

        Projectors between embeddings are reset, since what they translated is gone. The tokenizer, its special tokens
        and what the components generated by are let go.

        Args:
            vocab_size: V of the task.
            seed: of the fresh embeddings and heads.
        """
        models = [None if runner is None else runner.model for runner in self.runners]
        if self.config.released:
            fresh_tables(models, vocab_size, seed)
        else:
            for model in models:
                if model is not None:
                    with_vocabulary(model, vocab_size, seed=seed)
        self.share_weights()
        for translation in self.mixing.translations():
            if 0 in (translation.source[1], translation.target[1]):
                translation.projector.reset_identity()
        self.config.vocab_size = vocab_size
        self.config.tokenizer_component = self.config.reembedded = None
        self.tokenizer = self.config.generation = None
        for name in SPECIAL:
            setattr(self.config, name, None)
        if isinstance(self, ComponentGenerationMixin):
            self.generation_config = GenerationConfig()
        return self

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Name of a weight → that of the one it is: what components have in common, beside the ties within each.

        Args:
            all_submodels: those within components too.
        """
        if all_submodels:
            found: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels=True)
            return found
        config = self.config
        kept = {k: runner.model for k, runner in enumerate(self.runners) if runner is not None}
        spans = config.path is not None and config.tie_word_embeddings
        ends = (config.path[0], config.path[config.head_block]) if spans else None
        return ties(kept, config.shared_weights, ends)

    def _adjust_bias(self, output_embeddings: Any, input_embeddings: Any) -> None:
        """Fit the bias of a head to the table that it is tied to.

        transformers does so with whatever module has a tied weight; GPT-2's maps keep theirs the other way round.
        """
        if not isinstance(output_embeddings, Conv1D):
            super()._adjust_bias(output_embeddings, input_embeddings)

    def share_weights(self) -> None:
        """Make one tensor of each weight that the configuration says components have in common, in place."""
        if self.get_expanded_tied_weights_keys():
            self.tie_weights()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings that are read: of a path those of its first component.

        A supernet reads several; this is the first of them, ``component(k)`` has the others.
        """
        return self.component(self.mixing.route().embedded[0]).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refused: K components have K embeddings."""
        raise ManticoreError("set_input_embeddings: a hybrid has one per component. Fix: use with_vocabulary")

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Refused: K components have K heads."""
        raise ManticoreError("set_output_embeddings: a hybrid has one per component. Fix: use with_vocabulary")

    def get_decoder(self) -> nn.Module:
        """Refused: what is below the heads is not a module of its own, and ``last_hidden_state`` has several widths.

        Raises:
            ManticoreError: always.
        """
        raise ManticoreError(
            "get_decoder: a hybrid has no body apart from its components. Fix: ask for logits, or for the hidden "
            "states of a discretized hybrid (output_hidden_states=True)"
        )

    def set_decoder(self, decoder: nn.Module) -> None:
        """Refused, for the same reason.

        Raises:
            ManticoreError: always.
        """
        raise ManticoreError("set_decoder: a hybrid's body is its components. Fix: combine other components")

    @checked("resize_token_embeddings")
    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: Count | None = None, pad_to_multiple_of: Count | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Give every component's embeddings and head more rows (for tokens that were added), or fewer, in place.

        Projectors stay. A tokenizer with more tokens than rows are left is let go.

        Args:
            new_num_tokens: rows afterwards; None keeps them.
            pad_to_multiple_of: round that up to a multiple.
            mean_resizing: draw new rows around the mean of the old ones; else as each family draws its first weights.

        Returns:
            As :meth:`get_input_embeddings`.

        Raises:
            ManticoreError: a number below 1.
        """
        rows = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        rows = -(-rows // multiple) * multiple
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            for runner in self.runners:
                if runner is not None:
                    resize_vocabulary(runner.model, self.config.vocab_size, rows, mean_resizing=mean_resizing)
            self.config.vocab_size = rows
            self.share_weights()
            if self.tokenizer is not None and len(self.tokenizer) > rows:
                logger.warning("the tokenizer has %d tokens, the hybrid now %d: let go", len(self.tokenizer), rows)
                self.tokenizer = None
        return self.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Only what the hybrid adds; components initialise themselves."""
        if isinstance(module, Projector | Output):
            module.reset_parameters()
        elif isinstance(module, Mixing) and not all(
            # what transformers puts on a tensor that it has loaded
            getattr(parameter, "_is_hf_initialized", False)
            for parameter in module.mixture_parameters()
        ):
            module.reset_mixture()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: for custom code transformers skips initialisers of modules without weights of their own.

        Some families fill their derived tables there, which would then hold whatever was in memory.
        """
        return False

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Save weights, configuration and, where there is one, the tokenizer."""
        if isinstance(self, ComponentGenerationMixin):
            # weights that were trained or copied in place have told nobody
            self.update_ends()
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """The tokenizer goes to the hub with the weights, also where ``save_pretrained`` uploads before it returns."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A hybrid with fresh weights, for ``from_config`` of the ``Auto`` classes."""
        made = super()._from_config(config, **kwargs)
        if isinstance(made, ComponentGenerationMixin):
            made.follow_components()
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a hybrid and the tokenizer beside it; see transformers for the arguments."""
        if not is_known():
            # here, since it builds a hybrid itself
            from manticore.hybrid.unknown_version import check_transformers

            check_transformers()
        # a pickle can run code when it is read
        with keeping_loaded_weights():
            found: Any = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                **{**kwargs, "use_safetensors": True, "output_loading_info": True},
            )
        hybrid, info = found
        loaded = found if kwargs.get("output_loading_info") else hybrid
        lost = sorted(name for name in info["missing_keys"] if name.startswith("output."))
        if lost:
            raise ManticoreError(
                f"{pretrained_model_name_or_path}: its output is {hybrid.config.output!r}, but the weights hold no "
                f'{lost[0]}. Fix: the folder as save_pretrained wrote it, or output="probabilities" in from_pretrained'
            )
        align_memory(hybrid)
        hold_mixture(hybrid.mixing)
        forget_addresses(hybrid)
        # transformers lets all that it loads train; probabilities that do would leave the simplex, and run every branch
        for parameter in hybrid.mixing.mixture_parameters():
            parameter.requires_grad_(False)
        if isinstance(hybrid, ComponentGenerationMixin):
            hybrid.follow_components()
        where = {name: kwargs[name] for name in _WHERE_FILES_ARE if kwargs.get(name) is not None}
        tokenizer = load_tokenizer(pretrained_model_name_or_path, **where)
        rows = hybrid.config.vocab_size
        if tokenizer is not None and len(tokenizer) > rows:
            # left there by a hybrid that was saved to the same folder before
            logger.warning(
                "the tokenizer beside the hybrid has %d tokens, the hybrid %d: left out", len(tokenizer), rows
            )
            tokenizer = None
        hybrid.tokenizer = tokenizer
        return loaded
