"""What a set of options is. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Options that belong together: unknown names are errors, values are not bent into shape."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, defer_build=True)

    if not TYPE_CHECKING:
        # type checkers and editors show the fields as they are
        def __init__(self, **options: Any) -> None:
            from manticore.keywords import told_as_ours

            with told_as_ours(type(self), options):
                super().__init__(**options)

        # else pydantic would go through here to check a recipe too, and lose the places of its errors
        __init__.__pydantic_base_init__ = True

    unkeyed: ClassVar[frozenset[str]] = frozenset()
    """Fields that no number of a run depends on, or that are found in it in another form."""

    def key(self, **found: Any) -> dict[str, Any]:
        """What a run is resumed by, as JSON values.

        Args:
            found: values that were left open, and what else determines the run.
        """
        return {**self.model_dump(mode="json", exclude={*self.unkeyed, *found}), **found}
