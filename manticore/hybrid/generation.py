"""What a hybrid generates by: its components' ends of text, and the other settings of whose tokenizer it speaks.

While it is soft a hybrid ends where any of the components in use ends. At the vertex of one component it generates as
that component does. What a person sets in ``generation_config`` stays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.generation import OwnCacheGenerationMixin
from manticore.components.generation_settings import SPECIAL, Settings, as_ends, ends_of
from manticore.errors import ManticoreError

_STEPS = (
    *("prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "generate", "_reorder_cache"),
    "_prepare_position_ids_for_generation",
)
_KNOWN_STEPS = {
    # only the last position's logits are asked for
    *("bamba", "falcon_h1", "nemotron_h", "zamba", "zamba2"),
    # the mask is left out after the prompt, as the runner does
    *("mamba", "mamba2", "falcon_mamba"),
    # the cache is filled anew where the rotary embedding changes
    *("phi3", "phimoe", "phi4_multimodal"),
    # segments of tokens, which no text has
    "ctrl",
    "manticore_stack",
}
"""Families that take steps of their own in ``generate``, each followed here or without consequence for a text."""


def _unknown_steps(model: PreTrainedModel) -> str | None:
    # a twin takes the steps of its parent's family
    model = getattr(model, "parent", model)
    if model.config.model_type in _KNOWN_STEPS:
        return None
    kind = type(model)
    return next(
        (name for name in _STEPS if getattr(kind, name, None) is not getattr(GenerationMixin, name, None)), None
    )


class ComponentGenerationMixin(OwnCacheGenerationMixin):
    """``generate`` by what ``config.generation`` says of the components."""

    # transformers reads this annotation, so it has to be one that can be read where transformers is
    config: Any
    mixing: Any
    runners: list[Any]
    _generation_config: GenerationConfig | None = None
    _follows = False
    """Whether the ends are kept up to date: not before mixture weights hold what they were loaded with."""
    _ends: int | list[int] | None = None
    """The ends as they were written last; where something else is found, a person has set it."""

    @property
    def generation_config(self) -> Any:
        """The settings of the component whose tokenizer was kept, with the ends that the mixture weights ask for.

        At the vertex of another component ``generate`` goes by that one's settings, except what was changed here.
        """
        self.update_ends()
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._generation_config = value

    def adopt_settings(
        self, settings: Sequence[Settings], owner: int, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Take over what the components generate by.

        Args:
            settings: of each component.
            owner: the one whose settings hold, apart from ends.
            tokenizer: the hybrid's; its ids go before those that all components agree on.
        """
        self.config.generation = [dict(each) for each in settings]
        self.config.generation_component = owner
        kept = GenerationConfig(**{name: value for name, value in settings[owner].items() if name not in SPECIAL})
        for name in SPECIAL:
            said = {each[name] for each in settings if name in each} if name != "eos_token_id" else set()
            agreed = said.pop() if len(said) == 1 else None
            known = getattr(tokenizer, name, None)
            setattr(kept, name, agreed if known is None else known)
            setattr(self.config, name, getattr(kept, name))
        # a temperature without do_sample, as many checkpoints have it, is saved only where nobody has set anything
        kept._original_object_hash = hash(kept)
        self._generation_config = kept
        self._follows = True
        # a tokenizer's end counts where no component names one
        self._ends = kept.eos_token_id if any("eos_token_id" in each for each in settings) else None
        self.update_ends()

    def follow_components(self) -> None:
        """Begin to keep the ends up to date, of a hybrid that was loaded or built from a configuration."""
        self._follows = self.config.generation is not None
        self._ends = self._ends_now() if self._follows else None

    def adopt_generation(self, other: ComponentGenerationMixin) -> None:
        """Generate by what another hybrid of these components does, each with the ends of its own weights."""
        self._generation_config = copy.deepcopy(other.generation_config)
        self._follows, self._ends = other._follows, other._ends
        self.update_ends()

    def update_ends(self) -> None:
        """Write the ends that the mixture weights ask for into both configurations, unless a person has set others."""
        if not self._follows or self.config.generation is None:
            return
        ends, before = self._ends_now(), self._ends
        if ends == before:
            return
        self._ends = ends
        kept = self._generation_config
        if kept is not None and kept.eos_token_id == before:
            as_given = kept._original_object_hash == hash(kept)
            kept.eos_token_id = ends
            if as_given:
                kept._original_object_hash = hash(kept)
        if self.config.eos_token_id == before:
            self.config.eos_token_id = ends

    def _ends_now(self) -> int | list[int] | None:
        settings, rows = self.config.generation or [], self.config.vocab_size
        given = [ends_of(settings[k].get("eos_token_id")) for k in self.mixing.route().used]
        return as_ends(end for ends in given for end in ends if end < rows)

    @contextmanager
    def _as_its_component(self) -> Iterator[None]:
        """For a while the settings of the one component in use, where there is one."""
        kept, settings, used = self.generation_config, self.config.generation, self.mixing.route().used
        if kept is None or settings is None or not self._follows or len(used) > 1:
            yield
            return
        theirs, ours = settings[used[0]], dict(settings[self.config.generation_component])
        for name in ("bos_token_id", "pad_token_id"):
            ours[name] = getattr(self.config, name)
        effective = copy.deepcopy(kept)
        for name in (ours.keys() | theirs.keys()) - {"eos_token_id"}:
            if getattr(kept, name) == ours.get(name):
                setattr(effective, name, theirs.get(name))
        self._generation_config = effective
        try:
            yield
        finally:
            self._generation_config = kept

    def generation_in_use(self) -> GenerationConfig | None:
        """A copy of what ``generate`` goes by now: at the vertex of one component that one's settings."""
        with self._as_its_component():
            return copy.deepcopy(self._generation_config)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write on; see transformers for the arguments.

        Raises:
            ManticoreError: a component in use takes steps of its own in ``generate`` that are not known here.
        """
        for k in self.mixing.route().used:
            if (name := _unknown_steps(self.runners[k].model)) is not None:
                family = self.config.components[k].model_type
                raise ManticoreError(
                    f"generate: component {k} ({family}) has a {name} of its own, which a hybrid does not follow. "
                    "Fix: write with the component alone, hybrid.component(k).generate"
                )
        with self._as_its_component():
            return super().generate(*args, **kwargs)  # type: ignore[misc]
