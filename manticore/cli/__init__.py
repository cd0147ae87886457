"""The command line: ``manticore <verb>``. Torch is imported inside the verbs that need it."""

from manticore.cli.app import main

__all__ = ["main"]
