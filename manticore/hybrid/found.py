"""What a search has found elsewhere: a path, or mixture weights, for another hybrid of the same parents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from manticore.components.loading import load_config
from manticore.errors import ManticoreError, about
from manticore.file_names import MODEL, RESULTS, SEARCHED
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import check_path, check_weights
from manticore.paths import expanded
from manticore.reading import read_object
from manticore.settings import Discretize

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from manticore.search.result import SearchResult

_FIX = "Fix: a folder that `manticore search`, `discretize` or `run` wrote"


@dataclass(frozen=True)
class Found:
    """A path and mixture weights, and the hybrid that they are of."""

    config: PreTrainedConfig
    path: list[int]
    weights: Tensor
    """``[N, K]``; one-hot where a path was found."""
    shown: str
    """Where it was found, for messages."""

    def suits(self, config: PreTrainedConfig, where: str) -> Found:
        """Itself, if it is of a hybrid with the same parents, cut alike.

        Args:
            config: of the hybrid that it is to be set on.
            where: what error messages begin with.

        Raises:
            ManticoreError: parents of other families or sizes, in another order, or other blocks.
        """
        theirs, ours = _parents(self.config), _parents(config)
        if theirs != ours:
            raise ManticoreError(
                f"{where}: weights_from: {self.shown} is of {', '.join(theirs)}; this hybrid is of {', '.join(ours)}. "
                "Fix: combine the same parents in the same order"
            )
        if self.config.num_blocks != config.num_blocks:
            raise ManticoreError(
                f"{where}: weights_from: {self.shown} has {_blocks(self.config)}, this hybrid {_blocks(config)}. "
                f"Fix: num_blocks={self.config.num_blocks} in combine"
            )
        if self.config.boundaries != config.boundaries:
            raise ManticoreError(
                f"{where}: weights_from: {self.shown} is cut at {self.config.boundaries}, this hybrid at "
                f"{config.boundaries}. Fix: boundaries={self.config.boundaries} in combine"
            )
        return self

    def start(self, where: str) -> list[int] | Tensor:
        """What a search starts from: the weights, or the path where these say no more.

        Args:
            where: what error messages begin with.

        Raises:
            ManticoreError: learned weights of routed mixing, of which ``[N, K]`` is a summary.
        """
        if bool((self.weights.max(dim=-1).values == 1).all()):
            return self.path
        if self.config.mixing == "routed":
            raise ManticoreError(
                f"{where}: weights_from: {self.shown} has weights of routed mixing, whose rows for each reader are not "
                "kept apart. Fix: hybrid.mixing.adopt_mixture(searched.mixing) and start='current' in Python"
            )
        return self.weights


def found_by(source: SearchResult | str | Path, where: str) -> Found:
    """What a search has found; nothing of its model but the configuration is read.

    Args:
        source: what ``search`` returned, or a folder that ``manticore search``, ``discretize``, ``finetune`` or ``run``
            wrote.
        where: what error messages begin with.

    Raises:
        ManticoreError: there is nothing of the kind, or it is damaged.
    """
    if not isinstance(source, str | Path):
        result = source
        if not hasattr(result, "candidates"):
            raise ManticoreError(
                f"{where}: weights_from is a {type(source).__name__} (expected what search found). {_FIX}"
            )
        return Found(result.model.config, list(result.path), result.weights.detach().float().cpu(), "the search")
    folder = expanded(source)
    again = f"search again, or {_FIX.removeprefix('Fix: ')}"
    record, model = read_object(folder / SEARCHED, again), folder
    if record is None and (results := read_object(folder / RESULTS, again)) is not None:
        record, model = results.get("search"), folder / "search" / MODEL
        if not isinstance(record, dict):
            # a run whose path was given
            record, model = None, folder / MODEL
    config = load_config(str(model)) if (model / "config.json").is_file() else None
    if not isinstance(config, ManticoreConfig) or not (record or config.path):
        raise ManticoreError(f"{where}: weights_from: {folder} holds nothing that a search has found. {_FIX}")
    sizes = config.num_blocks, config.num_components
    if record is None:
        weights = torch.nn.functional.one_hot(torch.tensor(config.path), config.num_components).float()
        return Found(config, list(config.path or ()), weights, str(folder))
    path = check_path(record.get("path") or (), *sizes, f"{where}: weights_from: {folder}")
    with about(f"{where}: weights_from: {folder}"):
        weights = check_weights(cast(Any, record.get("weights")), *sizes)
    return Found(config, path, weights, str(folder))


def path_found(source: SearchResult | str | Path, config: PreTrainedConfig) -> list[int]:
    """The path that was found elsewhere, for a hybrid to be discretized to.

    Args:
        source: as :func:`found_by` has it.
        config: of the hybrid.

    Raises:
        ManticoreError: what :func:`found_by` and :meth:`Found.suits` raise.
    """
    return found_by(source, "discretize").suits(config, "discretize").path


def chosen_elsewhere(settings: Discretize, config: PreTrainedConfig) -> list[int] | None:
    """The path that a hybrid is to be discretized to, where it is given, or was found elsewhere; else None.

    Args:
        settings: with path and weights_from.
        config: of the hybrid.

    Raises:
        ManticoreError: what :func:`path_found` raises.
    """
    if settings.weights_from is None:
        return None if settings.path is None else list(settings.path)
    return path_found(settings.weights_from, config)


def _parents(config: PreTrainedConfig) -> list[str]:
    return [
        f"{part.model_type} ({edges[-1]} layers, width {part.hidden_size})"
        for part, edges in zip(config.components, config.boundaries)
    ]


def _blocks(config: PreTrainedConfig) -> str:
    return f"{config.num_blocks} block{'s' if config.num_blocks > 1 else ''}"
