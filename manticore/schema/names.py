"""Field types of the recipe schema that hold a name from the registry, or options that belong to such a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from manticore import registry


class Named:
    """Marks a field as the name of a registered thing, for checks and for help texts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, name: str) -> str:
        if name not in registry.entries(self.kind):
            text = registry.unknown_name(self.kind, name)
            raise PydanticCustomError("unknown_name", "{text}", {"text": text})
        return name


def _named(kind: str) -> Any:
    marker = Named(kind)
    return Annotated[str, AfterValidator(marker), marker]


def _scalar(value: Any) -> Any:
    # a union of the types would report once for each of them
    if value is not None and not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("scalar_type", "no single value")
    return value


if TYPE_CHECKING:
    # a type checker cannot look into the function, and takes a variable for a type in some orders of modules only
    Mixing: TypeAlias = str
    Projector: TypeAlias = str
    SearchMethod: TypeAlias = str
    TaskName: TypeAlias = str
    Scalar: TypeAlias = bool | int | float | str | None
else:
    Mixing = _named("mixing")
    Projector = _named("projector")
    SearchMethod = _named("search")
    TaskName = _named("task")
    Scalar = Annotated[Any, AfterValidator(_scalar)]
