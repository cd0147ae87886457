"""The verb that makes a model's folder ready for others: share."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from manticore.cli.terminal import done, quiet_libraries, say


def share(folder: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a hybrid or a stack.")]) -> None:
    """Make a model's folder ready for others: a model card, and a loader for tools that do not import manticore.

    Example: manticore share tuned
    """
    say(f"share: {folder}")
    quiet_libraries()
    from manticore.report.sharing import share as share_folder

    written = share_folder(folder)
    say(f"added {', '.join(written)}")
    done(folder, f"hf upload YOUR-NAME/{quote(Path(folder).resolve().name)} {quote(folder)}")
