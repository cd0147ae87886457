"""What every page has: templates that escape all text, figures inside it and beside it, and files that are never half.

A page loads nothing: no script, no style sheet, no font, no image from elsewhere, and its content security policy
forbids it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from manticore import quantities
from manticore.errors import ManticoreError
from manticore.file_names import PAGE
from manticore.report.svg import inline
from manticore.writing import write_bytes


@dataclass(frozen=True)
class Drawing:
    name: str
    """File name without ending."""
    title: str
    caption: str
    svg: str

    @property
    def element(self) -> Markup:
        """The figure for inside a page, read aloud by its title and caption."""
        return Markup(inline(self.svg, self.name, f"{self.title}. {self.caption}"))


def render(template: str, **values: Any) -> str:
    """A template of this package with its values, every text among them escaped."""
    environment = Environment(
        loader=PackageLoader("manticore.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": quantities.shorten, "flops": quantities.flops}
    return environment.get_template(template).render(**values)


def write_with_figures(folder: Path, page: str, drawings: Mapping[str, Drawing], names: Iterable[str]) -> Path:
    """Write ``report.html`` and ``figures/*.svg``.

    Args:
        folder: to write into.
        page: the text of ``report.html``.
        drawings: name → figure.
        names: of all figures that such a page can have; those without a drawing are removed.

    Returns:
        The path of ``report.html``. Files are written aside and renamed, so an older report stays whole until the new
        one is.

    Raises:
        ManticoreError: the files cannot be written.
    """
    try:
        figures = folder / "figures"
        figures.mkdir(exist_ok=True)
        for name in names:
            target = figures / f"{name}.svg"
            if name in drawings:
                write_bytes(target, drawings[name].svg.encode("utf-8"))
            else:
                target.unlink(missing_ok=True)
        write_bytes(folder / PAGE, page.encode("utf-8"))
    except OSError as error:
        raise ManticoreError(
            f"{folder}: the report cannot be written ({error.strerror}). Fix: free space or change permissions"
        ) from error
    return folder / PAGE
