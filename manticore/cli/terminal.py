"""What the command line prints while it works: plain lines where there is no terminal, live ones where there is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

console = Console(highlight=False)


def say(text: str) -> None:
    """One plain line."""
    console.print(text, markup=False, soft_wrap=True)


def done(path: str | Path, next_command: str) -> None:
    """The last lines of every verb: what was written, and the command that comes next."""
    say(f"wrote {path}")
    say(f"next: {next_command}")
