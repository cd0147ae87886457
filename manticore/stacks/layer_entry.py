"""One entry of a stack's list of layers: name, options, and what it shares with lower layers.

Featurizer sharing takes the *weights* of a lower layer: the same maps, on this layer's own input. Feature-group sharing
takes the *tensors* that a lower layer has computed, such as its keys and values (Thomas et al., "STAR", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from manticore.errors import ManticoreError, in_brief
from manticore.registry import did_you_mean

if TYPE_CHECKING:
    from manticore.stacks.mixer import Mixer

_KEYS = ("weights_of", "features_of", "features")


@dataclass(frozen=True)
class LayerEntry:
    """A layer of a stack.

    As JSON it is its name, ``[name, options]`` or ``[name, options, sharing]``, the last a mapping with ``weights_of``,
    ``features_of`` and ``features``.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights_of: int | None = None
    """Position of the lower layer whose weights its primitive has; the norm stays its own."""
    features_of: int | None = None
    """Position of the lower layer whose features it takes."""
    features: tuple[str, ...] = ()
    """Which: for attention ``("keys", "values")``, for the others see ``docs/star.md``."""

    @classmethod
    def read(cls, given: str | LayerEntry | Sequence[Any], index: int = 0) -> LayerEntry:
        """From its JSON form.

        Args:
            given: as in :attr:`StackConfig.layers`.
            index: its position in the list, for messages.

        Raises:
            ManticoreError: sharing that is not a mapping of the three names to positions and names of features.
        """
        if isinstance(given, LayerEntry):
            return given
        if isinstance(given, str):
            return cls(given)
        name, options, sharing = (*given, {})[:3]
        where = f"stack: layers[{index}]"
        for key, value in sharing.items():
            if key not in _KEYS:
                raise ManticoreError(f"{where}: unknown sharing {key!r}{did_you_mean(key, list(_KEYS))}")
            if key == "features":
                if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                    raise ManticoreError(
                        f"{where}: features is {in_brief(repr(value))} (expected a list of names). "
                        "Fix: for instance features=['keys', 'values']"
                    )
            elif isinstance(value, bool) or not (isinstance(value, int) or value is None):
                raise ManticoreError(
                    f"{where}: {key} is {in_brief(repr(value))} (expected the position of a lower layer). "
                    f"Fix: {_lower(index)}"
                )
        if ("features" in sharing) != ("features_of" in sharing):
            raise ManticoreError(
                f"{where}: features and features_of go together. "
                "Fix: for instance {'features_of': 0, 'features': ['keys', 'values']}"
            )
        return cls(
            name,
            dict(options),
            sharing.get("weights_of"),
            sharing.get("features_of"),
            tuple(sharing.get("features") or ()),
        )

    @property
    def sharing(self) -> dict[str, Any]:
        """What it shares, as JSON."""
        found: dict[str, Any] = {} if self.weights_of is None else {"weights_of": self.weights_of}
        if self.features_of is not None:
            found.update(features_of=self.features_of, features=list(self.features))
        return found

    @property
    def written(self) -> Any:
        """Its JSON form; lists, which is what it is once saved and loaded."""
        if self.sharing:
            return [self.name, self.options, self.sharing]
        return [self.name, self.options] if self.options else self.name

    def with_options(self, options: Mapping[str, Any]) -> LayerEntry:
        """The same with these options."""
        return replace(self, options=dict(options))


def refuse_sharing(entries: Sequence[LayerEntry], mixers: Sequence[Mixer]) -> None:
    """Refuse layers that cannot share what they are to share.

    Args:
        entries: the layers of a stack, from the bottom to the top.
        mixers: their primitives.

    Raises:
        ManticoreError: the first of them, by position: another layer that is not lower, of another kind, with other
            options, without the weights or features that are asked of it.
    """
    for index, entry in enumerate(entries):
        where = f"stack: layers[{index}]"
        for key, other in (("weights_of", entry.weights_of), ("features_of", entry.features_of)):
            if other is not None and not 0 <= other < index:
                raise ManticoreError(
                    f"{where}: {key} is {other} (expected the position of a lower layer). Fix: {_lower(index)}"
                )
        if entry.weights_of is not None:
            source = entries[entry.weights_of]
            if source.name != entry.name or source.options != entry.options:
                raise ManticoreError(
                    f"{where}: {_told(entry)} cannot have the weights of layers[{entry.weights_of}], {_told(source)} "
                    "(expected the same primitive with the same options). Fix: make them equal, or leave out weights_of"
                )
            missing = [each for each in source.features if each not in entry.features]
            if missing:
                raise ManticoreError(
                    f"{where}: layers[{entry.weights_of}] has no weights for its {' and '.join(missing)}, which it "
                    f"takes from layers[{source.features_of}]. Fix: take them too, or leave out weights_of"
                )
            if mixers[index].taking_adds_weights and entry.features and not source.features:
                raise ManticoreError(
                    f"{where}: layers[{entry.weights_of}] has no weights to take {' and '.join(entry.features)} with. "
                    "Fix: let it take them too, or leave out weights_of"
                )
        if entry.features_of is not None:
            source, maker = entries[entry.features_of], entry.features_of
            # what the source takes itself comes from further below
            while (below := entries[maker].features_of) is not None and {*entry.features} <= {*entries[maker].features}:
                maker = below
            why = mixers[index].mismatch(mixers[maker])
            if why is not None:
                raise ManticoreError(
                    f"{where}: {_told(entry)} cannot take {' and '.join(entry.features)} from "
                    f"layers[{entry.features_of}], {_told(source)}: {why}. Fix: another layer, or leave out features_of"
                )


def _lower(index: int) -> str:
    return f"one of 0 to {index - 1}" if index else "leave it out: no layer is lower"


def _told(entry: LayerEntry) -> str:
    return entry.name + (f" {in_brief(repr(entry.options))}" if entry.options else "")
