"""Rehearses with a small model what a hybrid of a component will do: long text, padding, a cache, saving.

A hybrid of two copies of the component's stunted twin (:mod:`manticore.components.stunted`) runs past windows and
switches, is saved, loaded, discretized so that it changes over from one copy to the other, and has to give the same
logits throughout. This depends on the configuration and on code alone, so that a verdict is remembered.
"""

from __future__ import annotations

import copy
import json
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.cache import content_key
from manticore.components.cache_argument import cache_in
from manticore.components.positions import rope_switch
from manticore.components.quiet import quiet_loading
from manticore.components.runner import Runner, not_reproducible
from manticore.components.selfcheck import refuse_difference, refusing_crashes, rounding_of_its_own
from manticore.components.stunted import FAR, NEAR, stunted
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.discretize import discretize
from manticore.hybrid.modeling import ManticoreForCausalLM, build
from manticore.hybrid.verdicts import Verdict
from manticore.seeding import derive_seed

# past windows, chunks and switches of the twin, from a prompt that is shorter than all of them when padding is left out
_TOKENS, _PADDED, _PROMPT = 10, 3, 8
_KIND = "components"


def rehearse(model: PreTrainedModel) -> None:
    """Refuse a component whose hybrids would not compute what it computes.

    Raises:
        ManticoreError: the logits of a small hybrid of its configuration differ with left padding, with a cache, after
            loading or after discretizing.
    """
    verdict = Verdict(_KIND, _what_it_depends_on(model))
    if verdict.is_known():
        return
    with quiet_loading(), torch.no_grad():
        _rehearse(model)
    verdict.keep()


