"""The MAD benchmark: six synthetic tasks, their protocol and scores."""

from manticore._moved import names_of

__getattr__ = names_of("manticore.tasks.mad", "manticore.tasks.mad.examples")
