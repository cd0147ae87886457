"""The forward pass of a hybrid, whole: embeddings, blocks, heads.

Each component's own forward runs up to its last layer and waits there, the next component's inside it; in the innermost
all blocks run, and on the way out each gets its features for norm and head. So every family's own code makes masks,
rotations and logits, once per pass. (:mod:`manticore.components.runner` lets a component wait.)

Shapes: B batch, T tokens, D width, V vocabulary, K components, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from manticore.components.cache_argument import CACHE_ARGUMENT, named, one_cache
from manticore.components.extra_arguments import loss_arguments, positions_of_documents
from manticore.components.last_token import positions_of
from manticore.components.runner import Recording
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.decoding import CachedGenerationMixin, HybridCache
from manticore.hybrid.inputs import Part, check_inputs, check_outputs, require_ids
from manticore.hybrid.mixing import Features, Mixing, Route
from manticore.hybrid.outputs import HybridOutput, Read, log_of
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.released import Branches
from manticore.hybrid.survivors import Alone, read_by_survivors

R = TypeVar("R")


def through_blocks(
    blocks: Sequence[Sequence[int]],
    embedded: Callable[[], Features],
    enter: Callable[[int, Features, Sequence[int]], Features],
    segment: Callable[[int, int], Callable[[Tensor], Tensor]],
    leave: Callable[[Features], R],
) -> R:
    """One block after the other: the loop of the model, of what a plan measures and of what an alignment reads.

    Args:
        blocks: per block the components that run.
        embedded: what the first block is given: of each component that is read what enters its layers, ``[B, T, D]``.
        enter: block n, what left the block before, the block's components → what enters each of them.
        segment: block n, component k → its layers there.
        leave: takes what left the last block; what it returns is returned.
    """
    features = embedded()
    for n, components in enumerate(blocks):
        entering = enter(n, features, components)
        leaving: Features = {}
        # a loop, not a comprehension: that would be a frame more up to Python 3.11
        for k, hidden in entering.items():
            leaving[k] = segment(n, k)(hidden)
        features = leaving
    return leave(features)


@contextmanager
def own_forwards(
    hybrid: ManticorePreTrainedModel,
    inputs: Mapping[int, Mapping[str, Any]],
    mixing: Mixing | Branches | Alone,
    states: list[Tensor] | None = None,
    last: Features | None = None,
    **how: Any,
) -> Iterator[tuple[Callable[[], Any], dict[int, Recording]]]:
    """The components' own forwards, one inside the other, ready to run: the outermost, and all recordings.

    Args:
        hybrid: whose components run.
        inputs: what each component that runs is given.
        mixing: what joins them: its ``route``, ``enter`` and ``head_inputs``.
        states: takes what enters each block and what leaves the last.
        last: takes what the norm and head of each component are given.
        how: ``head``, ``logits_to_keep`` and ``head_input`` of :meth:`~manticore.components.runner.Runner.opened`.
    """
    route, edges = mixing.route(), hybrid._boundaries
    # transformers' Trainer hooks the noise onto get_input_embeddings() alone
    if hybrid.training and len(route.embedded) > 1 and hasattr(hybrid.get_input_embeddings(), "neftune_noise_alpha"):
        raise ManticoreError(
            "forward: NEFTune puts noise on one table of embeddings, and this supernet reads "
            f"{len(route.embedded)}. Fix: leave neftune_noise_alpha out, or discretize first"
        )
    # a component whose norm and head nobody reads need not wait
    recordings = {k: hybrid._runner(k).record(**given) for k, given in inputs.items() if k not in route.blocks[-1]}

    def embedded() -> Features:
        return {k: recordings[k].hidden for k in route.embedded}

    def enter(n: int, features: Features, components: Sequence[int]) -> Features:
        entering: Features = mixing.enter(n, features, components)
        if states is not None:
            states.extend(entering.values())
        return entering

    def segment(n: int, k: int) -> Callable[[Tensor], Tensor]:
        return partial(hybrid._runner(k).run, recordings[k], start=edges[k][n], stop=edges[k][n + 1])

    def leave(features: Features) -> None:
        if states is not None:
            states.extend(features.values())
        for k, hidden in mixing.head_inputs(features).items():
            recordings[k].final = hidden
            if last is not None:
                last[k] = hidden

    # partial, not a function: a traceback from a layer names the loop and the forward, and nothing between them
    inside: Callable[[], Any] = partial(through_blocks, route.blocks, embedded, enter, segment, leave)
    with ExitStack() as stack:
        # from the inside out: the first component's forward begins first, and ends last
        for k in reversed(route.blocks[-1]):
            recordings[k] = stack.enter_context(hybrid._runner(k).opened(inside, **inputs[k], **how))
            inside = recordings[k].own_forward
        yield inside, recordings


def by_component(returned: Any, recordings: Mapping[int, Recording], route: Route) -> dict[int, Any]:
    """What each own forward returned: the outermost to the hybrid, every other one to the one it ran in."""
    outputs: dict[int, Any] = {}
    for k in route.blocks[-1]:
        outputs[k], returned = returned, recordings[k].inner
    return outputs


def heads_mixed(hybrid: Any, given: Mapping[str, Any], read: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """``read(head, features [n, L, D])`` of every component's head for classes, mixed with the output weights."""
    hybrid.check_adapters()
    part = Part(**given)
    # each family has its own default positions; counted from the mask, padding on the left changes nothing
    part = part._replace(position_ids=positions_of(part.attention_mask, part.position_ids))
    hybrid._check_positions(part.input_ids.shape[1], 0, part.position_ids)
    route = hybrid.mixing.route()
    with own_forwards(hybrid, part.for_each(route.used), hybrid.mixing, head=False) as (outermost, recordings):
        returned = outermost()
    outputs: Features = {}
    for k, normed in by_component(returned, recordings, route).items():
        head = hybrid.score[str(k)]
        outputs[k] = read(head, normed.last_hidden_state.to(next(head.parameters()).dtype))
    mixed: Tensor = hybrid.mixing.mixed(outputs)
    return mixed


