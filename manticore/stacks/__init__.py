"""Models made from scratch out of a list of layers. Importing it registers them with transformers."""

from manticore._auto import register_stack

register_stack()
