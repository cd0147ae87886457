"""Write the card of the model that a run leaves behind, and the page that shows the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manticore.file_names import MODEL

if TYPE_CHECKING:
    from manticore.runs.folder import RunFolder


def write_pages(folder: RunFolder, results: dict[str, Any]) -> None:
    """What a finished run shows; ``report: null`` leaves the page out."""
    # the one place where a run looks up to its report
    from manticore.report import write_model_card, write_report

    if (folder.path / MODEL).is_dir():
        write_model_card(folder.path / MODEL, results)
    if folder.recipe.report is not None:
        write_report(folder.path)
