"""Finds the configuration of every component of a recipe without loading weights or going online."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from manticore.branches import Branch
from manticore.components.gguf_files import checkpoint_folder
from manticore.components.loading import load_config, load_tokenizer
from manticore.components.sources import file_of
from manticore.errors import ManticoreError, in_brief
from manticore.hybrid.fresh import branch_config
from manticore.paths import expanded
from manticore.plan.known import KNOWN, known
from manticore.registry import did_you_mean
from manticore.schema.recipe import Recipe
from manticore.schema.sections import Component, Pretrain
from manticore.training.shapes import small_config

_LARGEST = {"num_hidden_layers": 1_000, "hidden_size": 1_000_000, "vocab_size": 100_000_000}
"""Beyond these a configuration is taken for a mistake."""

_SENTENCE = "The 3 quick brown-foxes' café jumped:\n\tdef f(x):  return x**2"


@dataclass(frozen=True)
class Source:
    """A component's configuration and where it came from."""

    name: str
    config: PreTrainedConfig
    origin: str
    folder: str | None = None
    """Where its tokenizer may lie."""
    tokenizer: str | None = None
    """A word for its tokenizer, where that is known without reading it."""


def find_sources(recipe: Recipe) -> list[Source]:
    """One per component.

    Raises:
        ManticoreError: a configuration that is not here, or that describes no possible model.
    """
    made = {entry.name: entry for entry in recipe.pretrain}
    branches = Branch.read([component.source for component in recipe.components])
    found = {k: _find(each, made) for k, each in enumerate(recipe.components) if k not in branches}
    for source in found.values():
        _check_sizes(source)
    for k, branch in branches.items():
        parent, name = found[branch.of], recipe.components[k].name
        config = branch_config(parent.config, branch.layers, recipe.combine.num_blocks)
        found[k] = replace(parent, name=name, config=config, origin=f"fresh layers beside {parent.name}")
    return [found[k] for k in range(len(recipe.components))]


def find_larger(recipe: Recipe) -> Source | None:
    """The larger single model that a comparison shows beside the others, if there is one."""
    larger = None if recipe.compare is None else recipe.compare.larger
    if larger is None:
        return None
    made = {entry.name: entry for entry in recipe.pretrain}
    name, _, source = larger.rpartition("=") if larger not in made else ("", "", larger)
    found = _find(Component(name=name or "larger", source=source), made)
    _check_sizes(found)
    return found


def _find(component: Component, made: dict[str, Pretrain]) -> Source:
    text = component.source
    if text in made:
        entry = made[text]
        config = small_config(
            entry.family, layers=entry.layers, width=entry.width, positions=entry.length, options=entry.config
        )
        if entry.tokenizer != "train":
            config.vocab_size = _tokens(component.name, entry.tokenizer)
            return Source(component.name, config, "pretrained by the recipe", entry.tokenizer)
        config.vocab_size = entry.vocab_size
        texts = ", ".join(sorted(set(entry.tokenizer_texts or [entry.text])))
        trained = f"trained on {texts}, {entry.vocab_size} tokens"
        return Source(component.name, config, "pretrained by the recipe", None, trained)
    read = checkpoint_folder(str(expanded(text)), revision=component.revision, local_files_only=True)
    if Path(read).exists():
        return Source(component.name, load_config(read), str(expanded(text)), read)
    cached = None
    if not text.startswith((".", "/", "~")):
        here: dict[str, Any] = {"local_files_only": True, "_raise_exceptions_for_gated_repo": False}
        cached = file_of(text, "config.json", revision=component.revision, **here)
    if cached is not None:
        own = str(cached.parent)
        return Source(component.name, load_config(own), f"{text}, downloaded before", own)
    shipped = known(text)
    if shipped is not None:
        name, facts = shipped
        return Source(component.name, AutoConfig.for_model(facts.family, **facts.fields), name, None, facts.tokenizer)
    near = did_you_mean(text.rpartition("/")[2].lower(), list(KNOWN))
    hint = near if near.startswith(". Did") else ""
    raise ManticoreError(
        f"plan: {component.name}: no configuration of {text!r} is here, and a plan downloads nothing{hint}"
        f"{'.' if not hint else ''} Fix: give a folder with its config.json, or one of {', '.join(KNOWN)}"
    )


def _tokens(name: str, tokenizer: str) -> int:
    """How many tokens a given tokenizer has: so many rows its model gets."""
    found = load_tokenizer(str(expanded(tokenizer)), local_files_only=True)
    if found is None:
        raise ManticoreError(
            f"plan: {name}: no tokenizer {tokenizer!r} is here, and a plan downloads nothing. "
            "Fix: give a folder that holds one"
        )
    return len(found)


def _check_sizes(source: Source) -> None:
    for name, most in _LARGEST.items():
        value = getattr(source.config, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ManticoreError(
                f"plan: {source.name}: {name} is {value!r} in {source.origin} (expected a whole number from 1 to "
                f"{most:,}). Fix: give the config.json that belongs to the checkpoint"
            )


def tokenizer_verdict(sources: Sequence[Source], own_vocabulary: bool) -> tuple[bool, str]:
    """Whether the components' tokenizers allow the run, and why, in a phrase.

    Args:
        sources: the components.
        own_vocabulary: the task brings its own, so that no tokenizer is used on it.
    """
    if own_vocabulary:
        return True, "the task brings its own vocabulary: fresh embeddings and heads"
    words = [source.tokenizer for source in sources]
    if all(words):
        shared = len(set(words)) == 1
        return shared, f"shared ({words[0]})" if shared else f"differ ({', '.join(map(str, words))})"
    rows = {source.config.vocab_size for source in sources}
    try:
        read: list[Any] = [load_tokenizer(source.folder) if source.folder else None for source in sources]
    except ManticoreError as error:
        return False, in_brief(error)
    if all(tokenizer is not None for tokenizer in read):
        first = read[0]
        same = all(
            t.get_vocab() == first.get_vocab() and t(_SENTENCE).input_ids == first(_SENTENCE).input_ids
            for t in read[1:]
        )
        return same, "shared" if same else "differ"
    if len(rows) > 1:
        return False, f"unknown, and vocabularies differ ({', '.join(f'{r:,}' for r in sorted(rows))} rows)"
    return True, "unknown (no tokenizer files here); vocabularies have the same number of rows"