class ManticoreForCausalLM(ManticorePreTrainedModel, CachedGenerationMixin):
    """A supernet of K causal LMs, or, once discretized, one path through their blocks.

    :func:`manticore.combine` builds a hybrid, ``from_pretrained`` loads one; arguments as in the base class.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: HybridCache | None = None,
        output_weights: bool | None = None,
        **kwargs: Any,
    ) -> HybridOutput | tuple[Any, ...]:
        """Logits of every next token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; None leaves each component to its own rule.
            labels: ``[B, T]``, shifted here as everywhere in transformers; -100 is ignored.
            logits_to_keep: the last so many positions only, or a tensor of positions; 0 keeps all.
            use_cache: whether to return a cache; None returns one only where one was given, since plain evaluation has
                no use for it. Never in training with gradient checkpointing.
            past_key_values: the cache of the tokens before these; transformers calls it ``cache`` from 5.24 on.
            inputs_embeds: refused.
            output_hidden_states: of a discretized hybrid what enters each block, ``[B, T, width]`` of the block's
                component, and what leaves the last, before the last norm: N + 1 in all.
            output_attentions: refused.
            return_dict: False returns a tuple; None follows the configuration.
            cache: another name for ``past_key_values``.
            output_weights: whether to return the weights that each token's prediction was made with.
            kwargs: ``num_items_in_batch`` for the loss; ``seq_idx``, ``cu_seq_lens_q`` and their kin of packed
                documents, which like ``position_ids`` that start anew give the logits of the documents alone; and
                what tools add that changes nothing.

        Returns:
            ``logits`` ``[B, T, V]``, with labels ``loss``, with ``use_cache`` the cache, as ``past_key_values`` or,
            from transformers 5.24 on, ``cache``; with ``output_weights`` these, ``[B, T, K]``, of the positions whose
            logits are returned. Where several components predict, outputs other than ``logits`` give log-probabilities
            in float32.

        Raises:
            ManticoreError: ``inputs_embeds`` (K components have K embeddings of different widths), attentions, hidden
                states of a supernet, shapes or ids that do not fit, another cache than this hybrid's, more tokens
                than a component has positions for, unknown arguments, documents in one row or padding behind cached
                tokens together with a cache, or adapters on maps that cannot carry them.
        """
        self.check_adapters()
        input_ids = require_ids(input_ids, inputs_embeds)
        for_loss = loss_arguments(type(self).forward, kwargs)
        wants_states = self._wants_states(output_hidden_states, output_attentions)
        cache = self._cache(one_cache(past_key_values, cache), use_cache, len(input_ids))
        seen = cache.seen_tokens if cache is not None else 0
        check_inputs(input_ids, attention_mask, position_ids, cached=seen, vocab_size=self.config.vocab_size)
        check_outputs(input_ids, labels, logits_to_keep)
        if (k := self.switching(attention_mask, seen, seen + input_ids.shape[1])) is not None:
            raise ManticoreError(
                f"forward: the rotary embedding of {self._named(k)} changes after {self._runner(k).switch} tokens, "
                f"{seen} are cached as it was before. Fix: the whole text again, without {CACHE_ARGUMENT}"
            )
        position_ids = positions_of_documents(kwargs, position_ids, input_ids.shape, input_ids.device)
        parts, put_back = self._parts(input_ids, attention_mask, position_ids, cache)
        # which tokens shall be kept is known only when all are in their places again
        keep = logits_to_keep if put_back is None else 0
        read, weighed, readers = [], [], []
        passed: list[Any] = []
        drops = self._drops(cache)
        for part in parts:
            every = isinstance(keep, int) and not 0 < keep < part.input_ids.shape[1]
            kept = None if every else _kept(keep)
            if drops:
                prior = log_of(self.mixing.output_weights(), input_ids.device)
                predicted = read_by_survivors(self, part, cache, prior, kept)
                read.append(predicted.logits)
                if output_weights:
                    weighed.append(predicted.weights)
                readers.append(predicted.components_read)
                passed.append(None)
                continue
            states: list[Tensor] | None = [] if wants_states else None
            last: Features = {}
            given = part.for_each(self.mixing.route().used, cache)
            branches = Branches(self, given) if self.config.released else None
            how: dict[str, Any] = {"head": branches is None, "logits_to_keep": keep}
            if self.output.reads_head_inputs:
                how["head_input"] = True
            if self.output.follows_text:
                how["last"] = last
            with own_forwards(self, given, branches or self.mixing, states, **how) as (outermost, recordings):
                returned = outermost()
            heads = by_component(returned, recordings, self.mixing.route())
            if branches is None:
                outputs = {k: head.logits[..., : self.config.vocab_size] for k, head in heads.items()}
            else:
                outputs = branches.logits(heads, keep, states)
            if cache is not None:
                # after the pass: while it runs, components ask how many tokens are before these
                cache.seen_tokens += part.input_ids.shape[1]
            head_inputs = {k: each.head_input for k, each in recordings.items() if each.head_input is not None}
            together = Read(
                *(outputs, self.mixing.output_weights(), head_inputs, part, kept, last, self._head, cache),
                weighed=bool(output_weights),
            )
            logits, weights = self.output(together)
            read.append(logits)
            if weights is not None:
                weighed.append(weights if weights.dim() == 3 else weights.expand(*logits.shape[:2], -1))
            passed.append(states)
        logits, weights = (
            None if not each else each[0] if put_back is None else put_back(each)[:, _kept(logits_to_keep)]
            for each in (read, weighed)
        )
        states = passed[0]
        if wants_states and put_back is not None:
            states = [put_back(list(of_parts)) for of_parts in zip(*passed)]  # type: ignore[arg-type]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss)
        output = HybridOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if states is None else tuple(states),  # type: ignore[arg-type]
            output_weights=weights,
            components_read=None if not readers else readers[0] if put_back is None else put_back(readers),
            **named(cache),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _drops(self, cache: HybridCache | None) -> bool:
        """Whether components stop reading sequences that they are unlikely to have written."""
        if self.config.drop_below is None or len(self.mixing.route().used) < 2:
            return False
        if self.training:
            if cache is not None and cache.survivors is not None:
                raise ManticoreError(
                    f"forward: {CACHE_ARGUMENT} has dropped components, and while a model trains none is dropped. "
                    "Fix: model.eval(), or a new cache"
                )
            return False
        if not self.mixing.apart():
            raise ManticoreError(
                f"forward: drop_below is {self.config.drop_below}, but components read one another at these mixture "
                "weights. Fix: hybrid.mixing.reset_mixture() (R = I), or config.drop_below = None"
            )
        return True

    def alone(
        self, k: int, part: Part, cache: HybridCache | None, logits_to_keep: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """One component by itself: its logits ``[n, t, V]``, and ``[n, L, D]`` that its norm and head were given.

        Args:
            k: which one.
            part: the tokens.
            cache: whose layers of component k are read and extended; it does not count the tokens.
            logits_to_keep: as in :meth:`forward`.
        """
        last: Features = {}
        given = part.for_each([k], cache)
        by_itself = Alone(k, self.config.num_blocks)
        with own_forwards(self, given, by_itself, last=last, head=True, logits_to_keep=logits_to_keep) as (run, _):
            logits: Tensor = run().logits
        return logits[..., : self.config.vocab_size], last[k]

    def _head(self, k: int, input_ids: Tensor, features: Tensor) -> Tensor:
        """Norm and head of component k on features ``[B, n, D]`` of the tokens ``[B, n]``: ``[B, n, V]``."""
        return self._runner(k).logits(lambda _: features, input_ids)[..., : self.config.vocab_size]

    def _wants_states(self, hidden_states: bool | None, attentions: bool | None) -> bool:
        """Whether hidden states are asked for, which a path alone can give."""
        if self.config.output_attentions if attentions is None else attentions:
            raise ManticoreError(
                "forward: output_attentions, but components differ in heads and layers, and recurrent ones have none. "
                "Fix: ask one component, hybrid.component(k)"
            )
        if not (self.config.output_hidden_states if hidden_states is None else hidden_states):
            return False
        if not self.is_discretized:
            raise ManticoreError(
                "forward: output_hidden_states, but a supernet has several of different widths in every block. "
                "Fix: discretize it, or ask one component, hybrid.component(k)"
            )
        return True

    def get_output_embeddings(self) -> Any:
        """The head of a discretized hybrid's last component; None of a supernet, whose components have one each."""
        path = self.config.path
        return None if path is None else self.component(path[-1]).get_output_embeddings()


def _kept(logits_to_keep: int | Tensor) -> slice | Tensor:
    """The last so many positions, or those of a tensor; 0 keeps all."""
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


def build(config: ManticoreConfig, components: Sequence[PreTrainedModel]) -> ManticoreForCausalLM:
    """A hybrid around loaded components; only projectors and weights are initialised."""
    with no_init_weights():
        hybrid = ManticoreForCausalLM(config, components)
    for projector in hybrid.mixing.projectors.values():
        projector.to(components[0].dtype).reset_parameters()  # type: ignore[operator]
    hybrid.mixing.reset_mixture()
    hybrid.output.to(components[0].dtype).reset_parameters()
    hybrid.share_weights()
    return hybrid