def _what_it_depends_on(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration, and the code of the family's modules, which may be anyone's."""
    settings = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures"):
        settings.pop(name, None)
    kinds = {type(module) for module in (model, *model.modules())}
    return {
        "configuration": settings,
        # chosen when a model is loaded, so a configuration does not say them
        "implementations": [model.config._attn_implementation, model.config._experts_implementation],
        "code": sorted(f"{kind.__module__}.{kind.__qualname__} {_code(kind)}" for kind in kinds),
    }


def _implementations(hybrid: ManticoreForCausalLM) -> dict[str, dict[str, str]]:
    """What a hybrid runs, as ``from_pretrained`` takes it: files do not say it."""
    kinds = ("attn_implementation", "experts_implementation")
    return {
        kind: {
            name: chosen
            for name in hybrid.config.sub_configs
            if (chosen := getattr(getattr(hybrid.config, name), f"_{kind}")) is not None
        }
        for kind in kinds
    }


def _code(kind: type) -> str:
    code = getattr(getattr(kind.forward, "__wrapped__", kind.forward), "__code__", None)  # type: ignore[attr-defined]
    return "" if code is None else content_key([code.co_code.hex(), list(code.co_names), len(code.co_consts)])


def _rehearse(model: PreTrainedModel) -> None:
    seed = derive_seed(0, "rehearsal")
    with refusing_crashes(model):
        twin = stunted(model, switch=FAR, seed=seed)
    rehearsal = _Rehearsal(model, twin)
    expected = rehearsal.compare(rehearsal.hybrid, "")
    with tempfile.TemporaryDirectory(prefix="manticore-") as folder, refusing_crashes(model):
        rehearsal.hybrid.save_pretrained(folder)
        reloaded = ManticoreForCausalLM.from_pretrained(folder, **_implementations(rehearsal.hybrid))
        rehearsal.same(reloaded, expected, "after saving and loading")
    try:
        small = discretize(reloaded, [0, *[1] * (reloaded.config.num_blocks - 1)])
    except ManticoreError:
        # families that share weights between layers cannot be, and say so when it is asked for
        small = None
    if small is not None:
        with refusing_crashes(model):
            rehearsal.same(small, expected, "after discretizing")
        rehearsal.compare(small, " after discretizing")
    if rope_switch(model.config) is not None:
        with refusing_crashes(model):
            twin = stunted(model, switch=NEAR, seed=seed)
        _Rehearsal(model, twin).long_text()


class _Rehearsal:
    """A hybrid of two copies of a twin, and what it is compared on.

    Args:
        model: the component that errors name.
        twin: its stunted twin.
    """

    def __init__(self, model: PreTrainedModel, twin: PreTrainedModel) -> None:
        self.model = model
        self.runner = Runner(twin)
        generator = torch.Generator().manual_seed(derive_seed(0, "rehearsal of text"))
        # a model of fewer positions than that has no window beyond them
        self.tokens = min(_TOKENS, self.runner.positions or _TOKENS)
        self.input_ids = torch.randint(0, twin.config.vocab_size, (2, self.tokens), generator=generator)
        self.mask = torch.ones_like(self.input_ids)
        self.mask[0, :_PADDED] = 0
        self.positions = (self.mask.cumsum(-1) - 1).clamp_min(0)
        with refusing_crashes(model):
            self.plain = twin(input_ids=self.input_ids, use_cache=False).logits
            self.alone = twin(input_ids=self.input_ids[:1, _PADDED:], use_cache=False).logits
            components = [twin, copy.deepcopy(twin)]
            configurations: dict[str, Any] = {f"component_{k}": each.config for k, each in enumerate(components)}
            config = ManticoreConfig(
                num_components=2,
                num_blocks=min(2, self.runner.num_layers),
                layer_outputs=[self.runner.tuple_sizes] * 2,
                vocab_size=twin.config.vocab_size,
                dtype=torch.float32,
                **configurations,
            )
            self.hybrid = build(config, components).eval()
        self.hybrid.set_mixture_weights([0] * config.num_blocks)

    def long_text(self) -> None:
        """Refuse differences from the twin alone on text beyond a switch, plain and left-padded."""
        with refusing_crashes(self.model):
            plain = self.hybrid(self.input_ids).logits
            row = {"attention_mask": self.mask[:1], "position_ids": self.positions[:1]}
            padded = self.hybrid(self.input_ids[:1], **row).logits
        self._refuse(plain, self.plain, "on longer text differ from its own")
        self._refuse(padded[:, _PADDED:], self.alone, "with left padding differ from those without")

    def compare(self, hybrid: ManticoreForCausalLM, when: str) -> Tensor:
        """Refuse differences from the twin alone, plain, left-padded and with a cache; returns the plain logits."""
        with refusing_crashes(self.model):
            plain = hybrid(self.input_ids).logits
            self._refuse(plain, self.plain, f"on longer text{when} differ from its own")
            cache, pieces = hybrid.new_cache(), []
            for start, stop in [(0, _PROMPT), *((i, i + 1) for i in range(_PROMPT, self.tokens))]:
                output = hybrid(
                    self.input_ids[:, start:stop],
                    attention_mask=self.mask[:, :stop],
                    position_ids=self.positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = cache_in(output)
                pieces.append(output.logits)
        decoded = torch.cat(pieces, 1)
        self.padding(hybrid, when)
        for logits, without, what in (
            (decoded[1:], self.plain[1:], "with a cache"),
            (decoded[:1, _PADDED:], self.alone, "with a cache and left padding"),
        ):
            self._refuse(logits, without, f"{what}{when} differ from those without", cached=True)
        return plain

    def padding(self, hybrid: ManticoreForCausalLM, when: str) -> None:
        """Refuse logits of a left-padded row that are not those of the row alone."""
        with refusing_crashes(self.model):
            padded = hybrid(self.input_ids, attention_mask=self.mask, position_ids=self.positions).logits
        self._refuse(padded[:1, _PADDED:], self.alone, f"with left padding{when} differ from those without")

    def same(self, hybrid: ManticoreForCausalLM, expected: Tensor, when: str) -> None:
        """Refuse a hybrid that does not give the same logits to the bit."""
        if not torch.equal(hybrid(self.input_ids).logits, expected):
            raise ManticoreError(not_reproducible(self.model, f"its logits {when} are not those before"))

    def _refuse(self, logits: Tensor, expected: Tensor, what: str, *, cached: bool = False) -> None:
        try:
            refuse_difference(self.model, logits, expected, what)
        except ManticoreError:
            # some families bound time steps in a whole text, and not token by token
            positions = torch.arange(self.tokens)[None]
            allowed = rounding_of_its_own(self.runner, self.input_ids[1:], positions) if cached else 0.0
            if not float((logits - expected).abs().max()) <= allowed * float(expected.abs().max()):
                raise
