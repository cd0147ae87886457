"""The Long Range Arena: six tasks of long sequences."""

from manticore._moved import names_of

__getattr__ = names_of("manticore.tasks.lra", "manticore.tasks.lra.examples")
